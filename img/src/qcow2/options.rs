//! Options of a new qcow2 image, as `-o` takes them.

use ferry_block::format::qcow2::create::{CreateOptions, Preallocation};
use ferry_block::format::qcow2::header::{Compression, Version};

use crate::create::extent_size;
use crate::failure::{Failure, Result};
use crate::keyval::{self, boolean};
use crate::size;

/// A new image: the block layer's options, and which of them the user gave.
pub(crate) struct NewQcow2 {
    pub(crate) options: CreateOptions,
    /// Bytes of the disk, if they were given.
    pub(crate) size: Option<u64>,
    /// What the file system of the image's file is told.
    pub(crate) extent_size_hint: Option<u32>,
    given: Vec<(String, String)>,
}

impl NewQcow2 {
    /// Reads the lists after `-o`; the last word on a key counts.
    pub(crate) fn parse(lists: &[String], size: Option<u64>) -> Result<NewQcow2> {
        let options = CreateOptions::new(0);
        let mut new = NewQcow2 { options, size, extent_size_hint: None, given: Vec::new() };
        for (key, value) in lists.iter().flat_map(|list| keyval::pairs(list)) {
            new.set(&key, &value)?;
            new.given.retain(|(other, _)| *other != key);
            new.given.push((key, value));
        }
        Ok(new)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let options = &mut self.options;
        let bad = || Failure::new(format!("Invalid parameter '{value}' for '{key}'"));
        match key {
            "size" => self.size = Some(self.size.map_or_else(|| size::parse(value), Ok)?),
            "compat" => {
                options.version = match value {
                    "0.10" | "v2" => Version::V2,
                    "1.1" | "v3" => Version::V3,
                    _ => return Err(bad()),
                };
            }
            "cluster_size" => options.cluster_size = size::parse(value)?,
            "refcount_bits" => options.refcount_bits = value.parse().ok().ok_or_else(bad)?,
            "backing_file" => options.backing_file = Some(value.to_owned()),
            "backing_fmt" => options.backing_format = Some(value.to_owned()),
            "data_file" => options.data_file = Some(value.to_owned()),
            "data_file_raw" => options.data_file_raw = boolean(key, value)?,
            "lazy_refcounts" => options.lazy_refcounts = boolean(key, value)?,
            "extended_l2" => options.extended_l2 = boolean(key, value)?,
            "compression_type" => {
                options.compression = match value {
                    "zlib" => Compression::Zlib,
                    "zstd" => Compression::Zstd,
                    _ => return Err(bad()),
                };
            }
            "preallocation" => {
                options.preallocation = match value {
                    "off" => Preallocation::Off,
                    "metadata" => Preallocation::Metadata,
                    "falloc" => Preallocation::Falloc,
                    "full" => Preallocation::Full,
                    _ => return Err(bad()),
                };
            }
            "extent_size_hint" => self.extent_size_hint = Some(extent_size(value)?),
            "encryption" if !boolean(key, value)? => {}
            "encryption" => return Err(Failure::new("encrypted images are not supported")),
            _ if key.starts_with("encrypt.") => {
                return Err(Failure::new("encrypted images are not supported"));
            }
            _ => return Err(Failure::new(format!("Invalid parameter '{key}'"))),
        }
        Ok(())
    }

    /// What `create` says it makes, in the order of QEMU.
    pub(crate) fn summary(&self, size: u64) -> String {
        let options = &self.options;
        let given = |key: &str| self.given.iter().find(|(other, _)| other == key);
        let switch = |on| if on { "on" } else { "off" };
        let mut words = vec![
            format!("cluster_size={}", options.cluster_size),
            format!("extended_l2={}", switch(options.extended_l2)),
        ];
        let mut add = |key: &str| {
            if let Some((key, value)) = given(key) {
                words.push(format!("{key}={value}"));
            }
        };
        add("preallocation");
        let compression = match options.compression {
            Compression::Zlib => "zlib",
            Compression::Zstd => "zstd",
        };
        words.push(format!("compression_type={compression}"));
        words.push(format!("size={size}"));
        let mut add = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                words.push(format!("{key}={value}"));
            }
        };
        add("compat", given("compat").map(|(_, value)| value.clone()));
        add("data_file", options.data_file.clone());
        add("data_file_raw", given("data_file_raw").map(|(_, value)| value.clone()));
        add("backing_file", options.backing_file.clone());
        add("backing_fmt", options.backing_format.clone());
        words.push(format!("lazy_refcounts={}", switch(options.lazy_refcounts)));
        words.push(format!("refcount_bits={}", options.refcount_bits));
        words.extend(self.extent_size_hint.map(|hint| format!("extent_size_hint={hint}")));
        words.join(" ")
    }
}
