//! The client against a server of ours, and against servers that misbehave.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod common;

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    thread,
    time::Duration,
};

use common::FakeServer;
use ferry_api::{
    ErrorClass,
    client::{ClientError, QmpClient},
    qmp::Limits,
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn commands_return_values_and_errors_with_their_class() {
    let server = FakeServer::start();
    let mut client = QmpClient::connect(server.path(), SOON).unwrap();
    assert_eq!(client.greeting().capabilities, ["oob"]);
    assert_eq!(client.execute("query-kvm", json!({})).unwrap()["present"], json!(true));
    let failed = client.execute("block-job-complete", json!({"device": "x"})).unwrap_err();
    let ClientError::Command { command, error } = failed else { panic!("{failed}") };
    assert_eq!(command, "block-job-complete");
    assert_eq!(error.class, ErrorClass::DeviceNotActive);
}

#[test]
fn events_wait_until_somebody_asks() {
    let server = FakeServer::start();
    let mut client = QmpClient::connect(server.path(), SOON).unwrap();
    for command in ["cont", "stop", "cont"] {
        client.execute(command, json!({})).unwrap();
    }
    let stop = client.wait_event(SOON, |event| event.name == "STOP").unwrap().unwrap();
    assert_eq!(stop.data, json!(null));
    assert!(stop.timestamp.seconds > 1_600_000_000);
    let rest: Vec<_> = client.take_events().into_iter().map(|event| event.name).collect();
    assert_eq!(rest, ["RESUME", "RESUME"]);
    assert!(client.next_event(Duration::from_millis(20)).unwrap().is_none());
}

#[test]
fn a_process_that_ends_is_noticed() {
    let server = FakeServer::start();
    let mut client = QmpClient::connect(server.path(), SOON).unwrap();
    client.execute("quit", json!({})).unwrap();
    assert_eq!(client.next_event(SOON).unwrap().unwrap().name, "SHUTDOWN");
    let lost = client.next_event(SOON).unwrap_err();
    assert!(matches!(lost, ClientError::Lost { .. }), "{lost}");
}

/// A server that sends these bytes to its first client and reads what comes until it goes.
fn server_of(bytes: &'static [u8]) -> (PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let serve = move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(bytes).unwrap();
        let mut sink = Vec::new();
        // The client may close with bytes unread; that is no failure of this test.
        drop(socket.read_to_end(&mut sink));
    };
    thread::Builder::new().name("odd-server".into()).spawn(serve).unwrap();
    (path, dir)
}

#[test]
fn silence_is_an_error_after_a_while() {
    let (path, _dir) = server_of(b"");
    let failed = QmpClient::connect(&path, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(failed, ClientError::TimedOut { .. }), "{failed}");
    let text = failed.to_string();
    assert!(text.contains("while waiting for the greeting"), "{text}");
}

#[test]
fn other_protocols_are_recognised() {
    for bytes in [b"220 mail.example.org ESMTP\r\n".as_slice(), b"{\"hello\":1}\n", b"[1]"] {
        let (path, _dir) = server_of(bytes);
        let failed = QmpClient::connect(&path, SOON).unwrap_err();
        assert!(matches!(failed, ClientError::Protocol { .. }), "{failed}");
    }
}

#[test]
fn a_client_too_many_is_turned_away() {
    let server = FakeServer::with_limits(Limits { clients: 2, ..Limits::default() });
    let first = QmpClient::connect(server.path(), SOON).unwrap();
    let _second = QmpClient::connect(server.path(), SOON).unwrap();
    let refused = QmpClient::connect(server.path(), SOON).unwrap_err();
    assert!(matches!(refused, ClientError::Lost { .. }), "{refused}");
    drop(first);
    // The server notices within a few milliseconds.
    let again = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(10));
        QmpClient::connect(server.path(), SOON).is_ok()
    });
    assert!(again);
}

#[test]
fn a_client_that_never_reads_is_dropped_and_others_go_on() {
    let limits = Limits { output_max: 1 << 20, output_high_water: 4 << 10, ..Limits::default() };
    let server = FakeServer::with_limits(limits);
    let mut deaf = UnixStream::connect(server.path()).unwrap();
    deaf.write_all(b"{'execute':'qmp_capabilities'}").unwrap();
    // Events fill the socket's buffer first, then ours.
    let mut busy = UnixStream::connect(server.path()).unwrap();
    let mut writer = busy.try_clone().unwrap();
    let send = move || {
        writer.write_all(b"{'execute':'qmp_capabilities'}").unwrap();
        for _ in 0..10_000 {
            writer.write_all(b"{'execute':'cont'}{'execute':'stop'}").unwrap();
        }
        writer.write_all(b"{'execute':'query-name','id':'last'}").unwrap();
    };
    let sender = thread::Builder::new().name("writer".into()).spawn(send).unwrap();
    let (mut seen, mut chunk) = (Vec::new(), [0; 64 << 10]);
    while !seen.ends_with(b"\"id\": \"last\"}\r\n") {
        let n = busy.read(&mut chunk).unwrap();
        assert_ne!(n, 0, "the client that reads was dropped, too");
        seen.extend_from_slice(&chunk[..n]);
    }
    sender.join().unwrap();
    deaf.set_read_timeout(Some(SOON)).unwrap();
    let mut all = Vec::new();
    // Ends because the server hung up, not because the time is over.
    deaf.read_to_end(&mut all).unwrap();
    assert!(all.len() > 64 << 10, "{}", all.len());
}

#[test]
fn requests_without_reading_are_slowed_down_not_dropped() {
    let server = FakeServer::start();
    let mut stream = UnixStream::connect(server.path()).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let count = 300;
    let send = move || {
        writer.write_all(b"{'execute':'qmp_capabilities'}").unwrap();
        for _ in 0..count {
            writer.write_all(b"{'execute':'query-qmp-schema'}").unwrap();
        }
        writer.write_all(b"{'execute':'quit'}").unwrap();
    };
    let sender = thread::Builder::new().name("writer".into()).spawn(send).unwrap();
    thread::sleep(Duration::from_millis(200));
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    sender.join().unwrap();
    assert_eq!(all.matches("meta-type\": \"command\", \"arg-type").count() % count, 0);
    assert_eq!(all.lines().filter(|line| line.starts_with("{\"return\"")).count(), count + 2);
}
