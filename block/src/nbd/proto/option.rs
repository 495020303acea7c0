//! Options and the replies to them, as both sides of a handshake see them.

use super::{Fields, MAX_STRING, OPTION_MAGIC, OPTION_REPLY_MAGIC};
use crate::error::{Error, ErrorKind, Result};

/// Length of the header of an option, bytes.
pub(crate) const HEADER: usize = 16;
/// Length of the header of a reply to an option, bytes.
pub(crate) const REPLY_HEADER: usize = 20;
/// Longest option that a server reads, bytes: a longer one is skipped and refused.
pub(crate) const MAX_OPTION: u32 = 64 << 10;
/// Longest reply to an option that a client reads, bytes.
pub(crate) const MAX_REPLY: u32 = 64 << 10;

/// Reads the header of an option: its number and the length of its data.
pub(crate) fn decode(header: [u8; HEADER]) -> Result<(u32, u32)> {
    let mut fields = Fields::new(&header);
    match (fields.u64(), fields.u32(), fields.u32()) {
        (Some(OPTION_MAGIC), Some(option), Some(len)) => Ok((option, len)),
        _ => Err(Error::new(ErrorKind::InvalidArgument, "an option does not begin with its magic")),
    }
}

/// Writes an option.
pub(crate) fn encode(option: u32, data: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(data);
}

/// The header of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyHeader {
    pub(crate) option: u32,
    pub(crate) kind: u32,
    pub(crate) len: u32,
}

/// Reads the header of a reply.
pub(crate) fn decode_reply(header: [u8; REPLY_HEADER]) -> Result<ReplyHeader> {
    let mut fields = Fields::new(&header);
    match (fields.u64(), fields.u32(), fields.u32(), fields.u32()) {
        (Some(OPTION_REPLY_MAGIC), Some(option), Some(kind), Some(len)) if len <= MAX_REPLY => {
            Ok(ReplyHeader { option, kind, len })
        }
        (Some(OPTION_REPLY_MAGIC), .., Some(len)) => {
            let context = format!("a reply to an option has {len} bytes, which is too long");
            Err(Error::new(ErrorKind::Io, context))
        }
        _ => Err(Error::new(ErrorKind::Io, "a reply to an option does not begin with its magic")),
    }
}

/// Writes a reply.
pub(crate) fn encode_reply(option: u32, kind: u32, data: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(data);
}

/// Appends a string with its length before it.
pub(crate) fn put_string(text: &str, out: &mut Vec<u8>) {
    let text = &text.as_bytes()[..text.floor_char_boundary(MAX_STRING)];
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(text);
}
