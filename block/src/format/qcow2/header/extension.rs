//! Header extensions: qcow2 specification, "Header extensions" and the sections after it.

use super::super::bytes::{Reader, padding};
use super::feature;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of the type and the length of an extension.
const EXTENSION_HEADER: usize = 8;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const ENCRYPTION: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;
/// ferry's own: "ferg", the generation mark of the image, a 64-bit number that grows whenever a
/// process begins to write. Others keep extensions that they do not know, and lose nothing by it.
const GENERATION: u32 = 0x6665_7267;

/// Bytes that the bitmaps and the generation mark take up together, with room to spare behind the mark
/// when there are no bitmaps.
const CHANGING: usize = 48;

/// QEMU's limit for the name of a format.
const MAX_FORMAT_NAME: usize = 15;
/// Longest path that the kernel takes.
const MAX_DATA_FILE_NAME: usize = 4095;
/// QEMU's limit for the number of bitmaps.
pub const MAX_BITMAPS: u32 = 65535;
/// Longest bitmap directory: that many entries with names of 1023 bytes.
pub(super) const MAX_BITMAP_DIRECTORY: u64 = MAX_BITMAPS as u64 * (24 + 1024);

/// Where the directory of persistent bitmaps is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Bitmaps in the directory, at least one.
    pub count: u32,
    /// Bytes of the directory.
    pub directory_size: u64,
    /// Its start in the image file.
    pub directory_offset: u64,
}

/// The extensions of a header. The feature name table is made anew whenever the header is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// The format of the backing file.
    pub backing_format: Option<String>,
    /// The name of the external data file.
    pub data_file: Option<String>,
    /// The persistent bitmaps.
    pub bitmaps: Option<BitmapsExtension>,
    /// The generation mark.
    pub generation: Option<u64>,
    /// Whether the image says where an encryption header is.
    pub(crate) encryption: bool,
    /// The feature name table that was read.
    pub(crate) feature_names: Vec<u8>,
    /// What this program does not know, in order: type and data.
    pub(crate) unknown: Vec<(u32, Vec<u8>)>,
}

impl Extensions {
    /// Reads the extension area, which ends with an end mark or with `area`.
    pub(super) fn parse(area: &[u8], cluster_size: u64) -> Result<Extensions> {
        let mut found = Extensions::default();
        let mut reader = Reader::new(area);
        while let Some(kind) = reader.u32().filter(|&kind| kind != END) {
            let len = reader.u32().unwrap_or(0) as usize;
            let left = reader.left();
            let Some(data) = reader.take(len) else {
                return refuse(format!(
                    "header extension {kind:#010x} is {len} bytes long, but only {left} are left"
                ));
            };
            // The padding of the last extension may be cut off by the end of the area.
            reader.take(padding(len).len().min(reader.left()));
            // Of one that is there twice the last one counts, as for QEMU.
            found.add(kind, data, cluster_size)?;
        }
        Ok(found)
    }

    fn add(&mut self, kind: u32, data: &[u8], cluster_size: u64) -> Result<()> {
        match kind {
            BACKING_FORMAT => {
                self.backing_format = Some(text("backing format", data, MAX_FORMAT_NAME)?);
            }
            DATA_FILE => {
                self.data_file = Some(text("data file name", data, MAX_DATA_FILE_NAME)?);
            }
            FEATURE_NAMES => self.feature_names = data.to_vec(),
            BITMAPS => self.bitmaps = Some(BitmapsExtension::parse(data, cluster_size)?),
            ENCRYPTION => self.encryption = true,
            GENERATION => {
                let Some(mark) = data.first_chunk() else {
                    return refuse(format!("the generation mark has {} bytes, not 8", data.len()));
                };
                self.generation = Some(u64::from_be_bytes(*mark));
            }
            _ => self.unknown.push((kind, data.to_vec())),
        }
        Ok(())
    }

    /// The area as it is stored, with its end mark. `names` adds the feature name table.
    ///
    /// What changes while an image is in use comes first, in the sector that also has the fields and
    /// survives a crash as a whole. It always takes up the same room, so that nothing behind it moves:
    /// a header of which a crash left some sectors old and others new can be read.
    pub(super) fn serialise(&self, names: bool) -> Vec<u8> {
        let mut area = Vec::new();
        if let Some(bitmaps) = &self.bitmaps {
            append(&mut area, BITMAPS, &bitmaps.serialise());
        }
        if let Some(mark) = self.generation {
            let mut data = mark.to_be_bytes().to_vec();
            if names {
                data.resize(CHANGING - area.len() - EXTENSION_HEADER, 0);
            }
            append(&mut area, GENERATION, &data);
        }
        if let Some(format) = &self.backing_format {
            append(&mut area, BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            append(&mut area, DATA_FILE, name.as_bytes());
        }
        if names {
            append(&mut area, FEATURE_NAMES, &feature::name_table());
        }
        for (kind, data) in &self.unknown {
            append(&mut area, *kind, data);
        }
        append(&mut area, END, &[]);
        area
    }
}

/// How many bytes of the area say anything, its end mark included.
pub(super) fn used(area: &[u8]) -> usize {
    let mut reader = Reader::new(area);
    while let Some(kind) = reader.u32() {
        let len = reader.u32().unwrap_or(0) as usize;
        if kind == END || reader.take(len).is_none() {
            break;
        }
        reader.take(padding(len).len().min(reader.left()));
    }
    area.len() - reader.left()
}

impl BitmapsExtension {
    const LEN: usize = 24;

    fn parse(data: &[u8], cluster_size: u64) -> Result<BitmapsExtension> {
        let mut reader = Reader::new(data);
        let fields = (reader.u32(), reader.u32(), reader.u64(), reader.u64(), reader.left());
        let (Some(count), Some(reserved), Some(directory_size), Some(directory_offset), 0) = fields
        else {
            let (got, want) = (data.len(), BitmapsExtension::LEN);
            return refuse(format!("the bitmaps extension has {got} bytes, not {want}"));
        };
        if reserved != 0 {
            return refuse(format!("the reserved field of the bitmaps extension is {reserved:#x}"));
        }
        if count == 0 || count > MAX_BITMAPS {
            return refuse(format!("nb_bitmaps is {count}, but must be 1 to {MAX_BITMAPS}"));
        }
        if directory_size == 0 || directory_size > MAX_BITMAP_DIRECTORY {
            return refuse(format!(
                "bitmap_directory_size is {directory_size}, but must be 1 to {MAX_BITMAP_DIRECTORY}"
            ));
        }
        let end = directory_offset.checked_add(directory_size);
        let fits = end.is_some_and(|end| i64::try_from(end).is_ok());
        if directory_offset == 0 || !directory_offset.is_multiple_of(cluster_size) || !fits {
            return refuse(format!(
                "bitmap_directory_offset is {directory_offset:#x}, not the start of a cluster"
            ));
        }
        Ok(BitmapsExtension { count, directory_size, directory_offset })
    }

    fn serialise(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(BitmapsExtension::LEN);
        data.extend(self.count.to_be_bytes());
        data.extend([0; 4]);
        data.extend(self.directory_size.to_be_bytes());
        data.extend(self.directory_offset.to_be_bytes());
        data
    }
}

fn append(area: &mut Vec<u8>, kind: u32, data: &[u8]) {
    // A header is one cluster of at most 2 MiB and refused when it becomes longer.
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    area.extend(kind.to_be_bytes());
    area.extend(len.to_be_bytes());
    area.extend(data);
    area.extend(padding(data.len()));
}

fn text(what: &str, data: &[u8], longest: usize) -> Result<String> {
    if data.len() > longest {
        let len = data.len();
        return refuse(format!("the {what} has {len} bytes, more than {longest}"));
    }
    super::text(what, data)
}

fn refuse<T>(text: String) -> Result<T> {
    Err(Error::new(ErrorKind::Corrupt, text))
}
