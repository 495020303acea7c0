//! Messages as they are on the wire: a header of 12 bytes, a payload in the byte order of the host, and
//! descriptors beside them.

use ferry_block::{Error, ErrorKind, Result};

/// Bytes of request, flags and size.
pub(crate) const HEADER_LEN: usize = 12;
/// Longest payload that we read; the longest that exists is a memory table of 264 bytes.
pub(crate) const MAX_PAYLOAD: usize = 1024;
/// Most descriptors that a message has: those of a memory table.
pub(crate) const MAX_FDS: usize = 8;
/// Longest configuration space.
const MAX_CONFIG: u32 = 256;

/// Bits of a header's flags: the version, which is 1, and two more.
const VERSION_MASK: u32 = 3;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// A bit beside a ring's number: there is no descriptor.
const NO_FD: u64 = 1 << 8;
const RING_MASK: u64 = 0xff;

/// Feature bits that are vhost's and not virtio's.
pub(crate) mod feature {
    /// Writes to guest memory are logged.
    pub(crate) const LOG_ALL: u64 = 1 << 26;
    /// There are protocol features.
    pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;
}

/// Protocol features.
pub(crate) mod protocol {
    /// There are several queues.
    pub(crate) const MQ: u64 = 1 << 0;
    /// The log of writes is shared memory.
    pub(crate) const LOG_SHMFD: u64 = 1 << 1;
    /// Every message can be answered.
    pub(crate) const REPLY_ACK: u64 = 1 << 3;
    /// There is a channel for our messages.
    pub(crate) const BACKEND_REQ: u64 = 1 << 5;
    /// The configuration space is ours.
    pub(crate) const CONFIG: u64 = 1 << 9;
    /// Memory comes and goes region by region.
    pub(crate) const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

/// The message of ours that says that the configuration space has changed.
pub(crate) const BACKEND_CONFIG_CHANGE: u32 = 2;

/// What precedes a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) request: u32,
    flags: u32,
    /// Bytes of the payload, at most [`MAX_PAYLOAD`].
    pub(crate) len: usize,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// It is not one of this protocol's version, or its message is too long.
    pub(crate) fn read(bytes: [u8; HEADER_LEN]) -> Result<Header> {
        let mut fields = Fields(&bytes);
        let (request, flags, size) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if flags & VERSION_MASK != VERSION {
            return Err(bad(format!("a message has the flags {flags:#x}, which is not version 1")));
        }
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        if len > MAX_PAYLOAD {
            return Err(bad(format!("message {request} has {size} bytes")));
        }
        Ok(Header { request, flags, len })
    }

    /// Whether the front end waits for an answer to a message that has none by itself.
    pub(crate) fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// A message of ours: an answer to `request`, or a request on our own channel.
pub(crate) fn message(request: u32, is_reply: bool, payload: &[u8]) -> Vec<u8> {
    let flags = if is_reply { VERSION | REPLY } else { VERSION };
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    for field in [request, flags, len] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// A ring and a number that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingValue {
    pub(crate) index: u32,
    pub(crate) value: u32,
}

impl RingValue {
    /// As a payload.
    pub(crate) fn bytes(self) -> Vec<u8> {
        [self.index, self.value].map(u32::to_ne_bytes).concat()
    }
}

/// Where the parts of a ring are, in the front end's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingAddresses {
    pub(crate) index: u32,
    pub(crate) desc: u64,
    pub(crate) used: u64,
    pub(crate) avail: u64,
}

/// A ring whose descriptor comes beside the message, unless it says that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingFd {
    pub(crate) index: u32,
    pub(crate) has_fd: bool,
}

/// A part of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionLayout {
    /// The guest's address of its first byte.
    pub(crate) guest: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// The front end's address of its first byte.
    pub(crate) user: u64,
    /// Where in its file it begins.
    pub(crate) offset: u64,
}

/// A part of the configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigPart {
    pub(crate) offset: u32,
    flags: u32,
    pub(crate) data: Vec<u8>,
}

impl ConfigPart {
    /// As a payload.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let len = u32::try_from(self.data.len()).unwrap_or(u32::MAX);
        let fields = [self.offset, len, self.flags].map(u32::to_ne_bytes);
        fields.concat().into_iter().chain(self.data.iter().copied()).collect()
    }
}

/// What a front end asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<RegionLayout>),
    SetLogBase { size: u64, offset: u64 },
    SetLogFd,
    SetVringNum(RingValue),
    SetVringAddr(RingAddresses),
    SetVringBase(RingValue),
    GetVringBase(RingValue),
    SetVringKick(RingFd),
    SetVringCall(RingFd),
    SetVringErr(RingFd),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable(RingValue),
    SetBackendReqFd,
    GetConfig(ConfigPart),
    SetConfig(ConfigPart),
    GetMaxMemSlots,
    AddMemRegion(RegionLayout),
    RemoveMemRegion(RegionLayout),
}

impl Request {
    /// Reads the payload of the request of that number.
    ///
    /// # Errors
    /// We know no such request, or its payload is too short.
    pub(crate) fn read(number: u32, payload: &[u8]) -> Result<Request> {
        let mut fields = Fields(payload);
        Ok(match number {
            1 => Request::GetFeatures,
            2 => Request::SetFeatures(fields.u64()?),
            3 => Request::SetOwner,
            4 => Request::ResetOwner,
            5 => Request::SetMemTable(fields.regions()?),
            6 => Request::SetLogBase { size: fields.u64()?, offset: fields.u64()? },
            7 => Request::SetLogFd,
            8 => Request::SetVringNum(fields.ring_value()?),
            9 => Request::SetVringAddr(fields.ring_addresses()?),
            10 => Request::SetVringBase(fields.ring_value()?),
            11 => Request::GetVringBase(fields.ring_value()?),
            12 => Request::SetVringKick(fields.ring_fd()?),
            13 => Request::SetVringCall(fields.ring_fd()?),
            14 => Request::SetVringErr(fields.ring_fd()?),
            15 => Request::GetProtocolFeatures,
            16 => Request::SetProtocolFeatures(fields.u64()?),
            17 => Request::GetQueueNum,
            18 => Request::SetVringEnable(fields.ring_value()?),
            21 => Request::SetBackendReqFd,
            24 => Request::GetConfig(fields.config()?),
            25 => Request::SetConfig(fields.config()?),
            36 => Request::GetMaxMemSlots,
            37 => Request::AddMemRegion(fields.single_region()?),
            38 => Request::RemoveMemRegion(fields.single_region()?),
            _ => return Err(bad(format!("message {number} is none that was agreed on"))),
        })
    }
}

/// Takes numbers off the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (first, rest) =
            self.0.split_first_chunk().ok_or_else(|| bad("a message is cut off"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn ring_value(&mut self) -> Result<RingValue> {
        Ok(RingValue { index: self.u32()?, value: self.u32()? })
    }

    fn ring_addresses(&mut self) -> Result<RingAddresses> {
        let (index, _flags) = (self.u32()?, self.u32()?);
        let (desc, used, avail) = (self.u64()?, self.u64()?, self.u64()?);
        Ok(RingAddresses { index, desc, used, avail })
    }

    fn ring_fd(&mut self) -> Result<RingFd> {
        let word = self.u64()?;
        let index = u32::try_from(word & RING_MASK).unwrap_or(u32::MAX);
        Ok(RingFd { index, has_fd: word & NO_FD == 0 })
    }

    fn region(&mut self) -> Result<RegionLayout> {
        let (guest, size) = (self.u64()?, self.u64()?);
        Ok(RegionLayout { guest, size, user: self.u64()?, offset: self.u64()? })
    }

    fn regions(&mut self) -> Result<Vec<RegionLayout>> {
        let (count, _padding) = (self.u32()?, self.u32()?);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > MAX_FDS {
            return Err(bad(format!("a memory table has {count} regions, and {MAX_FDS} at most")));
        }
        (0..count).map(|_| self.region()).collect()
    }

    fn single_region(&mut self) -> Result<RegionLayout> {
        let _padding = self.u64()?;
        self.region()
    }

    fn config(&mut self) -> Result<ConfigPart> {
        let (offset, size, flags) = (self.u32()?, self.u32()?, self.u32()?);
        if size > MAX_CONFIG || offset > MAX_CONFIG {
            return Err(bad(format!("{size} bytes of the configuration at {offset}")));
        }
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        let data = self.0.get(..len).ok_or_else(|| bad("a message is cut off"))?;
        Ok(ConfigPart { offset, flags, data: data.to_vec() })
    }
}

/// The front end does not keep to the protocol.
pub(crate) fn bad(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, what.into())
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
