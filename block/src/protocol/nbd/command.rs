//! What is asked of a server, and how it goes over the wire.

use std::ops::Range;

use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::nbd::proto::reply::Descriptor;
use crate::nbd::proto::request::Request;
use crate::nbd::proto::{HeaderStyle, cmd, flag};
use crate::net::Outbox;

/// A request that can be sent again.
#[derive(Clone)]
pub(super) enum Command {
    Read { at: u64, into: IoBuf },
    Write { at: u64, from: IoBuf, fua: bool },
    WriteZeroes { range: Range<u64>, flags: WriteFlags },
    Trim { range: Range<u64> },
    Flush,
    Status { range: Range<u64> },
}

/// What a server answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Status(Descriptor),
}

impl Command {
    /// Appends the request to what a link has to send.
    pub(super) fn encode(&self, style: HeaderStyle, cookie: u64, out: &mut Outbox) {
        let extended = style == HeaderStyle::Extended;
        let (command, flags, range) = match self {
            Command::Read { at, into } => (cmd::READ, 0, span(*at, into)),
            Command::Write { at, from, fua } => {
                let payload = if extended { flag::PAYLOAD_LEN } else { 0 };
                let fua = if *fua { flag::FUA } else { 0 };
                (cmd::WRITE, payload | fua, span(*at, from))
            }
            Command::WriteZeroes { range, flags } => {
                let wire = [
                    (flags.fua, flag::FUA),
                    (!flags.may_unmap, flag::NO_HOLE),
                    (flags.no_fallback, flag::FAST_ZERO),
                ];
                let wire = wire.iter().filter(|(set, _)| *set).fold(0, |all, (_, bit)| all | bit);
                (cmd::WRITE_ZEROES, wire, range.clone())
            }
            Command::Trim { range } => (cmd::TRIM, 0, range.clone()),
            Command::Flush => (cmd::FLUSH, 0, 0..0),
            Command::Status { range } => (cmd::BLOCK_STATUS, flag::REQ_ONE, range.clone()),
        };
        let (offset, len) = (range.start, range.end - range.start);
        let request = Request { flags, command, cookie, offset, len };
        out.head(|bytes| request.encode(style, bytes));
        if let Command::Write { from, .. } = self {
            out.body(from.clone());
        }
    }

    /// Offset of the request.
    pub(super) fn offset(&self) -> u64 {
        match self {
            Command::Read { at, .. } | Command::Write { at, .. } => *at,
            Command::WriteZeroes { range, .. }
            | Command::Trim { range }
            | Command::Status { range } => range.start,
            Command::Flush => 0,
        }
    }
}

/// The bytes of the disk that a buffer is about; the node has checked that they exist.
fn span(at: u64, buf: &IoBuf) -> Range<u64> {
    at..at + buf.len() as u64
}
