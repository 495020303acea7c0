//! What waits to be sent: headers and buffers, in order, all of it in as few system calls as it takes.

use std::collections::VecDeque;
use std::io;

use super::socket::Gather;
use super::stream::Stream;
use crate::buf::IoBuf;

/// Heads that are sent are forgotten once they are so many bytes, and most of what is remembered.
const FORGET: usize = 64 << 10;

/// A queue of bytes to send. Buffers are kept alive until they are sent, and not copied.
#[derive(Default)]
pub(crate) struct Outbox {
    parts: VecDeque<Part>,
    /// The bytes of all heads that wait, one after the other from `heads_sent` on.
    heads: Vec<u8>,
    heads_sent: usize,
    /// Bytes of the buffers that wait.
    body_len: usize,
    /// Heads appended since it was last tried to send.
    fresh: usize,
}

enum Part {
    /// So many bytes of `heads`.
    Head(usize),
    Body(IoBuf),
}

impl Outbox {
    /// Whether everything is sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes of memory that it holds on to.
    pub(crate) fn held(&self) -> usize {
        self.body_len + self.head_len()
    }

    /// Bytes of heads that wait.
    pub(crate) fn head_len(&self) -> usize {
        self.heads.len() - self.heads_sent
    }

    /// Heads that nobody has tried to send yet.
    pub(crate) fn fresh(&self) -> usize {
        self.fresh
    }

    /// Appends the bytes that `write` appends.
    pub(crate) fn head(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.heads.len();
        write(&mut self.heads);
        let len = self.heads.len() - before;
        self.fresh += usize::from(len != 0);
        match self.parts.back_mut() {
            _ if len == 0 => {}
            Some(Part::Head(last)) => *last += len,
            _ => self.parts.push_back(Part::Head(len)),
        }
    }

    /// Appends a buffer.
    pub(crate) fn body(&mut self, buf: IoBuf) {
        if !buf.is_empty() {
            self.body_len += buf.len();
            self.parts.push_back(Part::Body(buf));
        }
    }

    /// Sends as much as the stream takes now. `WouldBlock` if not all of it.
    pub(crate) fn send(&mut self, stream: &Stream) -> io::Result<()> {
        self.fresh = 0;
        while !self.parts.is_empty() {
            let sent = stream.send(self)?;
            self.advance(sent);
        }
        stream.flush()
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        *self = Outbox::default();
    }

    pub(super) fn gather(&self) -> Gather {
        let mut gathered = Gather::with_room_for(self.parts.len());
        let mut at = self.heads_sent;
        for part in &self.parts {
            if gathered.is_full() {
                break;
            }
            match part {
                Part::Head(len) => {
                    gathered.bytes(&self.heads[at..at + len]);
                    at += len;
                }
                Part::Body(buf) => gathered.buf(buf),
            }
        }
        gathered
    }

    /// Copies the next bytes out, at most as many as fit; how many.
    pub(super) fn copy_to(&self, out: &mut [u8]) -> usize {
        let (mut done, mut at) = (0, self.heads_sent);
        for part in &self.parts {
            let room = out.len() - done;
            let taken = match part {
                Part::Head(len) => {
                    let taken = room.min(*len);
                    out[done..done + taken].copy_from_slice(&self.heads[at..at + taken]);
                    at += len;
                    taken
                }
                Part::Body(buf) => {
                    let taken = room.min(buf.len());
                    buf.slice(0..taken).copy_to(&mut out[done..done + taken]);
                    taken
                }
            };
            done += taken;
            if done == out.len() {
                break;
            }
        }
        done
    }

    fn advance(&mut self, mut sent: usize) {
        while let Some(part) = self.parts.front_mut() {
            let len = match part {
                Part::Head(len) => *len,
                Part::Body(buf) => buf.len(),
            };
            let done = sent.min(len);
            match part {
                Part::Head(len) => {
                    self.heads_sent += done;
                    *len -= done;
                }
                Part::Body(buf) => {
                    self.body_len -= done;
                    *buf = buf.slice(done..len);
                }
            }
            sent -= done;
            if done < len {
                break;
            }
            self.parts.pop_front();
        }
        // A queue that is never quite empty must not remember everything that it ever sent.
        if self.parts.is_empty() || self.heads_sent >= FORGET.max(self.head_len()) {
            self.heads.drain(..self.heads_sent);
            self.heads_sent = 0;
        }
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
