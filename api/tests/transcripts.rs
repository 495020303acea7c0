//! Conversations as they go over the wire, byte by byte, in plain text files.
//!
//! A line `C: …` is sent by the client, `S: …` comes from the server, `T: …` lets the machine work for
//! that many milliseconds. With `UPDATE_TRANSCRIPTS=1` the files are written anew; read the difference
//! before you keep it.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod common;

use std::{
    fs,
    path::Path,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use common::machine::FakeMachine;
use ferry_api::{
    Controller, Event, Timestamp,
    qmp::{Limits, Session, SessionAction},
};

/// A session with its machine, without sockets and clocks.
struct Conversation {
    session: Session,
    machine: Rc<FakeMachine>,
    text: String,
}

impl Conversation {
    fn flush(&mut self) {
        for event in self.machine.take_events() {
            let timestamp = Timestamp { seconds: 1_700_000_000, microseconds: 42 };
            self.session.event(&Event::new(event, timestamp));
        }
        let output = String::from_utf8(self.session.take_output()).unwrap();
        for line in output.split_terminator("\r\n") {
            self.text += &format!("S: {line}\n");
        }
    }

    fn send(&mut self, line: &str) {
        let mut todo = self.session.feed(format!("{line}\n").as_bytes());
        while let Some(SessionAction::Execute { token, command }) = todo.pop() {
            let mut future = Rc::clone(&self.machine).execute(command);
            let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            else {
                panic!("the fake machine answers at once");
            };
            self.flush();
            todo = self.session.reply(token, result);
        }
        self.flush();
    }
}

/// Plays the client's part of a transcript and gives what it should read.
fn play(transcript: &str) -> String {
    let session = Session::new(&ferry_api::interface::MACHINE, Limits::default());
    let mut talk = Conversation { session, machine: Rc::default(), text: String::new() };
    for line in transcript.lines() {
        if !line.starts_with('#') {
            talk.flush();
        }
        if let Some(request) = line.strip_prefix("C: ") {
            talk.text += &format!("{line}\n");
            talk.send(request);
        } else if let Some(time) = line.strip_prefix("T: ") {
            talk.text += &format!("{line}\n");
            (0..time.parse::<u32>().unwrap()).for_each(|_| talk.machine.tick());
            talk.flush();
        } else if line.starts_with('#') {
            talk.text += &format!("{line}\n");
        }
    }
    talk.text
}

#[test]
fn conversations_go_as_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut played = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let expected = fs::read_to_string(&path).unwrap();
        let got = play(&expected);
        if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
            fs::write(&path, &got).unwrap();
        } else {
            assert_eq!(got, expected, "{}", path.display());
        }
        played += 1;
    }
    assert!(played >= 4, "{played}");
}
