//! Golden files: what keeps saved state readable for ever.
//!
//! For tests of every crate that has a [`State`]. One file per version, `<kind>-v<n>.cbor`, holds the
//! payload of a sample. [`check`] fails when
//! - the file of today's version is missing, or lists other fields than today's struct: somebody
//!   changed the struct without giving it a new version;
//! - the file of any earlier version no longer loads: somebody broke the chain.
//!
//! A new file is written by running the test once with `FERRY_BLESS=1`, and committed with the struct.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ciborium::Value;

use super::{Section, State};

/// Checks today's struct and all earlier golden files in `dir`; the error says what to do.
///
/// Give `sample` every optional field and at least one element in every list, or the check cannot
/// see what is inside.
pub fn check<S: State>(dir: &Path, sample: &S) -> Result<(), String> {
    let today = Section::save("golden", sample).map_err(|e| e.report())?;
    let path = dir.join(format!("{}-v{}.cbor", S::KIND, S::VERSION));
    if !path.exists() && std::env::var_os("FERRY_BLESS").is_some() {
        fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        fs::write(&path, today.payload()).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    for version in oldest::<S>()..=S::VERSION {
        let path = dir.join(format!("{}-v{version}.cbor", S::KIND));
        let golden = fs::read(&path).map_err(|e| {
            format!("{}: {e}; for a new version run this test with FERRY_BLESS=1", path.display())
        })?;
        if version == S::VERSION {
            compare(&path, &field_list(&golden)?, &field_list(today.payload())?)?;
        }
        let section = Section::from_parts(S::KIND, "golden", version, false, golden)
            .map_err(|e| e.report())?;
        section
            .load::<S>()
            .map_err(|e| format!("{}: no longer loads: {}", path.display(), e.report()))?;
    }
    Ok(())
}

/// The names of all fields in a payload, with the CBOR type of each, such as `queues[].size: int`.
pub fn field_list(payload: &[u8]) -> Result<BTreeSet<String>, String> {
    let value: Value = ciborium::from_reader(payload).map_err(|e| e.to_string())?;
    let mut fields = BTreeSet::new();
    collect(&value, String::new(), &mut fields);
    Ok(fields)
}

fn collect(value: &Value, path: String, fields: &mut BTreeSet<String>) {
    let kind = match value {
        Value::Map(entries) => {
            for (key, inner) in entries {
                let name = key.as_text().unwrap_or("?");
                let dot = if path.is_empty() { "" } else { "." };
                collect(inner, format!("{path}{dot}{name}"), fields);
            }
            return;
        }
        Value::Array(elements) if !elements.is_empty() => {
            for inner in elements {
                collect(inner, format!("{path}[]"), fields);
            }
            return;
        }
        Value::Array(_) => "empty list",
        Value::Integer(_) => "int",
        Value::Bytes(_) => "bytes",
        Value::Text(_) => "text",
        Value::Bool(_) => "bool",
        Value::Float(_) => "float",
        Value::Null => "null",
        _ => "other",
    };
    fields.insert(format!("{path}: {kind}"));
}

fn compare(path: &Path, golden: &BTreeSet<String>, today: &BTreeSet<String>) -> Result<(), String> {
    let gone: Vec<_> = golden.difference(today).map(String::as_str).collect();
    let new: Vec<_> = today.difference(golden).map(String::as_str).collect();
    if gone.is_empty() && new.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}: the struct changed without a new version; gone: [{}], new: [{}]",
        path.display(),
        gone.join(", "),
        new.join(", ")
    ))
}

/// The first version in the chain of `S`.
fn oldest<S: State>() -> u16 {
    if S::Older::VERSION >= S::VERSION { S::VERSION } else { oldest::<S::Older>() }
}
