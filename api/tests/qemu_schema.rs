//! Our schema against QEMU's: whatever we offer must be what QEMU offers under that name.
//!
//! A client that was written for QEMU may then use anything that `query-qmp-schema` tells of us: what
//! it sends is accepted, and what it gets has every member that QEMU always sends.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{FakeServer, peer::Peer, qemu::Qemu};
use ferry_api::schema::{JsonType, SchemaDetail, SchemaInfo, SchemaObject};
use serde_json::json;

/// What later releases of QEMU have under this name and 7.2 has not.
const NEWER: [&str; 4] = [
    "blockdev-add.active",
    "blockdev-set-active",
    "blockdev-add(qcow2).discard-no-unref",
    "query-block-jobs()[].actively-synced",
];

/// A schema with its entities by name.
struct Schema(BTreeMap<String, SchemaDetail>);

impl Schema {
    fn of(peer: &mut Peer) -> Self {
        peer.until(|value| value.get("QMP").is_some());
        for command in ["qmp_capabilities", "query-qmp-schema"] {
            peer.send(json!({ "execute": command, "id": command }).to_string().as_bytes());
        }
        let replies = peer.until(|value| value.get("id") == Some(&json!("query-qmp-schema")));
        let returned = replies.last().unwrap()["return"].clone();
        let entities: Vec<SchemaInfo> = serde_json::from_value(returned).unwrap();
        Schema(entities.into_iter().map(|entity| (entity.name, entity.detail)).collect())
    }

    fn get(&self, name: &str) -> &SchemaDetail {
        self.0.get(name).unwrap_or_else(|| panic!("the schema has no {name}"))
    }
}

/// Which way values of a type travel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// Clients send them: ours may know fewer members, but must not demand more.
    In,
    /// Clients get them: ours must send whatever is always sent.
    Out,
}

struct Comparison<'a> {
    ours: &'a Schema,
    theirs: &'a Schema,
    seen: BTreeSet<(String, String, Way)>,
    faults: Vec<String>,
}

impl Comparison<'_> {
    fn fault(&mut self, at: &str, what: &str) {
        self.faults.push(format!("{at}: {what}"));
    }

    fn types(&mut self, ours: &str, theirs: &str, way: Way, at: &str) {
        if !self.seen.insert((ours.to_owned(), theirs.to_owned(), way)) {
            return;
        }
        match (self.ours.get(ours), self.theirs.get(theirs)) {
            (SchemaDetail::Builtin(a), SchemaDetail::Builtin(b)) if a == b => {}
            (SchemaDetail::Enum(a), SchemaDetail::Enum(b)) => {
                let known: BTreeSet<_> = b.values.iter().collect();
                for value in a.values.iter().filter(|value| !known.contains(value)) {
                    self.fault(at, &format!("value {value}"));
                }
            }
            // Telling which strings are sent promises more than QEMU does, not less.
            (SchemaDetail::Enum(_), SchemaDetail::Builtin(b))
                if way == Way::Out && b.json_type == JsonType::String => {}
            (SchemaDetail::Array(a), SchemaDetail::Array(b)) => {
                self.types(&a.element_type, &b.element_type, way, &format!("{at}[]"));
            }
            (SchemaDetail::Object(a), SchemaDetail::Object(b)) => self.objects(a, b, way, at),
            (SchemaDetail::Alternate(a), SchemaDetail::Alternate(b)) => {
                for member in &a.members {
                    let same = |name: &str| match (self.theirs.get(name), self.ours.get(&member.ty))
                    {
                        (SchemaDetail::Builtin(a), SchemaDetail::Builtin(b)) => a == b,
                        (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
                    };
                    match b.members.iter().find(|other| same(&other.ty)) {
                        Some(other) => self.types(&member.ty, &other.ty, way, at),
                        None => self.fault(at, "a choice of another type"),
                    }
                }
            }
            (a, b) => self.fault(at, &format!("{a:?} is not {b:?}")),
        }
    }

    fn objects(&mut self, ours: &SchemaObject, theirs: &SchemaObject, way: Way, at: &str) {
        for member in &ours.members {
            let at = format!("{at}.{}", member.name);
            if NEWER.contains(&at.as_str()) {
                continue;
            }
            // Our own additions carry their own prefix.
            if member.name.starts_with("__org.ferry_") {
                if way == Way::In && member.default.is_none() {
                    self.fault(&at, "an addition must be optional");
                }
                continue;
            }
            match theirs.members.iter().find(|other| other.name == member.name) {
                None => self.fault(&at, "unknown member"),
                Some(other) => {
                    let (we, they) = (member.default.is_some(), other.default.is_some());
                    match way {
                        Way::In if they && !we => self.fault(&at, "must be optional"),
                        Way::Out if we && !they => self.fault(&at, "must always be sent"),
                        _ => self.types(&member.ty, &other.ty, way, &at),
                    }
                }
            }
        }
        for other in &theirs.members {
            let has = ours.members.iter().any(|member| member.name == other.name);
            if !has && other.default.is_none() {
                self.fault(&format!("{at}.{}", other.name), "mandatory and not there");
            }
        }
        if ours.variants.is_some() && ours.tag != theirs.tag {
            self.fault(at, "another tag");
        }
        for variant in ours.variants.iter().flatten() {
            let at = format!("{at}({})", variant.case);
            match theirs.variants.iter().flatten().find(|other| other.case == variant.case) {
                Some(other) => self.types(&variant.ty, &other.ty, way, &at),
                None => self.fault(&at, "unknown case"),
            }
        }
    }
}

#[test]
fn what_we_offer_is_what_qemu_offers_under_that_name() {
    let Some(mut qemu) = Qemu::start() else { return };
    let server = FakeServer::start();
    let (ours, theirs) = (Schema::of(&mut Peer::connect(server.path())), Schema::of(qemu.peer()));
    let mut compared = 0;
    let (seen, faults) = (BTreeSet::new(), Vec::new());
    let mut comparison = Comparison { ours: &ours, theirs: &theirs, seen, faults };
    for (name, detail) in &ours.0 {
        match (detail, theirs.0.get(name)) {
            (SchemaDetail::Command(a), Some(SchemaDetail::Command(b))) => {
                comparison.types(&a.arg_type, &b.arg_type, Way::In, name);
                comparison.types(&a.ret_type, &b.ret_type, Way::Out, &format!("{name}()"));
                assert_eq!(a.allow_oob, b.allow_oob, "{name}");
                compared += 1;
            }
            (SchemaDetail::Event(a), Some(SchemaDetail::Event(b))) => {
                comparison.types(&a.arg_type, &b.arg_type, Way::Out, name);
                compared += 1;
            }
            (SchemaDetail::Command(_), None) if NEWER.contains(&name.as_str()) => {}
            (SchemaDetail::Command(_) | SchemaDetail::Event(_), other) => {
                panic!("{name} is {other:?} there");
            }
            _ => {}
        }
    }
    assert!(compared > 50, "{compared}");
    assert!(comparison.faults.is_empty(), "{}", comparison.faults.join("\n"));
}
