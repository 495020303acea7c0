//! Headers of requests.

use super::{Fields, HeaderStyle, cmd, flag};
use crate::error::{Error, ErrorKind, Result};

const MAGIC: u32 = 0x2560_9513;
const EXTENDED_MAGIC: u32 = 0x21e4_1c71;

/// Longest header of a request, bytes.
pub(crate) const MAX_HEADER: usize = 32;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    /// Names the request in its reply.
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    /// Bytes that the request is about, or that follow it.
    pub(crate) len: u64,
}

impl Request {
    /// Length of a header, bytes.
    pub(crate) const fn header_len(style: HeaderStyle) -> usize {
        match style {
            HeaderStyle::Simple | HeaderStyle::Structured => 28,
            HeaderStyle::Extended => MAX_HEADER,
        }
    }

    /// Reads a header of exactly [`header_len`](Request::header_len) bytes.
    pub(crate) fn decode(style: HeaderStyle, header: &[u8]) -> Result<Request> {
        let mut fields = Fields::new(header);
        Request::fields(style, &mut fields).ok_or_else(|| {
            let magic = Fields::new(header).u32().unwrap_or(0);
            let context = format!("a request begins with {magic:#010x} instead of its magic");
            Error::new(ErrorKind::InvalidArgument, context)
        })
    }

    fn fields(style: HeaderStyle, fields: &mut Fields<'_>) -> Option<Request> {
        let extended = style == HeaderStyle::Extended;
        let magic = if extended { EXTENDED_MAGIC } else { MAGIC };
        if fields.u32()? != magic {
            return None;
        }
        let (flags, command) = (fields.u16()?, fields.u16()?);
        let (cookie, offset) = (fields.u64()?, fields.u64()?);
        let len = if extended { fields.u64()? } else { u64::from(fields.u32()?) };
        Some(Request { flags, command, cookie, offset, len })
    }

    /// Writes the header. Lengths beyond 32 bits need the extended style.
    pub(crate) fn encode(&self, style: HeaderStyle, out: &mut Vec<u8>) {
        let extended = style == HeaderStyle::Extended;
        let magic = if extended { EXTENDED_MAGIC } else { MAGIC };
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.command.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        if extended {
            out.extend_from_slice(&self.len.to_be_bytes());
        } else {
            let len = u32::try_from(self.len).unwrap_or(u32::MAX);
            out.extend_from_slice(&len.to_be_bytes());
        }
    }

    /// How many bytes follow the header.
    pub(crate) fn payload_len(&self, style: HeaderStyle) -> u64 {
        let follows = match style {
            HeaderStyle::Simple | HeaderStyle::Structured => self.command == cmd::WRITE,
            HeaderStyle::Extended => self.flags & flag::PAYLOAD_LEN != 0,
        };
        if follows { self.len } else { 0 }
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
