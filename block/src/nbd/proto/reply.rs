//! Headers and payloads of replies.

use super::{Fields, HeaderStyle, MAX_STRING, chunk};
use crate::error::{Error, ErrorKind, Result};

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

/// Length of a simple header, the shortest, bytes.
pub(crate) const SIMPLE_LEN: usize = 16;

/// The header of a whole simple reply or of one chunk of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// `error` is 0 for success; the data of a successful read follows.
    Simple { error: u32, cookie: u64 },
    /// `len` bytes of payload follow. Only the extended style tells the request's offset.
    Chunk { flags: u16, kind: u16, cookie: u64, offset: Option<u64>, len: u64 },
}

impl Header {
    /// How long the header is that begins with these four bytes.
    pub(crate) fn len(style: HeaderStyle, magic: [u8; 4]) -> Result<usize> {
        match (u32::from_be_bytes(magic), style) {
            (SIMPLE_MAGIC, HeaderStyle::Simple | HeaderStyle::Structured) => Ok(SIMPLE_LEN),
            (STRUCTURED_MAGIC, HeaderStyle::Structured) => Ok(20),
            (EXTENDED_MAGIC, HeaderStyle::Extended) => Ok(32),
            (magic, _) => {
                let context = format!("a reply begins with {magic:#010x} instead of its magic");
                Err(Error::new(ErrorKind::Io, context))
            }
        }
    }

    /// Reads a header of exactly [`len`](Header::len) bytes.
    pub(crate) fn decode(header: &[u8]) -> Option<Header> {
        let mut fields = Fields::new(header);
        match fields.u32()? {
            SIMPLE_MAGIC => Some(Header::Simple { error: fields.u32()?, cookie: fields.u64()? }),
            magic => {
                let (flags, kind, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
                let (offset, len) = if magic == EXTENDED_MAGIC {
                    (Some(fields.u64()?), fields.u64()?)
                } else {
                    (None, u64::from(fields.u32()?))
                };
                Some(Header::Chunk { flags, kind, cookie, offset, len })
            }
        }
    }

    /// Writes the header.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Header::Simple { error, cookie } => {
                out.extend_from_slice(&SIMPLE_MAGIC.to_be_bytes());
                out.extend_from_slice(&error.to_be_bytes());
                out.extend_from_slice(&cookie.to_be_bytes());
            }
            Header::Chunk { flags, kind, cookie, offset, len } => {
                let magic = if offset.is_some() { EXTENDED_MAGIC } else { STRUCTURED_MAGIC };
                out.extend_from_slice(&magic.to_be_bytes());
                out.extend_from_slice(&flags.to_be_bytes());
                out.extend_from_slice(&kind.to_be_bytes());
                out.extend_from_slice(&cookie.to_be_bytes());
                if let Some(offset) = offset {
                    out.extend_from_slice(&offset.to_be_bytes());
                    out.extend_from_slice(&len.to_be_bytes());
                } else {
                    // Chunks are cut so that their length fits.
                    let len = u32::try_from(len).unwrap_or(u32::MAX);
                    out.extend_from_slice(&len.to_be_bytes());
                }
            }
        }
    }
}

/// A stretch of an export in one metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) len: u64,
    pub(crate) flags: u64,
}

/// The payload of a block status chunk.
pub(crate) fn encode_status(style: HeaderStyle, context: u32, list: &[Descriptor]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + list.len() * 16);
    out.extend_from_slice(&context.to_be_bytes());
    if style == HeaderStyle::Extended {
        let count = u32::try_from(list.len()).unwrap_or(0);
        out.extend_from_slice(&count.to_be_bytes());
    }
    for Descriptor { len, flags } in list {
        if style == HeaderStyle::Extended {
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&flags.to_be_bytes());
        } else {
            // The server cuts what it reports so that both fit.
            let (len, flags) = (u32::try_from(*len), u32::try_from(*flags));
            out.extend_from_slice(&len.unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(&flags.unwrap_or(0).to_be_bytes());
        }
    }
    out
}

/// Reads the payload of a block status chunk of that kind: the context, and its first descriptor
/// (or more). `None` if it is not well formed.
pub(crate) fn decode_status(kind: u16, payload: &[u8]) -> Option<(u32, Vec<Descriptor>)> {
    let mut fields = Fields::new(payload);
    let context = fields.u32()?;
    let extended = kind == chunk::BLOCK_STATUS_EXT;
    let counted = if extended { fields.u32()? } else { 0 };
    let mut list = Vec::new();
    while !fields.is_empty() {
        let (len, flags) = if extended {
            (fields.u64()?, fields.u64()?)
        } else {
            (u64::from(fields.u32()?), u64::from(fields.u32()?))
        };
        if len == 0 {
            return None;
        }
        list.push(Descriptor { len, flags });
    }
    let fits = counted == 0 || usize::try_from(counted) == Ok(list.len());
    (fits && !list.is_empty()).then_some((context, list))
}

/// The payload of an error chunk.
pub(crate) fn encode_error(error: u32, message: &str) -> Vec<u8> {
    let end = message.floor_char_boundary(MAX_STRING);
    let message = &message.as_bytes()[..end];
    let mut out = Vec::with_capacity(6 + message.len());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&u16::try_from(message.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(message);
    out
}

/// Reads the payload of any error chunk: its number and message. `None` if it is not well formed.
pub(crate) fn decode_error(payload: &[u8]) -> Option<(u32, String)> {
    let mut fields = Fields::new(payload);
    let (error, len) = (fields.u32()?, fields.u16()?);
    let message = fields.take(usize::from(len))?;
    (error != 0).then(|| (error, String::from_utf8_lossy(message).into_owned()))
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
