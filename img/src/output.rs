//! What goes to standard output.

use std::fmt;
use std::io::{self, Write};

use clap::ValueEnum;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::failure::{Failure, Result};

/// The members of objects as `qemu-img` orders them, so that the output of both can be compared line by
/// line. It hashes the names, so there is no more sense in the order than that.
#[rustfmt::skip]
const ORDER: [&str; 46] = [
    "compat", "icount", "flags", "vm-clock-nsec", "image-end-offset", "name", "compressed-clusters",
    "compression-type", "compressed", "lazy-refcounts", "date-sec", "bitmaps", "refcount-bits",
    "total-clusters", "corruptions", "data-file", "corruptions-fixed", "check-errors",
    "backing-filename-format", "date-nsec", "granularity", "required", "leaks", "snapshots",
    "leaks-fixed", "allocated-clusters", "virtual-size", "filename", "cluster-size",
    "fully-allocated", "format", "actual-size", "format-specific", "data-file-raw",
    "full-backing-filename", "vm-clock-sec", "encrypted", "type", "backing-filename", "corrupt",
    "fragmented-clusters", "id", "vm-state-size", "dirty-flag", "extended-l2", "data",
];

/// For whom output is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Human,
    /// For programs.
    Json,
}

/// Writes lines. A closed pipe is an error like any other.
pub(crate) fn print(text: impl fmt::Display) -> Result<()> {
    writeln!(io::stdout(), "{text}")
        .map_err(|error| Failure::new(format!("cannot write to standard output: {error}")))
}

/// A value whose objects are written in [`ORDER`], what is not in it last.
struct Ordered<'a>(&'a Value);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(members) => {
                let place = |name: &str| ORDER.iter().position(|known| *known == name);
                let mut members: Vec<_> = members.iter().collect();
                members.sort_by_key(|(name, _)| place(name).unwrap_or(ORDER.len()));
                serializer.collect_map(members.into_iter().map(|(k, v)| (k, Ordered(v))))
            }
            Value::Array(values) => serializer.collect_seq(values.iter().map(Ordered)),
            plain => plain.serialize(serializer),
        }
    }
}

/// Writes JSON with four spaces of indentation.
pub(crate) fn print_json(value: &Value) -> Result<()> {
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    Ordered(value)
        .serialize(&mut serializer)
        .map_err(|error| Failure::new(format!("cannot write JSON: {error}")))?;
    print(String::from_utf8_lossy(&text))
}
