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

/// An option: its name, its values, what it means, and whether an image that is there may get another value.
type OptionLine = (&'static str, &'static str, &'static str, bool);

const QCOW2: [OptionLine; 12] = [
    ("backing_file", "<str>", "File name of the image below", false),
    ("backing_fmt", "<str>", "Format of the image below", false),
    ("cluster_size", "<size>", "Bytes of a cluster, 512 to 2M", false),
    ("compat", "<str>", "Version (v2 [0.10] or v3 [1.1])", true),
    ("compression_type", "<str>", "Compression of clusters (zlib or zstd)", false),
    ("data_file", "<str>", "File name of an external data file", true),
    ("data_file_raw", "<bool>", "The external data file is a raw image, too (on/off)", true),
    ("extended_l2", "<bool>", "Subclusters (on/off)", false),
    ("lazy_refcounts", "<bool>", "Postpone refcount updates (on/off)", true),
    ("preallocation", "<str>", "What is allocated (off, metadata, falloc or full)", false),
    ("refcount_bits", "<num>", "Bits of a refcount, 1 to 64", true),
    ("size", "<size>", "Length of the disk", true),
];
const RAW: [OptionLine; 2] = [
    ("preallocation", "<str>", "What is allocated (off, falloc or full)", false),
    ("size", "<size>", "Length of the disk", true),
];
/// Of the file that holds a new image.
const FILE: [OptionLine; 1] =
    [("extent_size_hint", "<size>", "Hint for the file system, 0 for none", false)];

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
    let mut lines: Vec<_> =
        own.iter().chain(&FILE).filter(|line| wanted == Use::Create || line.3).collect();
    lines.sort();
    for (name, values, meaning, _) in lines {
        let value = format!("{name}={values}");
        print(format!("  {value:<22} - {meaning}"))?;
    }
    Ok(())
}
