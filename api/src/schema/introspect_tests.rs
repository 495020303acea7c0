use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use self::types::Wrapper;
use super::*;

fn schema() -> BTreeMap<String, Value> {
    let entities = introspect(&crate::interface::MACHINE);
    let count = entities.len();
    let by_name: BTreeMap<_, _> =
        entities.into_iter().map(|e| (e.name.clone(), serde_json::to_value(e).unwrap())).collect();
    assert_eq!(by_name.len(), count, "no name twice");
    by_name
}

/// The names of the types that an entity uses.
fn uses(entity: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for member in ["arg-type", "ret-type", "element-type"] {
        names.extend(entity.get(member));
    }
    for list in ["members", "variants"] {
        let members = entity.get(list).and_then(Value::as_array).into_iter().flatten();
        names.extend(members.filter_map(|member| member.get("type")));
    }
    names.into_iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_type_is_there_and_used() {
    let schema = schema();
    let mut used = BTreeSet::new();
    for (name, entity) in &schema {
        for other in uses(entity) {
            assert!(schema.contains_key(&other), "{name} uses {other}");
            used.insert(other);
        }
    }
    for (name, entity) in &schema {
        let top = ["command", "event"].map(|meta| entity["meta-type"] == meta).contains(&true);
        assert!(top || used.contains(name), "nobody uses {name}: {entity}");
    }
}

#[test]
fn entities_look_as_clients_expect() {
    let schema = schema();
    let stop = json!({"name": "stop", "meta-type": "command", "arg-type": "0", "ret-type": "0"});
    let stop_types = (schema["stop"]["arg-type"].clone(), schema["stop"]["ret-type"].clone());
    assert_eq!(stop_types.0, stop_types.1);
    let mut seen = schema["stop"].clone();
    (seen["arg-type"], seen["ret-type"]) = (json!("0"), json!("0"));
    assert_eq!(seen, stop);
    let empty = &schema[stop_types.0.as_str().unwrap()];
    assert_eq!((&empty["meta-type"], &empty["members"]), (&json!("object"), &json!([])));
    let string = json!({"name": "str", "meta-type": "builtin", "json-type": "string"});
    assert_eq!(schema["str"], string);

    let mirror = &schema[schema["blockdev-mirror"]["arg-type"].as_str().unwrap()];
    assert_eq!(mirror["members"][0], json!({"name": "job-id", "type": "str", "default": null}));
    assert_eq!(mirror["members"][1], json!({"name": "device", "type": "str"}));
    let copy_mode = mirror["members"].as_array().unwrap();
    let copy_mode = copy_mode.iter().find(|m| m["name"] == "copy-mode").unwrap();
    let modes = &schema[copy_mode["type"].as_str().unwrap()];
    assert_eq!(modes["values"], json!(["background", "write-blocking"]));
    assert_eq!(modes["members"], json!([{"name": "background"}, {"name": "write-blocking"}]));

    let blockdev = &schema[schema["blockdev-add"]["arg-type"].as_str().unwrap()];
    assert_eq!(blockdev["tag"], "driver");
    assert_eq!(blockdev["variants"][0]["case"], "blkdebug");
}

#[allow(unreachable_pub, reason = "the macros declare public types")]
mod types {
    use crate::schema::{SchemaInfo, object};

    object! {
        /// Arguments are objects; a list has to be in one.
        pub struct Wrapper {
            list: Vec<SchemaInfo> = "list",
        }
    }
}

#[test]
fn the_schema_fits_its_own_description() {
    let value = serde_json::to_value(introspect(&crate::interface::MACHINE)).unwrap();
    let wrapped = json!({ "list": value });
    crate::schema::validate(Wrapper::describe(), wrapped.as_object().unwrap()).unwrap();
    let back: Wrapper = serde_json::from_value(wrapped.clone()).unwrap();
    assert_eq!(serde_json::to_value(back).unwrap(), wrapped);
}
