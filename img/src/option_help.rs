//! `-o help`: the options that a format takes.

use crate::failure::{Failure, Result};
use crate::keyval;
use crate::output::print;

/// What options are wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// A new image.
    Create,
    /// An image that is there.
    Amend,
}

/// An option: its name, its values, and what it means.
type OptionLine = (&'static str, &'static str, &'static str);

const QCOW2: [OptionLine; 12] = [
    ("backing_file", "<str>", "File name of the image below"),
    ("backing_fmt", "<str>", "Format of the image below"),
    ("cluster_size", "<size>", "Bytes of a cluster, 512 to 2M"),
    ("compat", "<str>", "Version (v2 [0.10] or v3 [1.1])"),
    ("compression_type", "<str>", "Compression of clusters (zlib or zstd)"),
    ("data_file", "<str>", "File name of an external data file"),
    ("data_file_raw", "<bool>", "The external data file is a raw image, too (on/off)"),
    ("extended_l2", "<bool>", "Subclusters (on/off)"),
    ("lazy_refcounts", "<bool>", "Postpone refcount updates (on/off)"),
    ("preallocation", "<str>", "What is allocated (off, metadata, falloc or full)"),
    ("refcount_bits", "<num>", "Bits of a refcount, 1 to 64"),
    ("size", "<size>", "Length of the disk"),
];
/// Of these, what an image that is there may get another value of.
const AMENDABLE: [&str; 6] =
    ["compat", "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits", "size"];
const RAW: [OptionLine; 2] = [
    ("preallocation", "<str>", "What is allocated (off, falloc or full)"),
    ("size", "<size>", "Length of the disk"),
];
/// Of the file that holds a new image.
const FILE: [OptionLine; 1] =
    [("extent_size_hint", "<size>", "Hint for the file system, 0 for none")];

/// Whether the user asks for the options instead of giving some.
pub(crate) fn is_asked(lists: &[String]) -> bool {
    lists.iter().flat_map(|list| keyval::pairs(list)).any(|(key, _)| key == "help" || key == "?")
}

/// Prints the options of a format.
pub(crate) fn show(format: &str, wanted: Use) -> Result<()> {
    let own = match (format, wanted) {
        ("qcow2", _) => &QCOW2[..],
        ("raw", Use::Create) => &RAW[..],
        ("raw", Use::Amend) => {
            let text = format!("Format driver '{format}' does not support option amendment");
            return Err(Failure::new(text));
        }
        _ => return Err(Failure::new(format!("Unknown file format '{format}'"))),
    };
    match wanted {
        Use::Create => print("Supported options:")?,
        Use::Amend => print(format!("Amend options for '{format}':"))?,
    }
    let mut lines: Vec<_> = own
        .iter()
        .chain(&FILE)
        .filter(|line| wanted == Use::Create || AMENDABLE.contains(&line.0))
        .collect();
    lines.sort();
    for (name, values, meaning) in lines {
        let value = format!("{name}={values}");
        print(format!("  {value:<22} - {meaning}"))?;
    }
    Ok(())
}
