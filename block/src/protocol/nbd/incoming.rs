//! Replies as they come out of the stream: many from one system call, long data straight into the
//! buffer that waits for it.

use std::io;

use super::command::{Answer, Command};
use super::link::Link;
use super::session::Session;
use crate::buf::IoBuf;
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::proto::reply::{Header, decode_error, decode_status};
use crate::nbd::proto::{HeaderStyle, chunk, errno};
use crate::net::Stream;

/// Bytes received at once.
const BUFFER: usize = 256 << 10;
/// Longest payload that is neither data nor skipped, bytes: errors and status.
const MAX_PAYLOAD: u64 = 64 << 10;

/// What was received and not handled yet.
pub(super) struct Incoming {
    style: HeaderStyle,
    context: Option<u32>,
    buf: IoBuf,
    start: usize,
    end: usize,
    data: Option<Data>,
    partial: Vec<Partial>,
}

/// Data of a read that is being received.
struct Data {
    cookie: u64,
    into: IoBuf,
    filled: usize,
    last: bool,
}

/// What is known of a reply whose last chunk has not come.
struct Partial {
    cookie: u64,
    /// Bytes of a read that have come.
    covered: u64,
    failed: Option<Error>,
    status: Option<Answer>,
}

fn broken(what: &str) -> Error {
    Error::new(ErrorKind::Io, format!("the server breaks the protocol: {what}"))
}

impl Incoming {
    pub(super) fn new(style: HeaderStyle, context: Option<u32>) -> Incoming {
        Incoming {
            style,
            context,
            buf: IoBuf::alloc(BUFFER),
            start: 0,
            end: 0,
            data: None,
            partial: Vec::new(),
        }
    }

    /// Receives what there is; 0 at the end of the stream.
    pub(super) fn receive(&mut self, stream: &Stream) -> io::Result<usize> {
        if let Some(data) = &mut self.data {
            let count = stream.recv(&data.into.slice(data.filled..data.into.len()))?;
            data.filled += count;
            return Ok(count);
        }
        if self.start != 0 {
            let left = self.end - self.start;
            self.buf.slice(0..left).copy_from_buf(&self.buf.slice(self.start..self.end));
            (self.start, self.end) = (0, left);
        }
        let count = stream.recv(&self.buf.slice(self.end..BUFFER))?;
        self.end += count;
        Ok(count)
    }

    /// Handles everything that is there as a whole. An error is the end of the link.
    pub(super) fn work_through(&mut self, session: &Session, link: &Link) -> Result<()> {
        loop {
            if let Some(data) = self.data.take_if(|data| data.filled == data.into.len()) {
                if data.last {
                    self.finish(session, link, data.cookie);
                }
            } else if self.data.is_some() || !self.next(session, link)? {
                return Ok(());
            }
        }
    }

    /// Handles the next header; whether it was there, with its payload or the begin of its data.
    fn next(&mut self, session: &Session, link: &Link) -> Result<bool> {
        let there = self.end - self.start;
        let mut bytes = [0; 32];
        if there < 4 {
            return Ok(false);
        }
        self.peek(0, &mut bytes[..4]);
        let [a, b, c, d, ..] = bytes;
        let header_len = Header::len(self.style, [a, b, c, d])?;
        if there < header_len {
            return Ok(false);
        }
        self.peek(0, &mut bytes[..header_len]);
        match Header::decode(&bytes[..header_len]).ok_or_else(|| broken("a header"))? {
            Header::Simple { error, cookie } => {
                let command = self.asked(session, link, cookie)?;
                self.start += header_len;
                self.simple(session, link, cookie, error, command)
            }
            Header::Chunk { flags, kind, cookie, offset, len } => {
                let command = self.asked(session, link, cookie)?;
                if offset.is_some_and(|offset| offset != command.offset()) {
                    return Err(broken("a reply is about another offset"));
                }
                let last = flags & chunk::DONE != 0;
                if kind == chunk::OFFSET_DATA {
                    return self.data_chunk(header_len, cookie, &command, len, last);
                }
                if len > MAX_PAYLOAD {
                    return Err(broken("a chunk is too long"));
                }
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                if there < header_len + len {
                    return Ok(false);
                }
                let mut payload = vec![0; len];
                self.peek(header_len, &mut payload);
                self.start += header_len + len;
                self.chunk(kind, cookie, &command, &payload)?;
                if kind == chunk::NONE && !last {
                    return Err(broken("an empty chunk is not the last"));
                }
                if last {
                    self.finish(session, link, cookie);
                }
                Ok(true)
            }
        }
    }

    /// Copies out what lies `at` bytes after what was handled.
    fn peek(&self, at: usize, into: &mut [u8]) {
        let start = self.start + at;
        self.buf.slice(start..start + into.len()).copy_to(into);
    }

    fn asked(&self, session: &Session, link: &Link, cookie: u64) -> Result<Command> {
        let found = session.find(link.id(), cookie);
        found.ok_or_else(|| broken("a reply to what was not asked"))
    }

    fn simple(
        &mut self,
        session: &Session,
        link: &Link,
        cookie: u64,
        error: u32,
        command: Command,
    ) -> Result<bool> {
        if error != 0 {
            self.partial(cookie).failed = Some(refusal(error, ""));
        } else if let Command::Read { into, .. } = command {
            if self.style != HeaderStyle::Simple {
                return Err(broken("a read is answered without structure"));
            }
            self.partial(cookie).covered = into.len() as u64;
            self.begin_data(cookie, into, true);
            return Ok(true);
        }
        self.finish(session, link, cookie);
        Ok(true)
    }

    /// Data follows: takes what is there of it.
    fn begin_data(&mut self, cookie: u64, into: IoBuf, last: bool) {
        let filled = into.len().min(self.end - self.start);
        let there = self.start..self.start + filled;
        into.slice(0..filled).copy_from_buf(&self.buf.slice(there));
        self.start += filled;
        self.data = Some(Data { cookie, into, filled, last });
    }

    fn data_chunk(
        &mut self,
        header_len: usize,
        cookie: u64,
        command: &Command,
        len: u64,
        last: bool,
    ) -> Result<bool> {
        if self.end - self.start < header_len + 8 {
            return Ok(false);
        }
        let mut at = [0; 8];
        self.peek(header_len, &mut at);
        let len = len.checked_sub(8).filter(|len| *len != 0);
        let into = len.and_then(|len| part(command, u64::from_be_bytes(at), len));
        let into = into.ok_or_else(|| broken("data of what was not asked"))?;
        self.start += header_len + 8;
        self.partial(cookie).covered += into.len() as u64;
        self.begin_data(cookie, into, last);
        Ok(true)
    }

    fn chunk(&mut self, kind: u16, cookie: u64, command: &Command, payload: &[u8]) -> Result<()> {
        match kind {
            chunk::NONE if payload.is_empty() => {}
            chunk::OFFSET_HOLE => {
                let mut fields = crate::nbd::proto::Fields::new(payload);
                let (at, len) = (fields.u64(), fields.u32());
                let into = match (at, len) {
                    (Some(at), Some(len)) if len != 0 && fields.is_empty() => {
                        part(command, at, len.into())
                    }
                    _ => None,
                };
                let into = into.ok_or_else(|| broken("a hole where nothing was asked"))?;
                into.fill_zero();
                self.partial(cookie).covered += into.len() as u64;
            }
            chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT => {
                let found = decode_status(kind, payload);
                let Some((context, list)) = found else { return Err(broken("a status")) };
                if Some(context) != self.context || !matches!(command, Command::Status { .. }) {
                    return Err(broken("a status that was not asked for"));
                }
                if let Some(first) = list.first() {
                    self.partial(cookie).status = Some(Answer::Status(*first));
                }
            }
            _ if kind & chunk::ERR != 0 => {
                let (error, message) = decode_error(payload).ok_or_else(|| broken("an error"))?;
                self.partial(cookie).failed = Some(refusal(error, &message));
            }
            _ => return Err(broken("a chunk of an unknown kind")),
        }
        Ok(())
    }

    fn partial(&mut self, cookie: u64) -> &mut Partial {
        let known = self.partial.iter().position(|partial| partial.cookie == cookie);
        let place = known.unwrap_or_else(|| {
            self.partial.push(Partial { cookie, covered: 0, failed: None, status: None });
            self.partial.len() - 1
        });
        &mut self.partial[place]
    }

    /// The last of a reply has come.
    fn finish(&mut self, session: &Session, link: &Link, cookie: u64) {
        let known = self.partial.iter().position(|partial| partial.cookie == cookie);
        let partial = known.map(|place| self.partial.swap_remove(place));
        let Some(command) = session.find(link.id(), cookie) else { return };
        let covered = partial.as_ref().map_or(0, |partial| partial.covered);
        let outcome = match (partial, &command) {
            (Some(Partial { failed: Some(error), .. }), _) => Err(error),
            (_, Command::Read { into, .. }) if covered != into.len() as u64 => {
                Err(broken("less data came than was asked for"))
            }
            (Some(Partial { status: Some(status), .. }), Command::Status { .. }) => Ok(status),
            (_, Command::Status { .. }) => Err(broken("no status came")),
            _ => Ok(Answer::Done),
        };
        session.answered(link, cookie, outcome);
    }
}

/// The part of a read's buffer that `len` bytes at `at` go to, if they were asked for.
fn part(command: &Command, at: u64, len: u64) -> Option<IoBuf> {
    let Command::Read { at: base, into } = command else { return None };
    let start = usize::try_from(at.checked_sub(*base)?).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    (end <= into.len()).then(|| into.slice(start..end))
}

fn refusal(number: u32, message: &str) -> Error {
    let name = errno::name(number);
    let text =
        if message.is_empty() { format!("the server says: {name}") } else { message.to_owned() };
    Error::new(errno::to_kind(number), text)
}
