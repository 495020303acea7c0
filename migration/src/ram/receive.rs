//! Putting received pages where they belong.

use std::time::Duration;

use super::{GuestSlice, PageRun, RamMap};
use crate::error::{Error, Result};
use crate::stream::{Frame, Framed, RUN_LEN};
use crate::sys;

/// Bytes from which on it pays to have the kernel make room before reading. Memory that arrives is memory
/// that was never touched, and one fault per page costs as much as copying it.
const POPULATE_FROM: usize = 64 << 10;

/// Reads the payload of a Pages frame into guest memory; returns the number of pages.
pub(crate) fn pages(
    framed: &mut Framed,
    map: &RamMap,
    frame: &Frame,
    timeout: Duration,
) -> Result<u64> {
    let slices = slices(map, &frame.body)?;
    let bytes: usize = slices.iter().map(GuestSlice::len).sum();
    if bytes != frame.payload_len as usize {
        return Err(Error::corrupt(format!(
            "a Pages frame names {bytes} bytes and carries {}",
            frame.payload_len
        )));
    }
    for slice in slices.iter().filter(|slice| slice.len() >= POPULATE_FROM) {
        sys::populate(*slice);
    }
    framed.receive_pages(&slices, timeout)?;
    Ok(frame.body.chunks_exact(RUN_LEN).map(run).map(|r| r.count).sum())
}

/// Makes the pages of a ZeroPages frame zero; returns their number.
pub(crate) fn zero_pages(map: &RamMap, frame: &Frame) -> Result<u64> {
    for slice in slices(map, &frame.body)? {
        slice.fill_zero();
    }
    Ok(frame.body.chunks_exact(RUN_LEN).map(run).map(|r| r.count).sum())
}

/// The memory of all runs in a frame body. Every run is checked; ascending order keeps a hostile stream
/// from having us write the same memory a thousand times per frame.
fn slices<'a>(map: &'a RamMap, body: &[u8]) -> Result<Vec<GuestSlice<'a>>> {
    if body.is_empty() || !body.len().is_multiple_of(RUN_LEN) {
        return Err(Error::corrupt(format!("{} bytes are not a list of page runs", body.len())));
    }
    let mut next = 0;
    body.chunks_exact(RUN_LEN)
        .map(|bytes| {
            let run = run(bytes);
            if run.first < next {
                return Err(Error::corrupt("page runs are not in ascending order"));
            }
            next = run.end();
            map.slice(run)
        })
        .collect()
}

/// `bytes` is [`RUN_LEN`] long.
fn run(bytes: &[u8]) -> PageRun {
    let (first, count) = bytes.split_at(8);
    PageRun {
        first: u64::from_le_bytes(first.try_into().expect("eight bytes")),
        count: u64::from(u32::from_le_bytes(count.try_into().expect("four bytes"))),
    }
}
