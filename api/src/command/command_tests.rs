use serde_json::json;

use super::*;
use crate::interface::{MACHINE, STORAGE};
use crate::schema::{Object, Type};

/// Values of a type that between them use every member, every case and every value. `depth` bounds
/// types that contain themselves.
fn samples(ty: Type, depth: usize) -> Vec<Value> {
    match ty {
        Type::Str => vec![json!("text")],
        Type::Bool => vec![json!(true)],
        Type::Int => vec![json!(i64::MIN), json!(i64::MAX)],
        Type::U64 => vec![json!(u64::MAX)],
        Type::U32 => vec![json!(u32::MAX)],
        Type::Number => vec![json!(1.5)],
        Type::Any | Type::Null => vec![Value::Null],
        Type::Enum(set) => set.values.iter().map(|value| json!(value)).collect(),
        Type::Array(element) => vec![json!([]), Value::Array(samples(element(), depth))],
        Type::Alternate(alternate) => {
            let members = alternate.members.iter().map(|member| member());
            let members = members.filter(|ty| depth > 0 || !matches!(ty, Type::Object(_)));
            members.flat_map(|ty| samples(ty, depth.saturating_sub(1))).collect()
        }
        Type::Object(object) => objects(object, depth),
    }
}

fn objects(object: &Object, depth: usize) -> Vec<Value> {
    let Some(variants) = &object.variants else { return plain_objects(object, depth) };
    let base = plain_objects(object, depth);
    let mut all = Vec::new();
    for (case, ty) in variants.cases {
        // Side by side, not each with each: types that contain themselves would have millions.
        let more = samples(ty(), depth);
        for round in 0..more.len().max(base.len()) {
            let mut value = base[round % base.len()].clone();
            value[variants.tag] = json!(case);
            let more = more[round % more.len()].as_object().unwrap().clone();
            value.as_object_mut().unwrap().extend(more);
            all.push(value);
        }
    }
    all
}

/// Without its optional members, with all of them, and with each value of each member.
fn plain_objects(object: &Object, depth: usize) -> Vec<Value> {
    let choices: Vec<_> =
        object.members.iter().map(|m| (m.name, m.optional, samples((m.ty)(), depth))).collect();
    let rounds = choices.iter().map(|(_, _, values)| values.len()).max().unwrap_or(1);
    let full = (0..rounds).map(|round| {
        let pick = |values: &[Value]| values[round % values.len()].clone();
        choices.iter().map(|(name, _, values)| ((*name).to_owned(), pick(values))).collect()
    });
    let least = choices.iter().filter(|(_, optional, _)| !optional);
    let least = least.map(|(name, _, values)| ((*name).to_owned(), values[0].clone())).collect();
    full.chain([Value::Object(least)]).collect()
}

/// What the descriptions allow is what the types take: there is no third place to keep in step.
#[test]
fn every_described_argument_is_understood() {
    let mut tried = 0;
    for info in MACHINE.commands().filter(|info| matches!(info.parse, Parse::Controller(_))) {
        for arguments in samples((info.arguments)(), 1) {
            let parsed = MACHINE.parse(info.name, arguments.clone());
            let command = parsed.unwrap_or_else(|e| panic!("{} {arguments}: {e}", info.name));
            assert_eq!(command.name(), info.name);
            tried += 1;
        }
    }
    assert!(tried > 150, "{tried}");
}

#[test]
fn names_are_unique_and_additions_carry_our_prefix() {
    let mut names: Vec<_> = MACHINE.commands().map(|info| info.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert_eq!(MACHINE.command("stop").unwrap().name, "stop");
    MACHINE.command("nosuch").unwrap_err();
}

#[test]
fn options_that_were_not_given_are_not_written() {
    let arguments = json!({"driver": "raw", "node-name": "n", "file": {
        "driver": "file", "filename": "/x", "locking": "off", "aio": "io_uring",
    }});
    let Command::Block(BlockCommand::BlockdevAdd(options)) =
        MACHINE.parse("blockdev-add", arguments.clone()).unwrap()
    else {
        panic!("another command");
    };
    let BlockdevDriver::Raw(raw) = &options.driver else { panic!("{options:?}") };
    let BlockdevRef::Definition(file) = &raw.file else { panic!("{raw:?}") };
    assert!(matches!(&file.driver, BlockdevDriver::File(f) if f.filename == "/x"));
    assert_eq!(options.driver.as_str(), "raw");
    assert_eq!(serde_json::to_value(&options).unwrap(), arguments);
}

#[test]
fn replies_have_the_names_of_the_wire() {
    let info = StatusInfo { running: true, singlestep: false, status: RunState::FinishMigrate };
    let expected = json!({"running": true, "singlestep": false, "status": "finish-migrate"});
    assert_eq!(reply(&info).unwrap(), expected);
    assert_eq!(reply(&MigrationInfo::default()).unwrap(), json!({}));
}

#[test]
fn force_is_an_addition_of_ours() {
    let forced = MACHINE.parse("cont", json!({"__org.ferry_force": true})).unwrap();
    assert_eq!(forced, Command::Machine(MachineCommand::Cont(Cont { force: Some(true) })));
    let refused = MACHINE.parse("cont", json!({"force": true})).unwrap_err();
    assert_eq!(refused.desc, "Parameter 'force' is unexpected");
}

#[test]
fn commands_of_a_session_do_not_reach_a_controller() {
    for info in SESSION_COMMANDS {
        MACHINE.parse(info.name, json!({})).unwrap_err();
    }
}

#[test]
fn a_process_without_a_guest_has_no_commands_for_one() {
    for name in ["cont", "migrate", "query-status"] {
        MACHINE.command(name).unwrap();
        assert_eq!(STORAGE.command(name).unwrap_err().class, crate::ErrorClass::CommandNotFound);
    }
    for name in ["quit", "query-commands", "blockdev-add", "job-cancel"] {
        STORAGE.command(name).unwrap();
    }
    let events: Vec<_> = STORAGE.events().map(|event| event.name).collect();
    assert!(events.contains(&"JOB_STATUS_CHANGE") && !events.contains(&"RESUME"));
}
