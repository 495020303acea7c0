//! What a qcow2 image says of itself, as QMP's `ImageInfo` and as text.

use std::path::Path;

use ferry_block::Edge;
use ferry_block::format::qcow2::bitmap::load_directory;
use ferry_block::format::qcow2::header::{Compatible, Compression, Header, Incompatible, Version};
use ferry_block::format::qcow2::snapshot::load_snapshots;
use serde_json::{Map, Value, json};

use crate::failure::Result;
use crate::size;

/// Adds what the image in `file` says to the members that all images have.
pub(crate) async fn describe(info: &mut Map<String, Value>, file: &Edge, name: &str) -> Result<()> {
    let header = Header::load(file).await?;
    info.insert("virtual-size".into(), header.size.into());
    info.insert("cluster-size".into(), header.geometry.cluster_size().into());
    let dirty = header.incompatible.contains(Incompatible::DIRTY);
    info.insert("dirty-flag".into(), dirty.into());
    if let Some(backing) = &header.backing_file {
        info.insert("backing-filename".into(), backing.clone().into());
        info.insert("full-backing-filename".into(), beside(name, backing).into());
    }
    if let Some(format) = &header.extensions.backing_format {
        info.insert("backing-filename-format".into(), format.clone().into());
    }
    let snapshots = load_snapshots(file, &header).await?.snapshots;
    if !snapshots.is_empty() {
        let list: Vec<Value> = snapshots
            .iter()
            .map(|snapshot| {
                let mut value = json!({
                    "id": snapshot.id,
                    "name": snapshot.name,
                    "vm-state-size": snapshot.vm_state_size,
                    "date-sec": snapshot.date_sec,
                    "date-nsec": snapshot.date_nsec,
                    "vm-clock-sec": snapshot.vm_clock_nsec / 1_000_000_000,
                    "vm-clock-nsec": snapshot.vm_clock_nsec % 1_000_000_000,
                });
                if let Some(icount) = snapshot.icount.filter(|icount| *icount != u64::MAX) {
                    value["icount"] = icount.into();
                }
                value
            })
            .collect();
        info.insert("snapshots".into(), list.into());
    }
    let specific = json!({"type": "qcow2", "data": specific(file, &header).await?});
    info.insert("format-specific".into(), specific);
    Ok(())
}

/// QMP's `ImageInfoSpecificQCow2`.
async fn specific(file: &Edge, header: &Header) -> Result<Value> {
    let compression = match header.compression {
        Compression::Zlib => "zlib",
        Compression::Zstd => "zstd",
    };
    let mut data = json!({
        "compression-type": compression,
        "refcount-bits": header.geometry.refcount_bits(),
    });
    if header.geometry.version() == Version::V2 {
        data["compat"] = "0.10".into();
        return Ok(data);
    }
    data["compat"] = "1.1".into();
    data["lazy-refcounts"] = header.compatible.contains(Compatible::LAZY_REFCOUNTS).into();
    data["corrupt"] = header.incompatible.contains(Incompatible::CORRUPT).into();
    data["extended-l2"] = header.geometry.has_extended_l2().into();
    if let Some(name) = &header.extensions.data_file {
        data["data-file"] = name.clone().into();
    }
    if header.geometry.has_external_data() {
        data["data-file-raw"] = header.is_data_file_raw().into();
    }
    if let Some(bitmaps) = header.bitmaps() {
        let mut list = Vec::new();
        for bitmap in load_directory(file, bitmaps, header.geometry).await? {
            let flags = [("in-use", bitmap.in_use), ("auto", bitmap.auto)];
            let flags: Vec<_> =
                flags.iter().filter(|(_, set)| *set).map(|(flag, _)| *flag).collect();
            let granularity = 1_u64 << bitmap.granularity_bits;
            list.push(json!({"name": bitmap.name, "granularity": granularity, "flags": flags}));
        }
        data["bitmaps"] = list.into();
    }
    Ok(data)
}

/// A name that an image gives, seen from where we are.
pub(crate) fn beside(image: &str, name: &str) -> String {
    let is_address = name.split_once(':').is_some_and(|(scheme, _)| !scheme.contains('/'));
    match Path::new(image).parent() {
        Some(folder) if !is_address && !folder.as_os_str().is_empty() => {
            folder.join(name).to_string_lossy().into_owned()
        }
        _ => name.to_owned(),
    }
}

/// The lines of `info` for people that follow those that all images have.
pub(crate) fn human(info: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(backing) = info["backing-filename"].as_str() {
        let full = info["full-backing-filename"].as_str().unwrap_or(backing);
        let actual =
            if full == backing { String::new() } else { format!(" (actual path: {full})") };
        lines.push(format!("backing file: {backing}{actual}"));
    }
    if let Some(format) = info["backing-filename-format"].as_str() {
        lines.push(format!("backing file format: {format}"));
    }
    if let Some(snapshots) = info["snapshots"].as_array() {
        lines.push("Snapshot list:".to_owned());
        lines.extend(snapshot_rows(snapshots));
    }
    if let Some(data) = info["format-specific"]["data"].as_object() {
        lines.push("Format specific information:".to_owned());
        // The order of QEMU.
        const KEYS: [&str; 9] = [
            "compat",
            "compression-type",
            "lazy-refcounts",
            "bitmaps",
            "refcount-bits",
            "data-file",
            "data-file-raw",
            "corrupt",
            "extended-l2",
        ];
        for key in KEYS {
            if let Some(value) = data.get(key) {
                tree(&mut lines, 4, &key.replace('-', " "), value);
            }
        }
    }
    lines
}

/// A value with its name, and what is in it one step further in.
fn tree(lines: &mut Vec<String>, indent: usize, name: &str, value: &Value) {
    let space = " ".repeat(indent);
    match value {
        Value::Array(list) => {
            lines.push(format!("{space}{name}:"));
            for (index, value) in list.iter().enumerate() {
                tree(lines, indent + 4, &format!("[{index}]"), value);
            }
        }
        Value::Object(map) => {
            lines.push(format!("{space}{name}:"));
            for key in ["flags", "name", "granularity"] {
                if let Some(value) = map.get(key) {
                    tree(lines, indent + 4, key, value);
                }
            }
        }
        Value::String(text) => lines.push(format!("{space}{name}: {text}")),
        other => lines.push(format!("{space}{name}: {other}")),
    }
}

/// The table of snapshots with its heading.
pub(crate) fn snapshot_rows(snapshots: &[Value]) -> Vec<String> {
    let mut rows = vec![format!(
        "{:<10}{:<17}{:>8}{:>20}{:>13}{:>11}",
        "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT"
    )];
    for snapshot in snapshots {
        let text = |key: &str| snapshot[key].as_str().unwrap_or_default();
        let number = |key: &str| snapshot[key].as_u64().unwrap_or(0);
        let clock = number("vm-clock-sec");
        let clock = format!(
            "{:02}:{:02}:{:02}.{:03}",
            clock / 3600,
            clock / 60 % 60,
            clock % 60,
            number("vm-clock-nsec") / 1_000_000
        );
        let icount = snapshot["icount"].as_u64().map(|icount| icount.to_string());
        rows.push(format!(
            "{:<9} {:<16} {:>8}{:>20}{clock:>13}{:>11}",
            text("id"),
            text("name"),
            size::human(number("vm-state-size")),
            date(number("date-sec")),
            icount.unwrap_or_default()
        ));
    }
    rows
}

/// A moment in UTC, `2026-11-20 14:02:38`: by the civil calendar, in years of 365.2425 days.
fn date(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Eras of 400 years that begin with a 1st of March, so that the leap day ends a year.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let day = day - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_in_the_civil_calendar() {
        let cases = [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_795_183_358, "2026-11-20 14:02:38"),
            (4_107_542_399, "2100-02-28 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ];
        for (seconds, text) in cases {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn names_are_taken_from_where_the_image_is() {
        assert_eq!(beside("a.img", "b"), "b");
        assert_eq!(beside("dir/a.img", "b"), "dir/b");
        assert_eq!(beside("dir/a.img", "/b"), "/b");
        assert_eq!(beside("dir/a.img", "nbd://h/x"), "nbd://h/x");
    }
}
