//! The header of an image: qcow2 specification, "Header". Everything in it is hostile until
//! [`Header::parse`] has looked at it.

mod extension;
mod feature;
mod fields;
mod rewrite;

use super::geometry::Geometry;
use crate::buf::IoBuf;
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

pub use extension::{BitmapsExtension, Extensions, MAX_BITMAPS};
pub use feature::{Autoclear, Compatible, Incompatible};

use fields::Fields;

/// Longest backing file name, in bytes.
pub const MAX_BACKING_NAME: u64 = 1023;
/// Longest L1 table, in bytes: QEMU's limit.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Longest refcount table, in bytes: QEMU's limit.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Most internal snapshots: QEMU's limit.
pub const MAX_SNAPSHOTS: u32 = 65536;
/// Bytes that say how long the header's cluster is.
const PREFIX: usize = 24;

/// Version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `compat=0.10`: no feature bits, refcounts of 16 bits, no zero clusters.
    V2,
    /// `compat=1.1`.
    V3,
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate (RFC 1951).
    #[default]
    Zlib,
    /// One zstd frame (RFC 8878).
    Zstd,
}

/// Where a table is in the image file, and how many entries it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its first byte; the start of a cluster.
    pub offset: u64,
    /// Its entries.
    pub entries: u32,
}

/// A header that makes sense. The tables that it points to have not been looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Sizes and entry formats.
    pub geometry: Geometry,
    /// Bytes of the virtual disk.
    pub size: u64,
    /// The name of the backing file as it was given, relative to the image's directory.
    pub backing_file: Option<String>,
    /// The active L1 table.
    pub l1: Table,
    /// First byte of the refcount table.
    pub refcount_table_offset: u64,
    /// Its length in clusters.
    pub refcount_table_clusters: u32,
    /// The snapshot table; the offset means nothing without snapshots.
    pub snapshots: Table,
    /// Features that a reader must know; none in version 2.
    pub incompatible: Incompatible,
    /// Features that a reader may ignore.
    pub compatible: Compatible,
    /// Features that a writer must know.
    pub autoclear: Autoclear,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// What follows the header.
    pub extensions: Extensions,
    /// Header fields after those that this program knows, kept as they are.
    pub(crate) more_fields: Vec<u8>,
}

impl Header {
    /// Reads the header of the image in `file`.
    ///
    /// # Errors
    /// `Corrupt` with the field that makes no sense, `Unsupported` for what this program does not
    /// know or does not do, or the error of the read.
    pub async fn load(file: &Edge) -> Result<Header> {
        let prefix = read_up_to(file, PREFIX as u64).await?;
        let bits = Fields::cluster_bits(&prefix)?;
        // Only a guess until the header is parsed, but no worse than the largest cluster.
        let cluster = read_up_to(file, 1 << bits).await?;
        Header::parse(&cluster)
    }

    /// Reads the header in `cluster`, the first cluster of the image, or as much of it as the file
    /// has.
    ///
    /// # Errors
    /// As [`Header::load`].
    pub fn parse(cluster: &[u8]) -> Result<Header> {
        let fields = Fields::parse(cluster)?;
        fields.check_encryption()?;
        let incompatible = Incompatible(fields.incompatible);
        // The extensions first: they may know the names of features that this program does not.
        let cluster_size = Geometry::new(
            fields.version,
            fields.cluster_bits,
            fields.refcount_order,
            incompatible.with(Incompatible::EXTENDED_L2, false),
        )?
        .cluster_size();
        let end = fields.extensions_end(cluster_size)?;
        let area = &cluster[fields.header_length..cluster.len().min(end).max(fields.header_length)];
        let extensions = Extensions::parse(area, cluster_size)?;
        feature::check_incompatible(incompatible, &extensions.feature_names)?;
        if extensions.encryption {
            return refuse("an encryption header is present, but crypt_method is 0");
        }
        let geometry = Geometry::new(
            fields.version,
            fields.cluster_bits,
            fields.refcount_order,
            incompatible,
        )?;
        let header = Header {
            geometry,
            size: fields.size,
            backing_file: fields.backing_name(cluster, geometry)?,
            l1: fields.l1,
            refcount_table_offset: fields.refcount_table_offset,
            refcount_table_clusters: fields.refcount_table_clusters,
            snapshots: fields.snapshots,
            incompatible,
            compatible: Compatible(fields.compatible),
            autoclear: Autoclear(fields.autoclear),
            compression: fields.compression()?,
            extensions,
            more_fields: fields.more,
        };
        header.check()?;
        Ok(header)
    }

    /// The first cluster of the image: header, extensions, backing file name, then zeroes.
    ///
    /// # Errors
    /// `NoSpace` if they do not fit into a cluster.
    pub fn serialise(&self) -> Result<Vec<u8>> {
        // In a small cluster the names of the features would leave little room for what matters.
        let is_large = self.geometry.cluster_len() >= 4096;
        self.serialise_with(is_large && self.geometry.version() == Version::V3)
    }

    /// The same, with the names of the features or without.
    fn serialise_with(&self, names: bool) -> Result<Vec<u8>> {
        let size = self.geometry.cluster_len();
        let version = self.geometry.version();
        let area = self.extensions.serialise(names);
        let fields_len = Fields::length(version, &self.more_fields);
        let name = self.backing_file.as_deref().unwrap_or_default();
        let name_at = fields_len + area.len();
        if name.len() as u64 > MAX_BACKING_NAME {
            let context = format!("Backing file name is {} bytes long, more than 1023", name.len());
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        if name_at + name.len() > size {
            let context = format!(
                "the header needs {} bytes, but a cluster has only {size}",
                name_at + name.len()
            );
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        let mut cluster = Fields::serialise(self, name_at, name.len());
        cluster.extend(area);
        cluster.extend(name.bytes());
        cluster.resize(size, 0);
        Ok(cluster)
    }

    /// Bytes of the refcount table.
    pub fn refcount_table_bytes(&self) -> u64 {
        u64::from(self.refcount_table_clusters) << self.geometry.cluster_bits()
    }

    /// Whether the external data file is a raw image too.
    pub fn is_data_file_raw(&self) -> bool {
        self.geometry.has_external_data() && self.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA)
    }

    /// The persistent bitmaps, if they are consistent: without the autoclear bit somebody wrote to
    /// the image who does not know of them.
    pub fn bitmaps(&self) -> Option<BitmapsExtension> {
        self.extensions.bitmaps.filter(|_| self.autoclear.contains(Autoclear::BITMAPS))
    }

    /// Refuses an image whose L1 or refcount table begins behind the end of a file of `file_len`
    /// bytes. Repair does without this, to save what can be saved.
    pub fn check_against(&self, file_len: u64) -> Result<()> {
        let tables = [
            ("l1_table_offset", self.l1.offset, self.l1.entries != 0),
            ("refcount_table_offset", self.refcount_table_offset, true),
            ("snapshots_offset", self.snapshots.offset, self.snapshots.entries != 0),
        ];
        for (field, offset, used) in tables {
            if used && offset >= file_len {
                return refuse(format!(
                    "{field} is {offset:#x}, behind the end of the file of {file_len} bytes"
                ));
            }
        }
        Ok(())
    }

    /// Everything that can be said without looking at the file.
    pub(super) fn check(&self) -> Result<()> {
        let geometry = self.geometry;
        if i64::try_from(self.size).is_err() {
            return refuse(format!("size is {}, more than any file can have", self.size));
        }
        let needed = geometry.l1_entries_for(self.size);
        if needed * 8 > MAX_L1_BYTES {
            return refuse(format!(
                "size is {}, more than an L1 table of {MAX_L1_BYTES} bytes can describe",
                self.size
            ));
        }
        if u64::from(self.l1.entries) < needed {
            return refuse(format!(
                "l1_size is {}, but {needed} entries are needed: L1 table is too small",
                self.l1.entries
            ));
        }
        self.check_table("l1", self.l1.offset, u64::from(self.l1.entries) * 8, MAX_L1_BYTES)?;
        let bytes = self.refcount_table_bytes();
        if bytes == 0 {
            return refuse("refcount_table_clusters is 0: the image has no refcount table");
        }
        let limit = MAX_REFCOUNT_TABLE_BYTES;
        self.check_table("refcount", self.refcount_table_offset, bytes, limit)?;
        if self.snapshots.entries > MAX_SNAPSHOTS {
            return refuse(format!(
                "nb_snapshots is {}, more than {MAX_SNAPSHOTS}",
                self.snapshots.entries
            ));
        }
        // How long an entry is says the entry; it has 40 bytes at least.
        let least = u64::from(self.snapshots.entries) * 40;
        self.check_table("snapshot", self.snapshots.offset, least, u64::MAX)
    }

    fn check_table(&self, name: &str, offset: u64, bytes: u64, most: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        if bytes > most {
            return refuse(format!("the {name} table has {bytes} bytes, more than {most}"));
        }
        let end = offset.checked_add(bytes).filter(|&end| i64::try_from(end).is_ok());
        if offset == 0 || !self.geometry.is_aligned(offset) || end.is_none() {
            return refuse(format!(
                "the offset of the {name} table is {offset:#x}, not the start of a cluster"
            ));
        }
        Ok(())
    }
}

/// The first `len` bytes of a file, or all of it.
async fn read_up_to(file: &Edge, len: u64) -> Result<Vec<u8>> {
    let len = usize::try_from(file.len().min(len)).unwrap_or(usize::MAX);
    let buf = IoBuf::alloc(len);
    file.read(0, buf.clone()).await?;
    Ok(buf.to_vec())
}

fn text(what: &str, data: &[u8]) -> Result<String> {
    match str::from_utf8(data) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => refuse(format!("the {what} is no UTF-8 text: '{}'", data.escape_ascii())),
    }
}

fn refuse<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Corrupt, text))
}

#[cfg(test)]
#[path = "../header_tests.rs"]
mod tests;
