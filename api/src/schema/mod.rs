//! The shape of every command and event, in one place.
//!
//! Each type that crosses QMP is declared once, with `object!`, `enumeration!` or `union!`. The
//! declaration makes the Rust type with its serde form *and* its [`Type`] description. The tables of
//! commands and events point at descriptions only, so three things come from the same lines and cannot
//! drift apart: what a controller receives, what [`validate`] accepts, and what `query-qmp-schema` and
//! `query-commands` tell a client.

mod define;
mod introspect;
mod validate;

pub(crate) use define::{enumeration, object, union};
pub use introspect::{
    JsonType, SchemaAlternate, SchemaAlternateMember, SchemaArray, SchemaBuiltin, SchemaCommand,
    SchemaDetail, SchemaEnum, SchemaEnumMember, SchemaEvent, SchemaInfo, SchemaObject,
    SchemaObjectMember, SchemaVariant, introspect,
};
pub use validate::validate;

/// Describes a type when it is needed: types may refer to themselves.
pub type TypeFn = fn() -> Type;

/// What a JSON value must look like.
#[derive(Debug, Clone, Copy)]
pub enum Type {
    /// A string.
    Str,
    /// true or false.
    Bool,
    /// A signed 64-bit integer.
    Int,
    /// An unsigned 64-bit integer: sizes, counters.
    U64,
    /// An unsigned 32-bit integer.
    U32,
    /// Any number, with or without a fraction.
    Number,
    /// null, as a choice among others.
    Null,
    /// Anything at all.
    Any,
    /// An object with known members.
    Object(&'static Object),
    /// One of a set of strings.
    Enum(&'static Enum),
    /// A list of one kind of element.
    Array(TypeFn),
    /// A string or an object: told apart by their JSON type.
    Alternate(&'static Alternate),
}

/// An object, perhaps with further members that one of its members (the tag) selects.
#[derive(Debug)]
pub struct Object {
    /// What programmers call it; clients never see type names.
    pub name: &'static str,
    /// Members in the order in which they are checked.
    pub members: &'static [Member],
    /// The members that depend on the tag.
    pub variants: Option<Variants>,
}

/// One member of an object.
#[derive(Debug)]
pub struct Member {
    /// Its name on the wire.
    pub name: &'static str,
    /// Its type.
    pub ty: TypeFn,
    /// Whether it may be left out.
    pub optional: bool,
}

/// Which further members an object has, by the value of its tag.
#[derive(Debug)]
pub struct Variants {
    /// The member that decides; it is one of the object's members.
    pub tag: &'static str,
    /// Tag value and the object whose members then belong to this one, too.
    pub cases: &'static [(&'static str, TypeFn)],
}

/// A set of strings.
#[derive(Debug)]
pub struct Enum {
    /// What programmers call it.
    pub name: &'static str,
    /// The values in their canonical order.
    pub values: &'static [&'static str],
}

/// A value of one of several JSON types.
#[derive(Debug)]
pub struct Alternate {
    /// What error texts call it.
    pub name: &'static str,
    /// The choices.
    pub members: &'static [TypeFn],
}

/// A Rust type that crosses QMP.
pub trait Described {
    /// Whether a member of this type may be left out.
    const OPTIONAL: bool = false;

    /// What it looks like on the wire.
    fn describe() -> Type;

    /// Whether a member with this value is left out when written.
    fn is_absent(&self) -> bool {
        false
    }
}

macro_rules! describe_scalar {
    ($($rust:ty => $ty:ident),*) => {
        $(impl Described for $rust {
            fn describe() -> Type {
                Type::$ty
            }
        })*
    };
}
describe_scalar!(String => Str, bool => Bool, i64 => Int, u64 => U64, u32 => U32, f64 => Number);

impl<T: Described> Described for Option<T> {
    const OPTIONAL: bool = true;

    fn describe() -> Type {
        T::describe()
    }

    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

impl<T: Described> Described for Vec<T> {
    fn describe() -> Type {
        Type::Array(T::describe)
    }
}

impl<T: Described> Described for Box<T> {
    const OPTIONAL: bool = T::OPTIONAL;

    fn describe() -> Type {
        T::describe()
    }

    fn is_absent(&self) -> bool {
        (**self).is_absent()
    }
}

object! {
    /// No members: what commands without arguments take and what most commands return.
    #[derive(Default)]
    pub struct Empty {}
}
