//! QMP's arguments on a command line: JSON, or `key=value,...` with dots for members of members.
//!
//! `driver=raw,node-name=d0,file.driver=file,file.filename=/x` and
//! `bitmaps.0=a,bitmaps.1=b` say the same as the JSON with those members. A value is text; what it
//! stands for follows from the description of the type.

use ferry_api::QmpError;
use ferry_api::schema::{Described, Object, Type, validate};
use ferry_block::keyval::{place, split};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Longest list.
const MAX_ELEMENTS: usize = 1024;

/// Reads and checks what `T` describes. `implied` is the key of a first part that has none.
///
/// # Errors
/// What is wrong, as a QMP client would be told.
pub(super) fn parse<T: Described + DeserializeOwned>(
    text: &str,
    implied: &str,
) -> Result<T, QmpError> {
    let value = if text.starts_with('{') {
        serde_json::from_str(text).map_err(QmpError::json_syntax)?
    } else {
        typed(T::describe(), Value::Object(pairs(text, implied)?))
    };
    let Value::Object(members) = &value else { return Err(QmpError::not_an_object()) };
    validate(T::describe(), members)?;
    serde_json::from_value(value)
        .map_err(|error| QmpError::generic(format!("cannot be understood: {error}")))
}

/// Objects of objects of texts.
fn pairs(text: &str, implied: &str) -> Result<Map<String, Value>, QmpError> {
    let mut members = Map::new();
    for (index, part) in split(text).into_iter().enumerate() {
        let (key, value) = match part.split_once('=') {
            Some(pair) => pair,
            None if index == 0 => (implied, part.as_str()),
            None => {
                return Err(QmpError::generic(format!("Expected '=' after parameter '{part}'")));
            }
        };
        place(&mut members, key, value.into())
            .map_err(|error| QmpError::generic(error.to_string()))?;
    }
    Ok(members)
}

/// Makes of texts what `ty` has in their places. What cannot be made stays, for the check to name.
fn typed(ty: Type, value: Value) -> Value {
    match (ty, value) {
        (Type::Object(object), Value::Object(members)) => {
            Value::Object(typed_members(object, members))
        }
        (Type::Array(element), Value::Object(members)) => elements(element(), members),
        (Type::Alternate(choices), value) => {
            let fits = |ty: &Type| matches!(ty, Type::Object(_)) == value.is_object();
            match choices.members.iter().map(|ty| ty()).find(fits) {
                Some(ty) => typed(ty, value),
                None => value,
            }
        }
        (ty, Value::String(text)) => scalar(ty, text),
        (_, value) => value,
    }
}

fn typed_members(object: &Object, mut members: Map<String, Value>) -> Map<String, Value> {
    let chosen = object.variants.as_ref().and_then(|variants| {
        let tag = members.get(variants.tag)?.as_str()?;
        let (_, ty) = variants.cases.iter().find(|(case, _)| *case == tag)?;
        match ty() {
            Type::Object(object) => Some(object),
            _ => None,
        }
    });
    let more = chosen.map(|object| object.members).unwrap_or_default();
    for member in object.members.iter().chain(more) {
        if let Some(value) = members.get_mut(member.name) {
            *value = typed((member.ty)(), value.take());
        }
    }
    members
}

/// A list is written with numbers for names: 0, 1 and so on.
fn elements(ty: Type, mut members: Map<String, Value>) -> Value {
    let count = members.len();
    let complete = (0..count).all(|index| members.contains_key(&index.to_string()));
    if !complete || count > MAX_ELEMENTS {
        return Value::Object(members);
    }
    let values = (0..count).filter_map(|index| members.remove(&index.to_string()));
    values.map(|value| typed(ty, value)).collect()
}

fn scalar(ty: Type, text: String) -> Value {
    let made = match ty {
        Type::Bool => match text.as_str() {
            "on" | "yes" | "true" | "y" => Some(Value::Bool(true)),
            "off" | "no" | "false" | "n" => Some(Value::Bool(false)),
            _ => None,
        },
        Type::Int => text.parse::<i64>().ok().map(Value::from).or_else(|| size(&text)),
        Type::U64 | Type::U32 => size(&text),
        Type::Number => text.parse::<f64>().ok().map(Value::from),
        _ => None,
    };
    made.unwrap_or(Value::String(text))
}

/// A number with an optional letter for the unit.
fn size(text: &str) -> Option<Value> {
    let digits = text.trim_end_matches(|char: char| char.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        "E" => 60,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).map(Value::from)
}

#[cfg(test)]
#[path = "keyval_tests.rs"]
mod tests;
