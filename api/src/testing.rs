//! Hostile input, for tests of other crates.

use std::time::Duration;

use serde_json::json;

use crate::error::QmpError;
use crate::event::{Event, EventKind, Timestamp};
use crate::interface::MACHINE;
use crate::qmp::{Limits, Server, SessionAction};

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
    seeds.map(<[u8]>::to_vec).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_go_deep() {
        let understood: Vec<u32> = qmp_seeds().iter().map(|seed| fuzz_qmp(seed)).collect();
        assert_eq!(understood, [4, 1, 1, 0]);
        assert_eq!(fuzz_qmp(b""), 0);
    }
}
