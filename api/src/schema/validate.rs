//! Checks a JSON value against a description, before anything acts on it.
//!
//! Members are visited in the order of the description and the first fault is reported; surplus
//! members come last. Paths read `cache.direct` and `capabilities[0].state`. Enumerations, 32-bit
//! numbers and alternates name only the last part of the path: that is what clients have always seen.

use serde_json::{Map, Value};

use super::{Alternate, Enum, Object, Type};
use crate::error::QmpError;

/// Checks `arguments` against what a command takes.
///
/// # Errors
/// The error that the client shall get: which argument is missing, surplus or wrong.
pub fn validate(ty: Type, arguments: &Map<String, Value>) -> Result<(), QmpError> {
    match ty {
        Type::Object(object) => check_object(object, arguments, &Path::Root),
        // Only objects can be a command's arguments; the table is ours, so this is our own mistake.
        _ => Err(QmpError::generic("the command's arguments are not described as an object")),
    }
}

/// Where in the arguments we are.
enum Path<'a> {
    Root,
    Member(&'a Path<'a>, &'a str),
    Element(&'a Path<'a>, usize),
}

impl Path<'_> {
    /// The whole path: `capabilities[0].state`.
    fn full(&self) -> String {
        match self {
            Path::Root => String::new(),
            Path::Member(Path::Root, name) => (*name).to_owned(),
            Path::Member(parent, name) => format!("{}.{name}", parent.full()),
            Path::Element(parent, index) => format!("{}[{index}]", parent.full()),
        }
    }

    /// The last part; elements of a list have no name of their own.
    fn last(&self) -> &str {
        match self {
            Path::Root | Path::Element(..) => "null",
            Path::Member(_, name) => name,
        }
    }
}

fn check(ty: Type, value: &Value, at: &Path<'_>) -> Result<(), QmpError> {
    let is = |ok: bool, expected: &str| {
        if ok { Ok(()) } else { Err(QmpError::argument_type(&at.full(), expected)) }
    };
    match ty {
        Type::Any => Ok(()),
        Type::Null => is(value.is_null(), "null"),
        Type::Str => is(value.is_string(), "string"),
        Type::Bool => is(value.is_boolean(), "boolean"),
        Type::Int => is(value.is_i64(), "integer"),
        Type::Number => is(value.is_number(), "number"),
        Type::U64 if value.is_u64() => Ok(()),
        Type::U64 => Err(QmpError::argument_value(&at.full(), "uint64")),
        Type::U32 => check_u32(value, at),
        Type::Object(object) => match value {
            Value::Object(members) => check_object(object, members, at),
            _ => is(false, "object"),
        },
        Type::Enum(set) => check_enum(set, value, at),
        Type::Array(element) => match value {
            Value::Array(list) => list
                .iter()
                .enumerate()
                .try_for_each(|(i, v)| check(element(), v, &Path::Element(at, i))),
            _ => is(false, "array"),
        },
        Type::Alternate(alternate) => check_alternate(alternate, value, at),
    }
}

fn check_u32(value: &Value, at: &Path<'_>) -> Result<(), QmpError> {
    if !value.is_u64() && !value.is_i64() {
        return Err(QmpError::argument_value(&at.full(), "uint64"));
    }
    match value.as_u64().map(u32::try_from) {
        Some(Ok(_)) => Ok(()),
        _ => Err(QmpError::argument_value(at.last(), "uint32_t")),
    }
}

fn check_enum(set: &Enum, value: &Value, at: &Path<'_>) -> Result<(), QmpError> {
    let Value::String(text) = value else {
        return Err(QmpError::argument_type(&at.full(), "string"));
    };
    if set.values.contains(&text.as_str()) {
        Ok(())
    } else {
        Err(QmpError::unknown_value(at.last(), text))
    }
}

fn check_alternate(alternate: &Alternate, value: &Value, at: &Path<'_>) -> Result<(), QmpError> {
    let fits = |ty: &Type| match ty {
        Type::Str | Type::Enum(_) => value.is_string(),
        Type::Object(_) => value.is_object(),
        Type::Array(_) => value.is_array(),
        Type::Bool => value.is_boolean(),
        Type::Int | Type::U64 | Type::U32 | Type::Number => value.is_number(),
        Type::Null => value.is_null(),
        Type::Alternate(_) | Type::Any => false,
    };
    match alternate.members.iter().map(|member| member()).find(fits) {
        Some(ty) => check(ty, value, at),
        None => Err(QmpError::argument_type(at.last(), alternate.name)),
    }
}

fn check_object(
    object: &Object,
    members: &Map<String, Value>,
    at: &Path<'_>,
) -> Result<(), QmpError> {
    check_members(object, members, at)?;
    let chosen = variant(object, members);
    if let Some(variant) = chosen {
        check_members(variant, members, at)?;
    }
    let known = |name: &str| {
        let has = |o: &Object| o.members.iter().any(|m| m.name == name);
        has(object) || chosen.is_some_and(has)
    };
    match members.keys().find(|name| !known(name)) {
        None => Ok(()),
        Some(name) => Err(QmpError::unexpected_argument(&Path::Member(at, name).full())),
    }
}

fn check_members(
    object: &Object,
    members: &Map<String, Value>,
    at: &Path<'_>,
) -> Result<(), QmpError> {
    for member in object.members {
        let at = Path::Member(at, member.name);
        match members.get(member.name) {
            Some(value) => check((member.ty)(), value, &at)?,
            None if member.optional => {}
            None => return Err(QmpError::missing_argument(&at.full())),
        }
    }
    Ok(())
}

/// The further members that the tag selects. The tag itself has been checked by now.
fn variant(object: &Object, members: &Map<String, Value>) -> Option<&'static Object> {
    let variants = object.variants.as_ref()?;
    let tag = members.get(variants.tag)?.as_str()?;
    let (_, ty) = variants.cases.iter().find(|(case, _)| *case == tag)?;
    match ty() {
        Type::Object(object) => Some(object),
        _ => None,
    }
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
