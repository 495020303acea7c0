//! What can be made: QMP's `BlockdevCreateOptions`.

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::create::{CreateOptions, Preallocation};
use crate::format::qcow2::header::{Compression, Version};
use crate::open::{BlockdevOptions, BlockdevRef};

/// What to make.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "driver", rename_all = "kebab-case")]
pub enum CreateImage {
    /// A file of the host.
    File(CreateFile),
    /// A qcow2 image.
    Qcow2(Box<CreateQcow2>),
}

/// A file of the host.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CreateFile {
    /// Its path.
    pub filename: String,
    /// Its length in bytes.
    pub size: u64,
    /// What is reserved or written at once.
    #[serde(default)]
    pub preallocation: Preallocation,
    /// Bytes that the file system is to allocate at once (default 1 MiB).
    pub extent_size_hint: Option<u64>,
}

/// A qcow2 image; the members are QMP's, described there.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "the members are QMP's, described there")]
pub struct CreateQcow2 {
    pub file: BlockdevRef,
    pub data_file: Option<BlockdevRef>,
    pub data_file_raw: Option<bool>,
    pub extended_l2: Option<bool>,
    pub size: u64,
    pub version: Option<Compat>,
    pub backing_file: Option<String>,
    pub backing_fmt: Option<String>,
    pub cluster_size: Option<u64>,
    pub preallocation: Option<Preallocation>,
    pub lazy_refcounts: Option<bool>,
    pub refcount_bits: Option<u32>,
    pub compression_type: Option<CompressionName>,
}

/// Versions by their QMP names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compat {
    V2,
    V3,
}

/// Compressions by their QMP names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompressionName {
    Zlib,
    Zstd,
}

impl CreateImage {
    /// A file of `size` bytes.
    pub fn file(filename: &str, size: u64) -> CreateImage {
        let filename = filename.to_owned();
        CreateImage::File(CreateFile {
            filename,
            size,
            preallocation: Preallocation::Off,
            extent_size_hint: None,
        })
    }

    /// A qcow2 image in a file that is there, over the image `backing`: its name and format.
    pub fn overlay(filename: &str, size: u64, backing: (String, String)) -> CreateImage {
        let (backing_file, backing_fmt) = backing;
        CreateImage::Qcow2(Box::new(CreateQcow2 {
            file: BlockdevRef::nested(BlockdevOptions::file(filename)),
            data_file: None,
            data_file_raw: None,
            extended_l2: None,
            size,
            version: None,
            backing_file: Some(backing_file),
            backing_fmt: Some(backing_fmt),
            cluster_size: None,
            preallocation: None,
            lazy_refcounts: None,
            refcount_bits: None,
            compression_type: None,
        }))
    }
}

impl CreateQcow2 {
    /// The image in the format's own words; `data_file` is the name that it is to store.
    pub(super) fn image(&self, data_file: Option<String>) -> Result<CreateOptions> {
        let refuse = |text: &str| Err(Error::new(ErrorKind::InvalidArgument, text));
        if self.backing_fmt.is_some() && self.backing_file.is_none() {
            return refuse("Backing format cannot be used without backing file");
        }
        if self.data_file_raw == Some(true) && self.data_file.is_none() {
            return refuse("data-file-raw requires data-file");
        }
        if self.data_file_raw == Some(true) && self.backing_file.is_some() {
            return refuse("Backing file and data-file-raw cannot be used at the same time");
        }
        let plain = CreateOptions::new(self.size);
        let extended_l2 = self.extended_l2 == Some(true);
        let default_cluster = if extended_l2 { 1 << 17 } else { plain.cluster_size };
        Ok(CreateOptions {
            version: match self.version {
                Some(Compat::V2) => Version::V2,
                Some(Compat::V3) | None => Version::V3,
            },
            cluster_size: self.cluster_size.unwrap_or(default_cluster),
            refcount_bits: self.refcount_bits.unwrap_or(plain.refcount_bits),
            backing_file: self.backing_file.clone(),
            backing_format: self.backing_fmt.clone(),
            data_file,
            data_file_raw: self.data_file_raw == Some(true),
            lazy_refcounts: self.lazy_refcounts == Some(true),
            extended_l2,
            compression: match self.compression_type {
                Some(CompressionName::Zstd) => Compression::Zstd,
                Some(CompressionName::Zlib) | None => Compression::Zlib,
            },
            preallocation: self.preallocation.unwrap_or_default(),
            ..plain
        })
    }
}
