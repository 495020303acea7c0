//! The fixed part of the header, field by field.

use super::super::bytes::Reader;
use super::super::geometry::{Geometry, MAX_CLUSTER_BITS, MIN_CLUSTER_BITS};
use super::{Compression, Header, Incompatible, MAX_BACKING_NAME, Table, Version, refuse, text};
use crate::error::{Error, ErrorKind, Result};

const MAGIC: u32 = 0x5146_49fb;
/// Bytes of the header in version 2.
const V2_LENGTH: usize = 72;
/// Bytes of the header in version 3 at least.
const V3_LENGTH: usize = 104;
/// Bytes of the header as this program writes it: with the compression type.
const OUR_LENGTH: usize = 112;

/// The fields as they are stored.
pub(super) struct Fields {
    pub(super) version: Version,
    backing_offset: u64,
    backing_len: u32,
    pub(super) cluster_bits: u32,
    pub(super) size: u64,
    crypt_method: u32,
    pub(super) l1: Table,
    pub(super) refcount_table_offset: u64,
    pub(super) refcount_table_clusters: u32,
    pub(super) snapshots: Table,
    pub(super) incompatible: u64,
    pub(super) compatible: u64,
    pub(super) autoclear: u64,
    pub(super) refcount_order: u32,
    pub(super) header_length: usize,
    compression_type: u8,
    /// What follows the compression type and its padding.
    pub(super) more: Vec<u8>,
}

impl Fields {
    /// The cluster size of what begins with `prefix`, if it is a header at all.
    pub(super) fn cluster_bits(prefix: &[u8]) -> Result<u32> {
        let mut reader = Reader::new(prefix);
        if reader.u32() != Some(MAGIC) {
            return Err(Error::new(ErrorKind::InvalidArgument, "Image is not in qcow2 format"));
        }
        let version = reader.u32().unwrap_or(0);
        version_of(version)?;
        reader.take(12);
        let bits = reader.u32().unwrap_or(0);
        if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&bits) {
            return refuse(format!(
                "cluster_bits is {bits}, but must be between {MIN_CLUSTER_BITS} and \
                 {MAX_CLUSTER_BITS}"
            ));
        }
        Ok(bits)
    }

    pub(super) fn parse(cluster: &[u8]) -> Result<Fields> {
        Fields::cluster_bits(cluster)?;
        let Some(mut fields) = Fields::parse_v2(cluster) else {
            return refuse(format!("the header is cut off after {} bytes", cluster.len()));
        };
        if fields.version == Version::V2 {
            return Ok(fields);
        }
        let Some(length) = fields.parse_v3(&cluster[V2_LENGTH..]) else {
            return refuse(format!("the header is cut off after {} bytes", cluster.len()));
        };
        let whole = usize::try_from(length).unwrap_or(usize::MAX);
        if whole < V3_LENGTH || !whole.is_multiple_of(8) || whole > 1 << fields.cluster_bits {
            return refuse(format!(
                "header_length is {length}, but must be a multiple of 8 from {V3_LENGTH} up to \
                 the cluster size"
            ));
        }
        let Some(rest) = cluster.get(V3_LENGTH..whole) else {
            return refuse(format!("header_length is {length}, more than the file has"));
        };
        fields.header_length = whole;
        fields.compression_type = rest.first().copied().unwrap_or(0);
        fields.more = rest.get(OUR_LENGTH - V3_LENGTH..).unwrap_or_default().to_vec();
        Ok(fields)
    }

    /// The fields that both versions have, with the rest as version 2 implies it.
    fn parse_v2(cluster: &[u8]) -> Option<Fields> {
        let mut reader = Reader::new(cluster);
        reader.u32()?;
        let version = version_of(reader.u32()?).ok()?;
        let (backing_offset, backing_len) = (reader.u64()?, reader.u32()?);
        let (cluster_bits, size, crypt_method) = (reader.u32()?, reader.u64()?, reader.u32()?);
        let (l1_entries, l1_offset) = (reader.u32()?, reader.u64()?);
        let (refcount_table_offset, refcount_table_clusters) = (reader.u64()?, reader.u32()?);
        let (snapshots, snapshots_offset) = (reader.u32()?, reader.u64()?);
        Some(Fields {
            version,
            backing_offset,
            backing_len,
            cluster_bits,
            size,
            crypt_method,
            l1: Table { offset: l1_offset, entries: l1_entries },
            refcount_table_offset,
            refcount_table_clusters,
            snapshots: Table { offset: snapshots_offset, entries: snapshots },
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            header_length: V2_LENGTH,
            compression_type: 0,
            more: Vec::new(),
        })
    }

    /// The fields that version 3 adds; answers `header_length`.
    fn parse_v3(&mut self, bytes: &[u8]) -> Option<u32> {
        let mut reader = Reader::new(bytes);
        self.incompatible = reader.u64()?;
        self.compatible = reader.u64()?;
        self.autoclear = reader.u64()?;
        self.refcount_order = reader.u32()?;
        reader.u32()
    }

    /// Encryption is not supported: the data would be garbage.
    pub(super) fn check_encryption(&self) -> Result<()> {
        let method = match self.crypt_method {
            0 => return Ok(()),
            1 => "AES".to_owned(),
            2 => "LUKS".to_owned(),
            other => format!("unknown crypt_method {other}"),
        };
        let context = format!("the image is encrypted ({method}), which is not supported");
        Err(Error::new(ErrorKind::Unsupported, context))
    }

    /// Where the extension area ends: at the backing file name if there is one.
    pub(super) fn extensions_end(&self, cluster_size: u64) -> Result<usize> {
        let end = if self.backing_offset == 0 { cluster_size } else { self.backing_offset };
        let end = usize::try_from(end).unwrap_or(usize::MAX);
        if end as u64 > cluster_size || end < self.header_length {
            return refuse(format!(
                "backing_file_offset is {:#x}, not between the header and the end of the first \
                 cluster",
                self.backing_offset
            ));
        }
        Ok(end)
    }

    /// Where the backing file name ends; 0 without one.
    pub(super) fn name_end(&self) -> usize {
        let end = self.backing_offset.saturating_add(self.backing_len.into());
        let named = self.backing_offset != 0 && self.backing_len != 0;
        if named { usize::try_from(end).unwrap_or(usize::MAX) } else { 0 }
    }

    /// The backing file name in the first cluster.
    pub(super) fn backing_name(
        &self,
        cluster: &[u8],
        geometry: Geometry,
    ) -> Result<Option<String>> {
        if self.backing_offset == 0 || self.backing_len == 0 {
            return Ok(None);
        }
        let len = u64::from(self.backing_len);
        // The offset was found to be within the first cluster.
        let room = geometry.cluster_size() - self.backing_offset;
        if len > MAX_BACKING_NAME || len > room {
            return refuse(format!(
                "backing_file_size is {len}, more than {}",
                MAX_BACKING_NAME.min(room)
            ));
        }
        let start = usize::try_from(self.backing_offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(self.backing_len as usize);
        let Some(name) = cluster.get(start..end) else {
            return refuse("the backing file name is behind the end of the file");
        };
        text("backing file name", name).map(Some)
    }

    pub(super) fn compression(&self) -> Result<Compression> {
        let other = self.incompatible & Incompatible::COMPRESSION.0 != 0;
        match (other, self.compression_type) {
            (false, 0) => Ok(Compression::Zlib),
            (true, 1) => Ok(Compression::Zstd),
            (true, 0) => refuse("the compression type bit is set, but compression_type is 0"),
            (false, kind) => {
                refuse(format!("compression_type is {kind}, but its feature bit is not set"))
            }
            (true, kind) => {
                let context = format!("compression_type {kind} is not known");
                Err(Error::new(ErrorKind::Unsupported, context))
            }
        }
    }

    /// Bytes of the fields as they are written.
    pub(super) fn length(version: Version, more: &[u8]) -> usize {
        match version {
            Version::V2 => V2_LENGTH,
            Version::V3 => OUR_LENGTH + more.len(),
        }
    }

    /// The fields as they are stored, with a backing file name at `name_at`.
    pub(super) fn serialise(header: &Header, name_at: usize, name_len: usize) -> Vec<u8> {
        let geometry = header.geometry;
        let version = geometry.version();
        let (name_at, name_len) = if name_len == 0 { (0, 0) } else { (name_at, name_len) };
        // Both are within a cluster of at most 2 MiB.
        let name_len = u32::try_from(name_len).unwrap_or(0);
        let length = Fields::length(version, &header.more_fields);
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(MAGIC.to_be_bytes());
        bytes.extend((if version == Version::V2 { 2_u32 } else { 3 }).to_be_bytes());
        bytes.extend((name_at as u64).to_be_bytes());
        bytes.extend(name_len.to_be_bytes());
        bytes.extend(geometry.cluster_bits().to_be_bytes());
        bytes.extend(header.size.to_be_bytes());
        bytes.extend(0_u32.to_be_bytes());
        bytes.extend(header.l1.entries.to_be_bytes());
        bytes.extend(header.l1.offset.to_be_bytes());
        bytes.extend(header.refcount_table_offset.to_be_bytes());
        bytes.extend(header.refcount_table_clusters.to_be_bytes());
        bytes.extend(header.snapshots.entries.to_be_bytes());
        bytes.extend(header.snapshots.offset.to_be_bytes());
        if version == Version::V2 {
            return bytes;
        }
        bytes.extend(header.incompatible.0.to_be_bytes());
        bytes.extend(header.compatible.0.to_be_bytes());
        bytes.extend(header.autoclear.0.to_be_bytes());
        bytes.extend(geometry.refcount_order().to_be_bytes());
        bytes.extend(u32::try_from(length).unwrap_or(0).to_be_bytes());
        bytes.push(match header.compression {
            Compression::Zlib => 0,
            Compression::Zstd => 1,
        });
        bytes.resize(OUR_LENGTH, 0);
        bytes.extend(&header.more_fields);
        bytes
    }
}

fn version_of(number: u32) -> Result<Version> {
    match number {
        2 => Ok(Version::V2),
        3 => Ok(Version::V3),
        other => {
            let context = format!("Unsupported qcow2 version {other}");
            Err(Error::new(ErrorKind::Unsupported, context))
        }
    }
}
