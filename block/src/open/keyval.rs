//! Options as texts: `key=value,...`, and the dots in keys that stand for members of members.
//!
//! `file.driver=file,file.filename=/x` and `{"file": {"driver": "file", "filename": "/x"}}` say the
//! same. A comma inside a value is written twice. Of a member that is said twice the last one counts.

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

/// Deepest nesting of members.
const MAX_DEPTH: usize = 128;

/// The parts between single commas, in which double ones have become one.
pub fn split(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        if char != ',' || chars.next_if_eq(&',').is_some() {
            part.push(char);
        } else {
            parts.push(std::mem::take(&mut part));
        }
    }
    parts.push(part);
    parts
}

/// Puts a value where the dots in `key` say; the members of an object are placed one by one, beside
/// the ones that are there.
///
/// # Errors
/// `InvalidArgument`: a name is empty, members are nested too deeply, or a member is to be an object
/// and a plain value.
pub fn place(members: &mut Map<String, Value>, key: &str, value: Value) -> Result<()> {
    place_at(members, key, value, MAX_DEPTH)
}

fn place_at(
    mut members: &mut Map<String, Value>,
    key: &str,
    value: Value,
    mut depth: usize,
) -> Result<()> {
    let refuse = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
    let inconsistent = |name: &str| refuse(format!("Parameters '{name}.*' used inconsistently"));
    let mut names = names(key).peekable();
    while let Some(name) = names.next() {
        if name.is_empty() || depth == 0 {
            return refuse(format!("Invalid parameter '{key}'"));
        }
        depth -= 1;
        if names.peek().is_none() && !value.is_object() {
            return match members.insert(name.to_owned(), value) {
                Some(Value::Object(_)) => inconsistent(name),
                _ => Ok(()),
            };
        }
        let below = members.entry(name).or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(below) = below else { return inconsistent(name) };
        members = below;
    }
    if let Value::Object(value) = value {
        for (key, value) in value {
            place_at(members, &key, value, depth)?;
        }
    }
    Ok(())
}

/// The names between dots. One that begins with `__` is the own of somebody, whose domain comes first with the
/// dots that it has: `__org.example_name`.
fn names(key: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(key);
    std::iter::from_fn(move || {
        let key = rest.take()?;
        let domain = key.strip_prefix("__").and_then(|own| own.find('_')).map_or(0, |len| len + 2);
        let Some(dot) = key[domain..].find('.') else { return Some(key) };
        let (name, below) = key.split_at(domain + dot);
        rest = Some(&below[1..]);
        Some(name)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn placed(pairs: &[(&str, Value)]) -> Result<Value> {
        let mut members = Map::new();
        for (key, value) in pairs {
            place(&mut members, key, value.clone())?;
        }
        Ok(Value::Object(members))
    }

    #[test]
    fn lists_are_split_at_single_commas() {
        assert_eq!(split("a=1,b=x,,y,"), ["a=1", "b=x,y", ""]);
    }

    #[test]
    fn members_go_where_dots_say_and_the_last_one_counts() {
        let pairs = [
            ("a.b", json!(1)),
            ("a", json!({"c.d": 2, "e": null})),
            ("a.b", json!(3)),
            ("f", json!("x")),
            ("f", json!("y")),
        ];
        let expected = json!({"a": {"b": 3, "c": {"d": 2}, "e": null}, "f": "y"});
        assert_eq!(placed(&pairs).unwrap(), expected);
    }

    #[test]
    fn names_of_others_have_their_domain_with_its_dots() {
        let pairs =
            [("a.__org.b_c", json!(1)), ("__org.b-e.de_f.g", json!(2)), ("__h.i", json!(3))];
        let expected = json!({"a": {"__org.b_c": 1}, "__org.b-e.de_f": {"g": 2}, "__h": {"i": 3}});
        assert_eq!(placed(&pairs).unwrap(), expected);
        assert!(placed(&[("__a_b..c", json!(1))]).is_err());
    }

    #[test]
    fn what_cannot_be_placed_is_refused() {
        for pairs in [
            [("a", json!(1)), ("a.b", json!(2))],
            [("a.b", json!(1)), ("a", json!(2))],
            [("a", json!({"b": 1})), ("a.b.c", json!(2))],
        ] {
            let error = placed(&pairs).unwrap_err();
            assert!(error.to_string().contains("used inconsistently"), "{pairs:?}: {error}");
        }
        let deep = ["a"; MAX_DEPTH].join(".");
        assert!(placed(&[(&deep, json!(1))]).is_ok());
        for (key, value) in [("a..b", json!(1)), ("", json!(1)), (&deep, json!({"b": 1}))] {
            let error = placed(&[(key, value)]).unwrap_err();
            assert!(error.to_string().contains("Invalid parameter"), "{key}: {error}");
        }
    }
}
