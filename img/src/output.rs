//! What goes to standard output.

use std::fmt;
use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::Value;

use crate::failure::{Failure, Result};

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

/// Writes JSON with four spaces of indentation.
pub(crate) fn print_json(value: &Value) -> Result<()> {
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(value, &mut serializer)
        .map_err(|error| Failure::new(format!("cannot write JSON: {error}")))?;
    print(String::from_utf8_lossy(&text))
}
