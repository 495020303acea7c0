//! What the protocol consists of: numbers, headers and their layout. Nothing here does any I/O.
//!
//! Names follow `doc/proto.md` of the NBD project; all numbers go over the wire big-endian.

pub(crate) mod errno;
pub(crate) mod option;
pub(crate) mod reply;
pub(crate) mod request;

/// First words of a server.
pub(crate) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second words of a newstyle server, and first of every option.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First words of every reply to an option.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Second words of an oldstyle server.
pub(crate) const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;

/// Longest string that may be sent, bytes.
pub(crate) const MAX_STRING: usize = 4096;
/// Longest payload of a read or write, bytes: what clients may assume of a server that says nothing.
pub(crate) const MAX_PAYLOAD: u32 = 32 << 20;
/// Port that is registered for NBD.
pub(crate) const DEFAULT_PORT: u16 = 10809;

/// Handshake flags of the server.
pub(crate) mod handshake {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
    /// The same two as the client answers them.
    pub(crate) const C_FIXED_NEWSTYLE: u32 = 1 << 0;
    pub(crate) const C_NO_ZEROES: u32 = 1 << 1;
}

/// Transmission flags: what an export can do.
pub(crate) mod export {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
    pub(crate) const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

    /// What our client asks for when the export can do it, with what that is called.
    pub(crate) const OFFERS: [(u16, &str); 5] = [
        (SEND_FLUSH, "flush"),
        (SEND_FUA, "make single writes durable"),
        (SEND_TRIM, "trim"),
        (SEND_WRITE_ZEROES, "write zeroes"),
        (SEND_FAST_ZERO, "refuse slow zeroes"),
    ];
}

/// Option numbers.
pub(crate) mod opt {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
    pub(crate) const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options; errors have the highest bit set.
pub(crate) mod rep {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERR: u32 = 1 << 31;
    pub(crate) const ERR_UNSUP: u32 = ERR | 1;
    pub(crate) const ERR_POLICY: u32 = ERR | 2;
    pub(crate) const ERR_INVALID: u32 = ERR | 3;
    pub(crate) const ERR_TLS_REQD: u32 = ERR | 5;
    pub(crate) const ERR_UNKNOWN: u32 = ERR | 6;
    pub(crate) const ERR_SHUTDOWN: u32 = ERR | 7;
    pub(crate) const ERR_TOO_BIG: u32 = ERR | 9;
    pub(crate) const ERR_EXT_HEADER_REQD: u32 = ERR | 10;
}

/// Kinds of information about an export.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Commands.
pub(crate) mod cmd {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub(crate) mod flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
    pub(crate) const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Types of the chunks of a structured or extended reply; errors have the highest bit set.
pub(crate) mod chunk {
    /// Flag, not a type: the last chunk of a reply.
    pub(crate) const DONE: u16 = 1 << 0;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const BLOCK_STATUS_EXT: u16 = 6;
    pub(crate) const ERR: u16 = 1 << 15;
    pub(crate) const ERROR: u16 = ERR | 1;
}

/// Status flags of the metadata contexts.
pub(crate) mod state {
    /// `base:allocation`: occupies no space.
    pub(crate) const HOLE: u64 = 1 << 0;
    /// `base:allocation`: reads as zeroes.
    pub(crate) const ZERO: u64 = 1 << 1;
    /// `qemu:dirty-bitmap:*`: dirty.
    pub(crate) const DIRTY: u64 = 1 << 0;
}

/// Name of the metadata context that every server has.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";
/// Name of the context that tells how far down a backing chain the data is.
pub(crate) const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";
/// What the names of bitmap contexts begin with.
pub(crate) const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";

/// How headers of requests and replies look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HeaderStyle {
    /// Replies have no structure.
    #[default]
    Simple,
    /// Replies come in typed chunks.
    Structured,
    /// And requests and replies have 64-bit lengths.
    Extended,
}

/// Takes big-endian numbers and byte strings from the front of a message.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Fields<'a> {
        Fields(bytes)
    }

    /// The next `len` bytes, if there are that many.
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string of the length that stands before it in 32 bits.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.u32()?).ok().filter(|len| *len <= MAX_STRING)?;
        std::str::from_utf8(self.take(len)?).ok()
    }

    /// Everything that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}
