//! `query-qmp-schema`: the tables told in a form that programs read.
//!
//! Type names are numbers on purpose: clients must find types through the commands that use them, so
//! that types can be renamed, split and joined freely.

use std::collections::BTreeMap;

use super::{Alternate, Described, Enum, Object, Type, object, union};
use crate::interface::Interface;

union! {
    /// One entity of the schema.
    pub struct SchemaInfo {
        /// Its name: a command's or event's own, or a type's arbitrary one.
        name: String = "name",
        ..
        /// What it is.
        detail: SchemaDetail = "meta-type",
    }
    /// The kinds of entities.
    pub enum SchemaDetail {
        /// A JSON type.
        Builtin(SchemaBuiltin) = "builtin",
        /// A set of strings.
        Enum(SchemaEnum) = "enum",
        /// A list.
        Array(SchemaArray) = "array",
        /// An object.
        Object(SchemaObject) = "object",
        /// One of several types.
        Alternate(SchemaAlternate) = "alternate",
        /// A command.
        Command(SchemaCommand) = "command",
        /// An event.
        Event(SchemaEvent) = "event",
    }
}

object! {
    /// A JSON type.
    pub struct SchemaBuiltin {
        /// Which one.
        json_type: JsonType = "json-type",
    }
}

super::enumeration! {
    /// The JSON types.
    pub enum JsonType {
        /// A string.
        String = "string",
        /// Any number.
        Number = "number",
        /// A number without a fraction.
        Int = "int",
        /// true or false.
        Boolean = "boolean",
        /// null.
        Null = "null",
        /// An object.
        Object = "object",
        /// A list.
        Array = "array",
        /// Anything.
        Value = "value",
    }
}

object! {
    /// A set of strings, told twice: `values` is what older clients read.
    pub struct SchemaEnum {
        /// The values.
        members: Vec<SchemaEnumMember> = "members",
        /// The values, plainly.
        values: Vec<String> = "values",
    }
}

object! {
    /// One value of a set.
    pub struct SchemaEnumMember {
        /// The value.
        name: String = "name",
    }
}

object! {
    /// A list.
    pub struct SchemaArray {
        /// Type of its elements.
        element_type: String = "element-type",
    }
}

object! {
    /// An object.
    pub struct SchemaObject {
        /// Its members.
        members: Vec<SchemaObjectMember> = "members",
        /// The member on which further members depend.
        tag: Option<String> = "tag",
        /// Those further members.
        variants: Option<Vec<SchemaVariant>> = "variants",
    }
}

/// One member of an object. `default` is there, and null, when the member is optional.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SchemaObjectMember {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Written as null when the member is optional.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "null_marker")]
    pub default: Option<()>,
}

impl Described for SchemaObjectMember {
    fn describe() -> Type {
        static OBJECT: Object = Object {
            name: "SchemaObjectMember",
            members: &[
                super::Member { name: "name", ty: String::describe, optional: false },
                super::Member { name: "type", ty: String::describe, optional: false },
                super::Member { name: "default", ty: || Type::Any, optional: true },
            ],
            variants: None,
        };
        Type::Object(&OBJECT)
    }
}

/// `Some(())` is `null` on the wire; `None` is no member at all.
mod null_marker {
    use serde::{Deserialize, Deserializer, Serializer, de::IgnoredAny};

    #[expect(clippy::ref_option, reason = "serde prescribes the signature")]
    pub(super) fn serialize<S: Serializer>(_: &Option<()>, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_unit()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<()>, D::Error> {
        IgnoredAny::deserialize(from).map(|_| Some(()))
    }
}

object! {
    /// Further members for one value of the tag.
    pub struct SchemaVariant {
        /// The value.
        case: String = "case",
        /// An object with the members.
        ty: String = "type",
    }
}

object! {
    /// One of several types.
    pub struct SchemaAlternate {
        /// The choices.
        members: Vec<SchemaAlternateMember> = "members",
    }
}

object! {
    /// One choice.
    pub struct SchemaAlternateMember {
        /// Its type.
        ty: String = "type",
    }
}

object! {
    /// A command.
    pub struct SchemaCommand {
        /// Type of its arguments.
        arg_type: String = "arg-type",
        /// Type of what it returns.
        ret_type: String = "ret-type",
        /// true when it may run out of band; else absent.
        allow_oob: Option<bool> = "allow-oob",
    }
}

object! {
    /// An event.
    pub struct SchemaEvent {
        /// Type of its data.
        arg_type: String = "arg-type",
    }
}

/// Tells every command and event of an endpoint, and all types that they use.
pub fn introspect(interface: &Interface) -> Vec<SchemaInfo> {
    let mut types = Types::default();
    let commands: Vec<_> = interface
        .commands()
        .map(|command| SchemaInfo {
            name: command.name.to_owned(),
            detail: SchemaDetail::Command(SchemaCommand {
                arg_type: types.name((command.arguments)()),
                ret_type: types.name((command.returns)()),
                allow_oob: command.out_of_band.then_some(true),
            }),
        })
        .collect();
    let events: Vec<_> = interface
        .events()
        .map(|event| SchemaInfo {
            name: event.name.to_owned(),
            detail: SchemaDetail::Event(SchemaEvent { arg_type: types.name((event.data)()) }),
        })
        .collect();
    commands.into_iter().chain(events).chain(types.into_entities()).collect()
}

/// The types met so far, each described once.
#[derive(Default)]
struct Types {
    /// Address of the static description → number.
    numbers: BTreeMap<usize, usize>,
    entities: BTreeMap<String, SchemaDetail>,
}

impl Types {
    /// The name of a type, which is described when it is met for the first time.
    fn name(&mut self, ty: Type) -> String {
        match ty {
            Type::Str => self.builtin("str", JsonType::String),
            Type::Bool => self.builtin("bool", JsonType::Boolean),
            Type::Int | Type::U64 | Type::U32 => self.builtin("int", JsonType::Int),
            Type::Number => self.builtin("number", JsonType::Number),
            Type::Null => self.builtin("null", JsonType::Null),
            Type::Any => self.builtin("any", JsonType::Value),
            Type::Array(element) => {
                let element = self.name(element());
                let name = format!("[{element}]");
                let detail = SchemaDetail::Array(SchemaArray { element_type: element });
                self.entities.insert(name.clone(), detail);
                name
            }
            Type::Object(object) => self.numbered(object, Types::object),
            Type::Enum(set) => self.numbered(set, |_, set| enum_detail(set)),
            Type::Alternate(alternate) => self.numbered(alternate, Types::alternate),
        }
    }

    fn builtin(&mut self, name: &str, json_type: JsonType) -> String {
        let detail = SchemaDetail::Builtin(SchemaBuiltin { json_type });
        self.entities.insert(name.to_owned(), detail);
        name.to_owned()
    }

    /// Numbers a type before it describes its members: those may refer back to it.
    fn numbered<T>(
        &mut self,
        description: &'static T,
        describe: impl FnOnce(&mut Types, &'static T) -> SchemaDetail,
    ) -> String {
        let key = std::ptr::from_ref(description).addr();
        if let Some(number) = self.numbers.get(&key) {
            return number.to_string();
        }
        let name = self.numbers.len().to_string();
        self.numbers.insert(key, self.numbers.len());
        let detail = describe(self, description);
        self.entities.insert(name.clone(), detail);
        name
    }

    fn object(&mut self, object: &'static Object) -> SchemaDetail {
        let members = object.members.iter().map(|member| SchemaObjectMember {
            name: member.name.to_owned(),
            ty: self.name((member.ty)()),
            default: member.optional.then_some(()),
        });
        let members = members.collect();
        let variants = object.variants.as_ref().map(|variants| {
            let cases = variants
                .cases
                .iter()
                .map(|(case, ty)| SchemaVariant { case: (*case).to_owned(), ty: self.name(ty()) });
            cases.collect()
        });
        let tag = object.variants.as_ref().map(|variants| variants.tag.to_owned());
        SchemaDetail::Object(SchemaObject { members, tag, variants })
    }

    fn alternate(&mut self, alternate: &'static Alternate) -> SchemaDetail {
        let members =
            alternate.members.iter().map(|ty| SchemaAlternateMember { ty: self.name(ty()) });
        SchemaDetail::Alternate(SchemaAlternate { members: members.collect() })
    }

    fn into_entities(self) -> impl Iterator<Item = SchemaInfo> {
        self.entities.into_iter().map(|(name, detail)| SchemaInfo { name, detail })
    }
}

fn enum_detail(set: &Enum) -> SchemaDetail {
    SchemaDetail::Enum(SchemaEnum {
        members: set
            .values
            .iter()
            .map(|value| SchemaEnumMember { name: (*value).to_owned() })
            .collect(),
        values: set.values.iter().map(|value| (*value).to_owned()).collect(),
    })
}

#[cfg(test)]
#[path = "introspect_tests.rs"]
mod tests;
