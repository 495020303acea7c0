//! The three macros that declare a type once, for Rust, for serde and for the schema.

/// Declares an object.
///
/// Each field is `field: Type = "wire-name"`. An `Option` is an optional member and is not written
/// when it is `None`.
macro_rules! object {
    (
        $(#[$attr:meta])*
        pub struct $name:ident {
            $( $(#[$field_attr:meta])* $field:ident: $ty:ty = $wire:literal, )*
        }
    ) => {
        $(#[$attr])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $name {
            $(
                $(#[$field_attr])*
                #[serde(rename = $wire, skip_serializing_if = "crate::schema::Described::is_absent")]
                pub $field: $ty,
            )*
        }

        impl crate::schema::Described for $name {
            fn describe() -> crate::schema::Type {
                static OBJECT: crate::schema::Object = crate::schema::Object {
                    name: stringify!($name),
                    members: &[$( crate::schema::Member {
                        name: $wire,
                        ty: <$ty as crate::schema::Described>::describe,
                        optional: <$ty as crate::schema::Described>::OPTIONAL,
                    }, )*],
                    variants: None,
                };
                crate::schema::Type::Object(&OBJECT)
            }
        }
    };
}

/// Declares a set of strings: each value is `Variant = "wire-value"`.
macro_rules! enumeration {
    (
        $(#[$attr:meta])*
        pub enum $name:ident {
            $( $(#[$value_attr:meta])* $value:ident = $wire:literal, )*
        }
    ) => {
        $(#[$attr])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $( $(#[$value_attr])* #[serde(rename = $wire)] $value, )*
        }

        impl $name {
            /// Every value, in the order of the schema.
            pub const ALL: &'static [$name] = &[$( $name::$value, )*];

            /// The value as it is written on the wire.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $( $name::$value => $wire, )*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl crate::schema::Described for $name {
            fn describe() -> crate::schema::Type {
                static ENUM: crate::schema::Enum = crate::schema::Enum {
                    name: stringify!($name),
                    values: &[$( $wire, )*],
                };
                crate::schema::Type::Enum(&ENUM)
            }
        }
    };
}

/// Declares an object some of whose members depend on the value of a tag member.
///
/// The struct holds the members that are always there and, after `..`, a field for the enum, whose
/// variants hold the rest: `Variant(Members) = "tag-value"`. That field is "named" by the tag.
macro_rules! union {
    (
        $(#[$attr:meta])*
        pub struct $name:ident {
            $( $(#[$field_attr:meta])* $field:ident: $ty:ty = $wire:literal, )*
            ..
            $(#[$rest_attr:meta])* $rest:ident: $rest_ty:ty = $tag:literal,
        }
        $(#[$cases_attr:meta])*
        pub enum $cases:ident {
            $( $(#[$case_attr:meta])* $case:ident($case_ty:ty) = $case_wire:literal, )*
        }
    ) => {
        $(#[$attr])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $name {
            $(
                $(#[$field_attr])*
                #[serde(rename = $wire, skip_serializing_if = "crate::schema::Described::is_absent")]
                pub $field: $ty,
            )*
            $(#[$rest_attr])*
            #[serde(flatten)]
            pub $rest: $rest_ty,
        }

        $(#[$cases_attr])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(tag = $tag)]
        pub enum $cases {
            $( $(#[$case_attr])* #[serde(rename = $case_wire)] $case($case_ty), )*
        }

        impl $cases {
            /// The value of the tag.
            pub const fn as_str(&self) -> &'static str {
                match self {
                    $( $cases::$case(_) => $case_wire, )*
                }
            }
        }

        impl crate::schema::Described for $name {
            fn describe() -> crate::schema::Type {
                static TAG: crate::schema::Enum = crate::schema::Enum {
                    name: stringify!($cases),
                    values: &[$( $case_wire, )*],
                };
                static OBJECT: crate::schema::Object = crate::schema::Object {
                    name: stringify!($name),
                    members: &[
                        crate::schema::Member {
                            name: $tag,
                            ty: || crate::schema::Type::Enum(&TAG),
                            optional: false,
                        },
                        $( crate::schema::Member {
                            name: $wire,
                            ty: <$ty as crate::schema::Described>::describe,
                            optional: <$ty as crate::schema::Described>::OPTIONAL,
                        }, )*
                    ],
                    variants: Some(crate::schema::Variants {
                        tag: $tag,
                        cases: &[$( ($case_wire, <$case_ty as crate::schema::Described>::describe), )*],
                    }),
                };
                crate::schema::Type::Object(&OBJECT)
            }
        }
    };
}

pub(crate) use {enumeration, object, union};
