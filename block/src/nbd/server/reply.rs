//! How the outcome of a request goes over the wire.

use std::ops::Range;

use super::negotiate::Agreement;
use super::request::Outcome;
use crate::buf::IoBuf;
use crate::nbd::proto::reply::{Header, encode_error, encode_status};
use crate::nbd::proto::request::Request;
use crate::nbd::proto::{HeaderStyle, chunk, cmd, flag};
use crate::net::Outbox;

/// Zeroes are looked for in units of so many bytes, aligned: what is found saves more than the
/// header of a chunk costs.
const GRANULE: u64 = 64 << 10;

/// Appends the reply to what waits to be sent.
pub(super) fn encode(agreed: &Agreement, request: &Request, outcome: Outcome, out: &mut Outbox) {
    let reply = Reply { style: agreed.style, request, out };
    match outcome {
        Outcome::Failed(error, message) => reply.failed(error, &message),
        Outcome::Done => reply.done(),
        Outcome::Data(buf) => reply.data(buf),
        Outcome::Status(found) => reply.status(&found),
    }
}

struct Reply<'a> {
    style: HeaderStyle,
    request: &'a Request,
    out: &'a mut Outbox,
}

impl Reply<'_> {
    fn simple(self, error: u32) {
        let header = Header::Simple { error, cookie: self.request.cookie };
        self.out.head(|out| header.encode(out));
    }

    /// A chunk's header, and the part of its payload that is at hand.
    fn chunk(&mut self, last: bool, kind: u16, front: &[u8], rest: usize) {
        let Request { cookie, offset, .. } = *self.request;
        let offset = (self.style == HeaderStyle::Extended).then_some(offset);
        let flags = if last { chunk::DONE } else { 0 };
        let len = (front.len() + rest) as u64;
        self.out.head(|out| {
            Header::Chunk { flags, kind, cookie, offset, len }.encode(out);
            out.extend_from_slice(front);
        });
    }

    fn failed(mut self, error: u32, message: &str) {
        // Structured replies to reads may not be simple, not even errors.
        if self.style == HeaderStyle::Simple {
            return self.simple(error);
        }
        self.chunk(true, chunk::ERROR, &encode_error(error, message), 0);
    }

    fn done(mut self) {
        if self.style == HeaderStyle::Extended {
            self.chunk(true, chunk::NONE, &[], 0);
        } else {
            self.simple(0);
        }
    }

    fn data(mut self, buf: IoBuf) {
        if self.style == HeaderStyle::Simple {
            let out = &mut *self.out;
            let header = Header::Simple { error: 0, cookie: self.request.cookie };
            out.head(|bytes| header.encode(bytes));
            out.body(buf);
            return;
        }
        if buf.is_empty() {
            return self.chunk(true, chunk::NONE, &[], 0);
        }
        let base = self.request.offset;
        let whole = self.request.flags & flag::DF != 0;
        let mut runs = Runs { buf: &buf, base, whole, at: 0 }.peekable();
        while let Some((range, zero)) = runs.next() {
            let last = runs.peek().is_none();
            let at = (base + range.start as u64).to_be_bytes();
            if zero {
                let len = u32::try_from(range.len()).unwrap_or(u32::MAX);
                let payload = [&at[..], &len.to_be_bytes()].concat();
                self.chunk(last, chunk::OFFSET_HOLE, &payload, 0);
            } else {
                self.chunk(last, chunk::OFFSET_DATA, &at, range.len());
                self.out.body(buf.slice(range));
            }
        }
    }

    fn status(mut self, found: &[(u32, Vec<crate::nbd::proto::reply::Descriptor>)]) {
        debug_assert_eq!(self.request.command, cmd::BLOCK_STATUS);
        let kind = match self.style {
            HeaderStyle::Extended => chunk::BLOCK_STATUS_EXT,
            HeaderStyle::Simple | HeaderStyle::Structured => chunk::BLOCK_STATUS,
        };
        for (place, (context, list)) in found.iter().enumerate() {
            let last = place + 1 == found.len();
            let payload = encode_status(self.style, *context, list);
            self.chunk(last, kind, &payload, 0);
        }
    }
}

/// Cuts a buffer into runs that are zero and runs that are not. A look at a granule ends at the
/// first byte that is not zero, so this costs nothing where there is data.
struct Runs<'a> {
    buf: &'a IoBuf,
    base: u64,
    /// Only one run is wanted.
    whole: bool,
    at: usize,
}

impl Runs<'_> {
    /// The rest of the granule that begins at or lies around `at`.
    fn granule(&self, at: usize) -> Range<usize> {
        let position = self.base + at as u64;
        let len = GRANULE - position % GRANULE;
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(self.buf.len() - at);
        at..at + if self.whole { self.buf.len() - at } else { len }
    }
}

impl Iterator for Runs<'_> {
    type Item = (Range<usize>, bool);

    fn next(&mut self) -> Option<(Range<usize>, bool)> {
        let start = self.at;
        let mut zero = None;
        while self.at < self.buf.len() {
            let granule = self.granule(self.at);
            let is_zero = self.buf.slice(granule.clone()).is_zero();
            if *zero.get_or_insert(is_zero) != is_zero {
                break;
            }
            self.at = granule.end;
        }
        zero.map(|zero| (start..self.at, zero))
    }
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
