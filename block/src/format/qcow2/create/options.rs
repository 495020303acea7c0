//! What a new image is to be like: the options of `qemu-img create -f qcow2 -o`.

use super::super::geometry::Geometry;
use super::super::header::{Autoclear, Compatible, Compression, Incompatible, Version};
use crate::error::{Error, ErrorKind, Result};

/// How much of a new image is allocated at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// All tables; the clusters they point to are holes in the file.
    Metadata,
    /// All tables, and space for all clusters.
    Falloc,
    /// All tables, and zeroes written to all clusters.
    Full,
}

/// What a new image is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the virtual disk; a multiple of 512.
    pub size: u64,
    /// `compat`: 0.10 is version 2, 1.1 version 3.
    pub version: Version,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Bits of a refcount.
    pub refcount_bits: u32,
    /// The backing file's name as it is to be stored.
    pub backing_file: Option<String>,
    /// The backing file's format.
    pub backing_format: Option<String>,
    /// The external data file's name as it is to be stored.
    pub data_file: Option<String>,
    /// The external data file is to be a raw image as well.
    pub data_file_raw: bool,
    /// Refcounts may be written late.
    pub lazy_refcounts: bool,
    /// L2 entries with subclusters.
    pub extended_l2: bool,
    /// How compressed clusters will be compressed.
    pub compression: Compression,
    /// What to allocate at once.
    pub preallocation: Preallocation,
}

impl CreateOptions {
    /// An image of `size` bytes as `qemu-img create` makes it without options.
    pub fn new(size: u64) -> CreateOptions {
        CreateOptions {
            size,
            version: Version::V3,
            cluster_size: 1 << 16,
            refcount_bits: 16,
            backing_file: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
            lazy_refcounts: false,
            extended_l2: false,
            compression: Compression::Zlib,
            preallocation: Preallocation::Off,
        }
    }

    /// What is to be allocated at once: a data file that can be read by itself needs its tables.
    pub fn preallocation(&self) -> Preallocation {
        match self.preallocation {
            Preallocation::Off if self.data_file_raw => Preallocation::Metadata,
            other => other,
        }
    }

    pub(super) fn incompatible(&self) -> Incompatible {
        Incompatible::NONE
            .with(Incompatible::EXTERNAL_DATA, self.data_file.is_some())
            .with(Incompatible::COMPRESSION, self.compression != Compression::Zlib)
            .with(Incompatible::EXTENDED_L2, self.extended_l2)
    }

    pub(super) fn compatible(&self) -> Compatible {
        Compatible::NONE.with(Compatible::LAZY_REFCOUNTS, self.lazy_refcounts)
    }

    pub(super) fn autoclear(&self) -> Autoclear {
        Autoclear::NONE.with(Autoclear::RAW_EXTERNAL_DATA, self.data_file_raw)
    }

    /// The geometry of the image.
    ///
    /// # Errors
    /// Options that are wrong or do not go together, in QEMU's words where it has them.
    pub fn geometry(&self) -> Result<Geometry> {
        let size = self.cluster_size;
        if !size.is_power_of_two() || !(1 << 9..=1 << 21).contains(&size) {
            return refuse("Cluster size must be a power of two between 512 and 2048k");
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return refuse("Refcount width must be a power of two and may not exceed 64 bits");
        }
        if !self.size.is_multiple_of(512) {
            return refuse("Image size must be a multiple of 512 bytes");
        }
        self.check_version()?;
        if self.extended_l2 && size < 1 << 14 {
            let text = "Extended L2 entries are only supported with cluster sizes of at least \
                        16384 bytes";
            return refuse(text);
        }
        self.check_files()?;
        let order = self.refcount_bits.trailing_zeros();
        Geometry::new(self.version, size.trailing_zeros(), order, self.incompatible())
    }

    fn check_version(&self) -> Result<()> {
        if self.version >= Version::V3 {
            return Ok(());
        }
        let needs = [
            (self.lazy_refcounts, "Lazy refcounts only supported"),
            (self.extended_l2, "Extended L2 entries are only supported"),
            (self.refcount_bits != 16, "Different refcount widths than 16 bits require"),
            (self.data_file.is_some(), "External data files are only supported"),
            (self.compression != Compression::Zlib, "Non-zlib compression type is only supported"),
        ];
        let Some((_, what)) = needs.iter().find(|(used, _)| *used) else { return Ok(()) };
        let level = if what.ends_with("require") {
            "compatibility level 1.1 or above"
        } else {
            "with compatibility level 1.1 and above"
        };
        refuse(format!("{what} {level} (use version=v3 or greater)"))
    }

    fn check_files(&self) -> Result<()> {
        if self.backing_format.is_some() && self.backing_file.is_none() {
            return refuse("Backing format cannot be used without backing file");
        }
        if self.data_file_raw && self.data_file.is_none() {
            return refuse("data-file-raw requires data-file");
        }
        if self.backing_file.is_some() && self.data_file_raw {
            return refuse("Backing file and data-file-raw cannot be used at the same time");
        }
        let preallocates = self.preallocation != Preallocation::Off;
        if self.backing_file.is_some() && preallocates && !self.extended_l2 {
            let text = "Backing file and preallocation can only be used at the same time if \
                        extended_l2 is enabled";
            return refuse(text);
        }
        Ok(())
    }
}

fn refuse<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidArgument, text))
}
