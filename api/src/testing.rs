//! Hostile input, for tests of other crates.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::error::QmpError;
use crate::event::{Event, EventKind, Timestamp};
use crate::interface::MACHINE;
use crate::qmp::{Limits, Server, SessionAction};
use crate::schema::{Object, Type};

/// How deeply samples have what may be left out.
const DEPTH: usize = 3;
/// Samples of a command: as many as the longest list of choices has, the drivers.
const CHOICES: usize = 11;

/// Says the bytes to a QMP server whose commands succeed and fail in turn; how many commands it
/// understood. Comes back soon, having used little memory, whatever they say.
///
/// # Panics
/// There is a mistake in what is tested.
pub fn fuzz_qmp(data: &[u8]) -> u32 {
    let mut server = Server::new(&MACHINE, Limits::default());
    let client = server.connect().expect("room for one client");
    let mut understood = 0;
    // In pieces of all sizes, as a socket gives them.
    let mut rest = data;
    let mut size = 1;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(size.min(rest.len()));
        (rest, size) = (after, size % 97 * 2 + 1);
        let session = server.session(client).expect("nobody disconnected it");
        if session.end().is_some() {
            break;
        }
        let mut actions = session.feed(piece);
        while let Some(SessionAction::Execute { token, .. }) = actions.pop() {
            understood += 1;
            let result = match understood % 2 {
                0 => Ok(json!({})),
                _ => Err(QmpError::generic("not now")),
            };
            actions.extend(session.reply(token, result));
        }
        // Somebody reads the replies.
        let read = session.output().len();
        session.sent(read);
        let event = Event::new(EventKind::Stop, Timestamp { seconds: 0, microseconds: 0 });
        server.event(event, Duration::ZERO);
    }
    understood
}

/// What clients say.
pub fn qmp_seeds() -> Vec<Vec<u8>> {
    let seeds: [&[u8]; 4] = [
        b"{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}\n\
          {\"execute\":\"query-status\",\"id\":[1,null,-2.5e3,\"\\u00e9\\n\"]}\r\n\
          {'exec-oob':'query-yank','id':7}{'execute':'stop'}{'execute':'cont'}",
        br#"{"execute":"qmp_capabilities"}{"execute":"blockdev-add","arguments":{"driver":"qcow2",
            "node-name":"d","read-only":true,"file":{"driver":"file","filename":"a"},
            "backing":null,"cache":{"direct":true}}}"#,
        br#"{"execute":"qmp_capabilities"}{"execute":"transaction","arguments":{"actions":[
            {"type":"block-dirty-bitmap-add","data":{"node":"d","name":"b"}}]}}
            {"execute":"query-qmp-schema","id":{"a":{"b":[[[[]]]]}}}"#,
        br#"{"execute":"qmp_capabilities"}{"execute":"no-such"}{"execute":"stop","more":1}"#,
    ];
    let mut seeds: Vec<Vec<u8>> = seeds.map(<[u8]>::to_vec).into();
    for command in MACHINE.commands() {
        for choice in 0..CHOICES {
            let arguments = sample((command.arguments)(), choice, DEPTH);
            let request = json!({"execute": command.name, "arguments": arguments});
            let seed = format!("{{'execute':'qmp_capabilities'}}{request}").into_bytes();
            if !seeds.contains(&seed) {
                seeds.push(seed);
            }
        }
    }
    seeds
}

/// A value of a type with everything in it, to a depth, for types may contain themselves.
fn sample(ty: Type, choice: usize, depth: usize) -> Value {
    match ty {
        Type::Str | Type::Any => "x".into(),
        Type::Bool => choice.is_multiple_of(2).into(),
        Type::Int | Type::U64 | Type::U32 => 512.into(),
        Type::Number => 1.5.into(),
        Type::Null => Value::Null,
        Type::Enum(among) => among.values[choice % among.values.len()].into(),
        Type::Array(_) if depth == 0 => json!([]),
        Type::Array(element) => json!([sample(element(), choice, depth - 1)]),
        Type::Alternate(among) => {
            let plain = among.members.iter().find(|member| matches!(member(), Type::Str));
            let any = &among.members[choice % among.members.len()];
            let member = plain.filter(|_| depth == 0).unwrap_or(any);
            sample(member(), choice, depth.saturating_sub(1))
        }
        Type::Object(object) => Value::Object(sample_object(object, choice, depth)),
    }
}

fn sample_object(object: &Object, choice: usize, depth: usize) -> Map<String, Value> {
    let mut members = Map::new();
    for member in object.members.iter().filter(|member| !member.optional || depth > 0) {
        let value = sample((member.ty)(), choice, depth.saturating_sub(1));
        members.insert(member.name.to_owned(), value);
    }
    if let Some(variants) = &object.variants {
        let (tag, ty) = variants.cases[choice % variants.cases.len()];
        members.insert(variants.tag.to_owned(), tag.into());
        if let Type::Object(own) = ty() {
            members.extend(sample_object(own, choice, depth));
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_go_deep() {
        let understood: Vec<u32> = qmp_seeds().iter().map(|seed| fuzz_qmp(seed)).collect();
        assert_eq!(understood[..4], [4, 1, 1, 0]);
        // All but the four commands that a session answers by itself.
        let samples = &understood[4..];
        assert_eq!(samples.iter().filter(|count| **count != 1).count(), 4);
        assert!(samples.len() > 100, "{} samples", samples.len());
        assert_eq!(fuzz_qmp(b""), 0);
    }
}
