use serde_json::json;

use super::*;
use crate::{
    command::{ErrorAction, IoOperation},
    event::{BlockIoErrorData, EventKind, Timestamp},
};

fn io_error(device: &str, reason: &str) -> Event {
    let kind = EventKind::BlockIoError(BlockIoErrorData {
        device: device.into(),
        node_name: None,
        operation: IoOperation::Write,
        action: ErrorAction::Report,
        nospace: None,
        reason: reason.into(),
    });
    Event::new(kind, Timestamp { seconds: 0, microseconds: 0 })
}

fn stop() -> Event {
    Event::new(EventKind::Stop, Timestamp { seconds: 0, microseconds: 0 })
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A server with one client that listens.
fn listening() -> (Server, ClientId) {
    let mut server = Server::new(&crate::interface::MACHINE, Limits::default());
    let client = server.connect().unwrap();
    let session = server.session(client).unwrap();
    session.feed(b"{'execute':'qmp_capabilities'}");
    session.take_output();
    (server, client)
}

/// What the client heard since the last time, in short.
fn heard(server: &mut Server, client: ClientId) -> Vec<String> {
    let output = server.session(client).unwrap().take_output();
    let event = |line: &str| {
        let event: Event = serde_json::from_str(line).unwrap();
        let data =
            |name| event.data.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        format!("{} {} {}", event.name, data("device"), data("reason")).trim_end().to_owned()
    };
    String::from_utf8(output).unwrap().lines().map(event).collect()
}

#[test]
fn every_client_hears_every_event() {
    let (mut server, first) = listening();
    let second = server.connect().unwrap();
    let session = server.session(second).unwrap();
    session.feed(b"{'execute':'qmp_capabilities'}");
    session.take_output();
    server.event(stop(), ms(0));
    assert_eq!(server.needing_attention().collect::<Vec<_>>(), [first, second]);
    assert_eq!(heard(&mut server, first), ["STOP"]);
    server.disconnect(first);
    assert!(server.session(first).is_none());
    assert_eq!(heard(&mut server, second), ["STOP"]);
}

#[test]
fn clients_are_counted() {
    let mut server =
        Server::new(&crate::interface::MACHINE, Limits { clients: 1, ..Limits::default() });
    let only = server.connect().unwrap();
    let refused = server.connect().unwrap_err().to_string();
    assert_eq!(refused, "1 QMP clients are connected already; close one of them first");
    server.disconnect(only);
    assert_ne!(server.connect().unwrap(), only);
}

#[test]
fn a_flood_of_one_kind_becomes_one_a_second_and_the_last_wins() {
    let (mut server, client) = listening();
    for n in 0..5 {
        server.event(io_error("a", &format!("{n}")), ms(n));
    }
    server.event(io_error("b", "other disk"), ms(5));
    server.event(stop(), ms(6));
    assert_eq!(
        heard(&mut server, client),
        ["BLOCK_IO_ERROR a 0", "BLOCK_IO_ERROR b other disk", "STOP"]
    );
    assert_eq!(server.next_tick(), Some(ms(1000)));
    server.tick(ms(999));
    assert!(heard(&mut server, client).is_empty());
    server.tick(ms(1000));
    assert_eq!(heard(&mut server, client), ["BLOCK_IO_ERROR a 4"]);

    // The last one started another second.
    server.event(io_error("a", "5"), ms(1500));
    assert!(heard(&mut server, client).is_empty());
    server.tick(ms(2000));
    assert_eq!(heard(&mut server, client), ["BLOCK_IO_ERROR a 5"]);
    server.tick(ms(3000));
    assert_eq!(server.next_tick(), None, "nothing is remembered for ever");
    server.event(io_error("a", "6"), ms(3001));
    assert_eq!(heard(&mut server, client), ["BLOCK_IO_ERROR a 6"]);
}

#[test]
fn an_event_without_data_has_no_such_member() {
    let value = serde_json::to_value(stop()).unwrap();
    let timestamp = json!({"seconds": 0, "microseconds": 0});
    assert_eq!(value, json!({"timestamp": timestamp, "event": "STOP"}));
}
