//! One end of a QMP connection that sends any bytes and reads whole messages.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use ferry_api::qmp::{Limits, wire::Decoder};
use serde_json::Value;

pub(crate) struct Peer {
    stream: UnixStream,
    decoder: Decoder,
    unread: VecDeque<Value>,
}

impl Peer {
    pub(crate) fn connect(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let limits = Limits { message_bytes: 64 << 20, message_tokens: 1 << 24, ..<_>::default() };
        Peer { stream, decoder: Decoder::new(limits), unread: VecDeque::new() }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Everything up to and including the last one.
    pub(crate) fn until(&mut self, last: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut messages = Vec::new();
        loop {
            while let Some(message) = self.unread.pop_front() {
                let is_last = last(&message);
                messages.push(message);
                if is_last {
                    return messages;
                }
            }
            let mut chunk = [0; 4096];
            let n = self.stream.read(&mut chunk).unwrap();
            assert_ne!(n, 0, "closed after {messages:?}");
            let mut input = &chunk[..n];
            while let Some(message) = self.decoder.next(&mut input) {
                self.unread.push_back(message.unwrap());
            }
        }
    }
}
