//! What a driver asks for: a descriptor chain read as a block request (virtio 1.2, section 5.2.6).
//!
//! The framing is the driver's choice (section 2.7.4.1): header and data may share buffers or be split
//! anywhere. All that counts is that the first 16 readable bytes are the header and the last writable byte
//! is the status. Every request has exactly one outcome, decided here or by the disk:
//!
//! | what is wrong | outcome |
//! |---|---|
//! | chain malformed, buffers outside of memory, no header, no status byte | the device needs a reset |
//! | unknown type, unknown flag, unmap flag on a discard, command not negotiated | `UNSUPP` |
//! | write to a read-only disk, range beyond the end, not whole sectors, bad segment count | `IOERR` |
//! | the disk failed | `IOERR` |

use std::ops::Range;

use ferry_block::IoBuf;
use vm_memory::GuestAddress;

use crate::virtio::features;
use crate::virtio::guest_buf::GuestBuffers;
use crate::virtio::queue::{Chain, QueueError};

/// Bytes of a sector in the protocol, whatever the disk's own block size (section 5.2.4).
pub(super) const SECTOR_LEN: u64 = 512;
/// Bytes of type, reserved and sector.
const HEADER_LEN: usize = 16;
/// Bytes of one segment of a discard or write-zeroes request.
const RANGE_LEN: usize = 16;
/// Bytes of an identifier.
pub(super) const ID_LEN: usize = 20;
/// Most segments of a discard or write-zeroes request.
pub(super) const MAX_RANGES: usize = 16;
/// Most sectors in one such segment: 2 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;
/// The only flag of a segment.
const RANGE_UNMAP: u32 = 1;

/// The status byte (section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    /// Done.
    Ok = 0,
    /// The device or the driver failed.
    IoErr = 1,
    /// We have no such command.
    Unsupported = 2,
}

/// The disk's properties that decide whether a request is possible.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Bytes that the driver has been told of.
    pub(super) len: u64,
    /// Writes are refused.
    pub(super) read_only: bool,
    /// What was negotiated.
    pub(super) features: u64,
    /// Padded with zeroes.
    pub(super) id: [u8; ID_LEN],
}

/// One range of a discard or write-zeroes request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ZeroRange {
    /// Bytes.
    pub(super) range: Range<u64>,
    /// The driver does not mind if the space is given back.
    pub(super) unmap: bool,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Op {
    /// Fill the buffer from the disk.
    Read {
        /// Byte offset.
        at: u64,
        /// Where to.
        into: IoBuf,
    },
    /// Write the buffer to the disk.
    Write {
        /// Byte offset.
        at: u64,
        /// Where from.
        from: IoBuf,
    },
    /// Make everything durable.
    Flush,
    /// The contents are not needed any more.
    Discard(Vec<ZeroRange>),
    /// Make these read as zeroes.
    WriteZeroes(Vec<ZeroRange>),
    /// Already decided: no disk is needed.
    Done {
        /// What to answer.
        status: Status,
        /// Bytes written before the status byte without a gap.
        written: u64,
    },
}

/// One request of the driver.
#[derive(Debug)]
pub(super) struct Request {
    /// Names the chain in the used ring.
    pub(super) head: u16,
    /// Where the status byte goes.
    pub(super) status_at: GuestAddress,
    /// Writable bytes before the status byte.
    pub(super) room: u64,
    /// What is to be done.
    pub(super) op: Op,
}

impl Request {
    /// Reads a chain as a request.
    ///
    /// # Errors
    /// [`QueueError`] when the chain cannot be a request at all; the device then needs a reset.
    pub(super) fn read(
        chain: &Chain,
        buffers: &GuestBuffers,
        rules: &Rules,
    ) -> Result<Self, QueueError> {
        let head = chain.head();
        let mut header = [0; HEADER_LEN];
        buffers.read_head(chain, &mut header)?;
        let status_at = buffers.last_writable(chain)?;
        let room = chain.writable_len() - 1;
        let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let op = match u32::from_le_bytes([t0, t1, t2, t3]) {
            TYPE_IN => match rules.transfer(sector, room) {
                Some(_) if room == 0 => Op::NOTHING,
                Some(at) => {
                    let into = buffers.io_buf(head, chain.writable(), 0, room)?;
                    Op::Read { at, into }
                }
                None => Op::failed(Status::IoErr),
            },
            TYPE_OUT => {
                let len = chain.readable_len() - header_len();
                match rules.transfer(sector, len).filter(|_| !rules.read_only) {
                    Some(_) if len == 0 => Op::NOTHING,
                    Some(at) => {
                        let from = buffers.io_buf(head, chain.readable(), header_len(), len)?;
                        Op::Write { at, from }
                    }
                    None => Op::failed(Status::IoErr),
                }
            }
            TYPE_FLUSH => Op::Flush,
            TYPE_GET_ID => get_id(chain, buffers, room, &rules.id)?,
            TYPE_DISCARD if rules.features & features::BLK_DISCARD != 0 => {
                read_ranges(chain, buffers, rules, false)?
            }
            TYPE_WRITE_ZEROES if rules.features & features::BLK_WRITE_ZEROES != 0 => {
                read_ranges(chain, buffers, rules, true)?
            }
            _ => Op::failed(Status::Unsupported),
        };
        Ok(Self { head, status_at, room, op })
    }
}

impl Op {
    /// A transfer of no bytes: done, and the disk need not hear of it.
    const NOTHING: Self = Self::Done { status: Status::Ok, written: 0 };

    fn failed(status: Status) -> Self {
        Self::Done { status, written: 0 }
    }
}

impl Rules {
    /// The byte offset of a transfer, if it is of whole sectors and on the disk.
    fn transfer(&self, sector: u64, len: u64) -> Option<u64> {
        let at = sector.checked_mul(SECTOR_LEN)?;
        let end = at.checked_add(len)?;
        (len.is_multiple_of(SECTOR_LEN) && end <= self.len).then_some(at)
    }
}

const fn header_len() -> u64 {
    HEADER_LEN as u64
}

/// Copies as much of the identifier as the driver has room for.
fn get_id(
    chain: &Chain,
    buffers: &GuestBuffers,
    room: u64,
    id: &[u8; ID_LEN],
) -> Result<Op, QueueError> {
    let count = usize::try_from(room).unwrap_or(usize::MAX).min(ID_LEN);
    let written = room.min(ID_LEN as u64);
    let into = buffers.io_buf(chain.head(), chain.writable(), 0, written)?;
    into.copy_from(id.get(..count).unwrap_or_default());
    Ok(Op::Done { status: Status::Ok, written })
}

/// Reads the segments of a discard or write-zeroes request and checks them all before any is done.
fn read_ranges(
    chain: &Chain,
    buffers: &GuestBuffers,
    rules: &Rules,
    zeroes: bool,
) -> Result<Op, QueueError> {
    let len = usize::try_from(chain.readable_len()).unwrap_or(usize::MAX) - HEADER_LEN;
    let count = len / RANGE_LEN;
    if rules.read_only || !len.is_multiple_of(RANGE_LEN) || count == 0 || count > MAX_RANGES {
        return Ok(Op::failed(Status::IoErr));
    }
    let mut bytes = [0; HEADER_LEN + MAX_RANGES * RANGE_LEN];
    let (bytes, _unused) = bytes.split_at_mut(HEADER_LEN + len);
    buffers.read_head(chain, bytes)?;
    let mut ranges = Vec::with_capacity(count);
    for segment in bytes.get(HEADER_LEN..).unwrap_or_default().chunks_exact(RANGE_LEN) {
        match ZeroRange::read(segment, rules, zeroes) {
            Ok(range) if range.range.is_empty() => {}
            Ok(range) => ranges.push(range),
            Err(status) => return Ok(Op::failed(status)),
        }
    }
    Ok(if zeroes { Op::WriteZeroes(ranges) } else { Op::Discard(ranges) })
}

impl ZeroRange {
    fn read(segment: &[u8], rules: &Rules, zeroes: bool) -> Result<Self, Status> {
        let &[s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = segment else {
            return Err(Status::IoErr);
        };
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        // Section 5.2.6.2: unknown flags, and unmap with a discard.
        let known = if zeroes { RANGE_UNMAP } else { 0 };
        if flags & !known != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > MAX_RANGE_SECTORS {
            return Err(Status::IoErr);
        }
        let len = u64::from(sectors) * SECTOR_LEN;
        let at = rules.transfer(sector, len).ok_or(Status::IoErr)?;
        Ok(Self { range: at..at + len, unmap: flags & RANGE_UNMAP != 0 })
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
