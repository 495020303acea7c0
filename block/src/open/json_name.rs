//! Names that are options: `json:{...}`, as a backing file, or on a command line.

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

use super::keyval::place;

/// The options of a name that starts with `json:`; `None` for all other names.
///
/// As in QEMU, strings may stand between single quotation marks, which spares their escaping in a
/// shell, and `"file.filename"` is the member `filename` of the member `file`.
///
/// # Errors
/// `InvalidArgument`: it is not a JSON object, or members contradict each other.
pub fn json_name(name: &str) -> Option<Result<Value>> {
    name.strip_prefix("json:").map(parse)
}

fn parse(text: &str) -> Result<Value> {
    let refuse = |why: String| {
        let context = format!("Could not parse the JSON options: {why}");
        Error::new(ErrorKind::InvalidArgument, context)
    };
    let members: Map<String, Value> =
        serde_json::from_str(&plain_json(text)).map_err(|error| refuse(error.to_string()))?;
    let mut root = Map::new();
    for (key, value) in members {
        place(&mut root, &key, value).map_err(|error| refuse(error.to_string()))?;
    }
    Ok(Value::Object(root))
}

/// The same with double quotation marks around all strings.
fn plain_json(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (None, '\'' | '"') => {
                quote = Some(char);
                plain.push('"');
            }
            (Some(open), _) if char == open => {
                quote = None;
                plain.push('"');
            }
            (Some(_), '"') => plain.push_str("\\\""),
            (Some(_), '\\') => match chars.next() {
                Some('\'') => plain.push('\''),
                Some(escaped) => plain.extend(['\\', escaped]),
                None => plain.push('\\'),
            },
            _ => plain.push(char),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_is_read_as_qemu_reads_it() {
        let wanted = json!({"driver": "qcow2", "file": {"driver": "file", "filename": "a'b\"c"}});
        for text in [
            r#"{"driver":"qcow2","file":{"driver":"file","filename":"a'b\"c"}}"#,
            r#"{'driver':'qcow2','file':{'driver':'file','filename':'a\'b"c'}}"#,
            r#"{"driver": "qcow2", 'file.driver': 'file', "file.filename": "a'b\"c"}"#,
        ] {
            assert_eq!(json_name(&format!("json:{text}")).unwrap().unwrap(), wanted, "{text}");
        }
        assert!(json_name("image.qcow2").is_none());
        for bad in ["", "{", "[]", "{'a':1", r"{'a\", "{'file':'x','file.driver':'y'}"] {
            let error = json_name(&format!("json:{bad}")).unwrap().unwrap_err();
            assert!(error.to_string().contains("the JSON options"), "{bad}: {error}");
        }
    }
}
