use serde_json::json;

use self::types::Outer;
use super::*;
use crate::{
    command::BlockdevOptions,
    schema::{Described, Empty, Type},
};

/// Types for these tests only.
#[allow(unreachable_pub, dead_code, reason = "the macros declare public types")]
mod types {
    use crate::schema::{enumeration, object};

    enumeration! {
        pub enum Colour {
            Red = "red",
        }
    }

    object! {
        pub struct Inner {
            flag: bool = "flag",
            colours: Option<Vec<Colour>> = "colours",
            small: Option<Vec<u32>> = "small",
        }
    }

    object! {
        pub struct Outer {
            first: String = "first",
            inner: Option<Inner> = "inner",
            many: Option<Vec<Inner>> = "many",
            size: Option<u64> = "size",
            number: Option<f64> = "number",
        }
    }
}

/// The fault of these arguments, or "" when there is none.
fn fault_in<T: Described>(arguments: serde_json::Value) -> String {
    let Value::Object(arguments) = arguments else { panic!("not an object") };
    validate(T::describe(), &arguments).err().map(|error| error.desc).unwrap_or_default()
}

fn fault(arguments: serde_json::Value) -> String {
    fault_in::<Outer>(arguments)
}

#[test]
fn right_arguments_pass() {
    assert_eq!(fault(json!({"first": ""})), "");
    let all = json!({
        "first": "x", "inner": {"flag": true, "colours": ["red"], "small": [0, 4294967295_u64]},
        "many": [{"flag": false}], "size": u64::MAX, "number": 1,
    });
    assert_eq!(fault(all), "");
    assert_eq!(fault_in::<Empty>(json!({})), "");
}

#[test]
fn the_first_fault_in_the_order_of_the_description_is_named() {
    let wrong = json!({"size": "x", "number": "x", "surplus": 1});
    assert_eq!(fault(wrong), "Parameter 'first' is missing");
    let wrong = json!({"first": "", "size": "x", "number": "x", "surplus": 1});
    assert_eq!(fault(wrong), "Parameter 'size' expects uint64");
    assert_eq!(fault(json!({"first": "", "surplus": 1})), "Parameter 'surplus' is unexpected");
}

#[test]
fn paths_lead_to_the_fault() {
    let inner = |value| fault(json!({"first": "", "inner": value}));
    assert_eq!(inner(json!({})), "Parameter 'inner.flag' is missing");
    assert_eq!(inner(json!([])), "Invalid parameter type for 'inner', expected: object");
    assert_eq!(inner(json!({"flag": true, "x": 1})), "Parameter 'inner.x' is unexpected");
    let many = |value| fault(json!({"first": "", "many": [{"flag": true}, value]}));
    let text = "Invalid parameter type for 'many[1].flag', expected: boolean";
    assert_eq!(many(json!({"flag": 1})), text);
    assert_eq!(many(json!(1)), "Invalid parameter type for 'many[1]', expected: object");
}

#[test]
fn enumerations_and_small_numbers_name_only_the_member() {
    let inner =
        |name: &str, value| fault(json!({"first": "", "inner": {"flag": true, name: value}}));
    assert_eq!(inner("colours", json!(["blue"])), "Parameter 'null' does not accept value 'blue'");
    let text = "Invalid parameter type for 'inner.colours[0]', expected: string";
    assert_eq!(inner("colours", json!([1])), text);
    assert_eq!(inner("small", json!([1_u64 << 32])), "Parameter 'null' expects uint32_t");
    assert_eq!(inner("small", json!([-1])), "Parameter 'null' expects uint32_t");
    assert_eq!(inner("small", json!(["1"])), "Parameter 'inner.small[0]' expects uint64");
}

#[test]
fn negative_sizes_do_not_become_huge_ones() {
    assert_eq!(fault(json!({"first": "", "size": -1})), "Parameter 'size' expects uint64");
    assert_eq!(fault(json!({"first": "", "size": 1.0})), "Parameter 'size' expects uint64");
}

#[test]
fn a_tag_brings_its_members_and_no_others() {
    let fault = fault_in::<BlockdevOptions>;
    assert_eq!(fault(json!({})), "Parameter 'driver' is missing");
    assert_eq!(fault(json!({"driver": "file"})), "Parameter 'filename' is missing");
    let other = json!({"driver": "null-co", "filename": "x"});
    assert_eq!(fault(other), "Parameter 'filename' is unexpected");
    let nested = json!({"driver": "raw", "file": {"driver": "file"}});
    assert_eq!(fault(nested), "Parameter 'file.filename' is missing");
    let by_name = json!({"driver": "raw", "file": "node"});
    assert_eq!(fault(by_name), "");
    let number = json!({"driver": "raw", "file": 1});
    assert_eq!(fault(number), "Invalid parameter type for 'file', expected: BlockdevRef");
}

#[test]
fn only_objects_can_be_arguments() {
    let text = validate(Type::Str, &Map::new()).unwrap_err().desc;
    assert_eq!(text, "the command's arguments are not described as an object");
}
