//! Lists of `key=value`, as `-o`, `--image-opts` and `--object` take them.

use ferry_block::keyval::{place, split};
use serde_json::{Map, Value};

use crate::failure::{Failure, Result};
use crate::size;

/// The pairs of a list, in order. A comma in a value is written twice; a key without a value is
/// on, and `noKEY` without a value is left to whoever knows the key.
pub(crate) fn pairs(text: &str) -> Vec<(String, String)> {
    let pair = |part: String| match part.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (part, "on".to_owned()),
    };
    split(text).into_iter().filter(|part| !part.is_empty()).map(pair).collect()
}

/// `on` and `off` with their synonyms.
pub(crate) fn boolean(key: &str, value: &str) -> Result<bool> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(Failure::new(format!("Parameter '{key}' expects 'on' or 'off'"))),
    }
}

/// Keys whose values are text even when they look like numbers or switches.
const TEXT: [&str; 15] = [
    "driver",
    "filename",
    "node-name",
    "host",
    "port",
    "path",
    "export",
    "tls-creds",
    "tls-hostname",
    "id",
    "dir",
    "discard",
    "detect-zeroes",
    "locking",
    "throttle-group",
];

/// `driver=qcow2,file.filename=x` as the JSON object that QMP would be given.
pub(crate) fn object(text: &str) -> Result<Value> {
    let mut members = Map::new();
    for (key, value) in pairs(text) {
        let name = key.rsplit('.').next().unwrap_or_default();
        place(&mut members, &key, scalar(name, &value))?;
    }
    Ok(Value::Object(members))
}

fn scalar(name: &str, value: &str) -> Value {
    if TEXT.contains(&name) {
        return Value::from(value);
    }
    match value {
        "on" | "true" => Value::from(true),
        "off" | "false" => Value::from(false),
        _ if value.starts_with(|first: char| first.is_ascii_digit()) => {
            size::parse(value).map_or_else(|_| Value::from(value), Value::from)
        }
        _ => Value::from(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_split_at_single_commas() {
        let expected = [("a", "1"), ("b", "x,y"), ("c", "on"), ("d", "p=q")];
        let expected: Vec<_> =
            expected.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        assert_eq!(pairs("a=1,b=x,,y,c,d=p=q"), expected);
        assert!(pairs("").is_empty());
    }

    #[test]
    fn dots_make_objects() {
        let text = "driver=raw,offset=512,size=64k,file.driver=file,file.filename=12,read-only=on";
        let expected = serde_json::json!({
            "driver": "raw", "offset": 512, "size": 65536, "read-only": true,
            "file": {"driver": "file", "filename": "12"},
        });
        assert_eq!(object(text).unwrap(), expected);
        assert!(object("file=a,file.driver=b").is_err());
        assert!(boolean("k", "maybe").is_err() && boolean("k", "on").unwrap());
    }
}
