//! What a person writes to name an image: a path, an NBD address, or options.

use ferry_block::{BlockdevOptions, json_name, protocol_name};
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::keyval;

/// A place where the bytes of an image are, or a whole image described by options.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Location {
    /// A file of the host, by path.
    File(String),
    /// Options of a protocol: the format is still to be found out.
    Protocol(Value),
    /// Options of everything.
    Image(Value),
}

impl Location {
    /// Reads a name as `qemu-img` does: `json:{...}`, `file:path`, a path, or what
    /// [`protocol_name`] knows.
    pub(crate) fn parse(name: &str) -> Result<Location> {
        if let Some(options) = json_name(name) {
            return Ok(match Location::described(options?) {
                Location::Image(options) if is_protocol_node(&options) => {
                    Location::Protocol(options)
                }
                other => other,
            });
        }
        if let Some(path) = name.strip_prefix("file:") {
            return Ok(Location::File(path.to_owned()));
        }
        if let Some(options) = protocol_name(name) {
            return Ok(Location::Protocol(options?));
        }
        match name.split_once(':') {
            Some((protocol, _)) if is_protocol(protocol) => {
                Err(Failure::new(format!("Unknown protocol '{protocol}'")))
            }
            _ => Ok(Location::File(name.to_owned())),
        }
    }

    /// `--image-opts`.
    pub(crate) fn options(text: &str) -> Result<Location> {
        Ok(Location::described(keyval::object(text)?))
    }

    /// What options describe. Without a driver the format is to be found out.
    fn described(mut options: Value) -> Location {
        name_drivers(&mut options);
        if options.get("driver").is_none() && options["file"].is_object() {
            return Location::Protocol(options["file"].take());
        }
        Location::Image(options)
    }

    /// The options of the protocol node, if there is no format yet.
    pub(crate) fn protocol(&self) -> Option<Value> {
        match self {
            Location::File(path) => Some(json!({"driver": "file", "filename": path})),
            Location::Protocol(options) => Some(options.clone()),
            Location::Image(_) => None,
        }
    }
}

/// Whoever names a file and no driver means the driver of files.
fn name_drivers(options: &mut Value) {
    let Value::Object(members) = options else { return };
    members.values_mut().for_each(name_drivers);
    if members.get("filename").is_some_and(Value::is_string) {
        members.entry("driver").or_insert_with(|| "file".into());
    }
}

/// Whether the node that is described is one without a format.
fn is_protocol_node(options: &Value) -> bool {
    let driver = options.get("driver").and_then(Value::as_str);
    matches!(driver, Some("file" | "host_device" | "nbd" | "null-co"))
}

/// Options in JSON as the block layer takes them.
pub(crate) fn blockdev(options: Value) -> Result<BlockdevOptions> {
    serde_json::from_value(options).map_err(|error| Failure::new(error.to_string()))
}

/// Whether what stands before a colon could be a protocol: a path has a slash before it.
fn is_protocol(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_qemu_img_reads_them() {
        let cases = [
            ("a.img", Location::File("a.img".into())),
            ("./a:b", Location::File("./a:b".into())),
            ("file:a:b", Location::File("a:b".into())),
        ];
        for (name, location) in cases {
            assert_eq!(Location::parse(name).unwrap(), location, "{name}");
        }
        for name in ["rbd:a/b", "nbd+unix:///x", "json:{"] {
            assert!(Location::parse(name).is_err(), "{name}");
        }
        let nbd =
            Location::parse("nbds+unix:///e?socket=s&tls-creds=c").unwrap().protocol().unwrap();
        let parts = ["driver", "export", "tls-creds"].map(|key| nbd[key].as_str().unwrap());
        assert_eq!(parts, ["nbd", "e", "c"]);
        let null = Location::parse("null-co://").unwrap();
        assert_eq!(null, Location::Protocol(json!({"driver": "null-co"})));
        let raw = Location::parse(r#"json:{"driver": "raw", "file": "f"}"#).unwrap();
        assert!(matches!(raw, Location::Image(_)));
        let file = Location::Protocol(json!({"driver": "file", "filename": "f"}));
        let nested = Location::parse("json:{'file.filename': 'f'}").unwrap();
        assert_eq!(nested, file);
        assert_eq!(Location::parse("json:{'filename': 'f'}").unwrap(), file);
        assert_eq!(Location::options("file.filename=f").unwrap(), file);
        let named = Location::options("driver=qcow2,file.filename=f").unwrap();
        let whole = json!({"driver": "qcow2", "file": {"driver": "file", "filename": "f"}});
        assert_eq!(named, Location::Image(whole));
    }
}
