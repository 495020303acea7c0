//! Names that stand for a node other than a file: addresses of NBD exports, images with faults, and
//! disks without storage.

use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};
use crate::protocol::nbd::NbdOptions;

/// The options of the node that `name` stands for, as `blockdev-add` takes them: one of
/// [`NbdOptions::from_filename`], `blkdebug:[RULES]:IMAGE` with a file of rules, or `null-co://`.
/// `None` for all other names, which are paths.
///
/// # Errors
/// `InvalidArgument`: it begins like such a name but is none.
pub fn protocol_name(name: &str) -> Option<Result<Value>> {
    if name == "null-co://" {
        return Some(Ok(json!({"driver": "null-co"})));
    }
    match name.strip_prefix("blkdebug:") {
        Some(rest) => Some(blkdebug(rest)),
        None => NbdOptions::from_filename(name).map(|options| nbd(&options?)),
    }
}

fn nbd(options: &NbdOptions) -> Result<Value> {
    let mut options = serde_json::to_value(options).map_err(|error| refuse(&error.to_string()))?;
    options["driver"] = "nbd".into();
    Ok(options)
}

fn blkdebug(rest: &str) -> Result<Value> {
    let Some((config, image)) = rest.split_once(':') else {
        return Err(refuse("blkdebug requires both config file and image path"));
    };
    if image.starts_with("blkdebug:") {
        return Err(refuse("one 'blkdebug:' cannot stand behind another"));
    }
    let image = match protocol_name(image) {
        Some(options) => options?,
        None => json!({"driver": "file", "filename": image.strip_prefix("file:").unwrap_or(image)}),
    };
    let mut options = json!({"driver": "blkdebug", "image": image});
    if !config.is_empty() {
        options["config"] = config.into();
    }
    Ok(options)
}

fn refuse(text: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_with_faults_are_named_as_in_qemu() {
        let options = |name: &str| protocol_name(name).unwrap().unwrap();
        let file = json!({"driver": "file", "filename": "a:b"});
        let image = json!({"driver": "blkdebug", "image": file, "config": "c"});
        assert_eq!(options("blkdebug:c:a:b"), image);
        assert_eq!(options("blkdebug::file:a:b")["image"], file);
        assert_eq!(options("blkdebug::nbd://h/e")["image"]["driver"], "nbd");
        assert_eq!(options("nbd://h/e")["driver"], "nbd");
        assert_eq!(options("null-co://"), json!({"driver": "null-co"}));
        assert!(protocol_name("a:b").is_none() && protocol_name("null-co").is_none());
        for bad in ["blkdebug:x", "blkdebug::blkdebug::x", "blkdebug::nbd:"] {
            assert!(protocol_name(bad).unwrap().is_err(), "{bad}");
        }
    }
}
