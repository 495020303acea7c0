//! Putting received pages where they belong.

use std::time::Duration;

use super::{GuestSlice, PAGE_SIZE, PageBitmap, PageRun, RamMap};
use crate::error::{Error, Result};
use crate::stream::{Frame, Framed, RUN_LEN, SUM_LEN};
use crate::sys;

/// Bytes from which on it pays to have the kernel make room before reading. Memory that arrives is memory
/// that was never touched, and one fault per page costs as much as copying it.
const POPULATE_FROM: usize = 64 << 10;

/// Guest memory that fills up, and which of its pages did not arrive as they were sent.
#[derive(Debug)]
pub(crate) struct Receiver<'a> {
    map: &'a RamMap,
    /// Pages whose contents do not have the sum that was sent with them: the guest changed them on the way,
    /// and they come again, or something else did.
    odd: PageBitmap,
}

impl<'a> Receiver<'a> {
    /// Nothing has arrived yet.
    pub(crate) fn new(map: &'a RamMap) -> Receiver<'a> {
        Receiver { map, odd: map.bitmap() }
    }

    /// Reads the payload of a Pages frame into guest memory; returns the number of pages.
    pub(crate) fn pages(
        &mut self,
        framed: &mut Framed,
        frame: &Frame,
        timeout: Duration,
    ) -> Result<u64> {
        let pages = u64::from(frame.payload_len) / PAGE_SIZE;
        let sums_len = usize::try_from(pages).unwrap_or(usize::MAX).saturating_mul(SUM_LEN);
        let Some((runs, sums)) = frame
            .body
            .len()
            .checked_sub(sums_len)
            .and_then(|runs_len| frame.body.split_at_checked(runs_len))
        else {
            return Err(Error::corrupt("a Pages frame carries more pages than checksums"));
        };
        let slices = self.slices(runs)?;
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
        let numbers = runs.chunks_exact(RUN_LEN).map(run).flat_map(|run| run.first..run.end());
        for (page, sum) in numbers.zip(sums.chunks_exact(SUM_LEN)) {
            if self.map.page_sum(page)?.to_le_bytes() == sum {
                self.odd.clear(page);
            } else {
                self.odd.set(page);
            }
        }
        Ok(pages)
    }

    /// Makes the pages of a ZeroPages frame zero; returns their number.
    pub(crate) fn zero_pages(&mut self, frame: &Frame) -> Result<u64> {
        let mut pages = 0;
        for slice in self.slices(&frame.body)? {
            slice.fill_zero();
            pages += slice.len() as u64 / PAGE_SIZE;
        }
        for page in frame.body.chunks_exact(RUN_LEN).map(run).flat_map(|run| run.first..run.end()) {
            self.odd.clear(page);
        }
        Ok(pages)
    }

    /// The guest was stopped and its last pages are here: every page must be as it was sent.
    pub(crate) fn check(&self) -> Result<()> {
        let Some(run) = self.odd.runs().next() else { return Ok(()) };
        let address = self.map.address_of(run.first).unwrap_or_default();
        Err(Error::corrupt(format!(
            "{} pages of guest memory did not arrive as they were sent, the first at {address:#x}: the \
             connection damages data",
            self.odd.count()
        )))
    }

    /// The memory of all runs in a frame body. Every run is checked; ascending order keeps a hostile stream
    /// from having us write the same memory a thousand times per frame.
    fn slices(&self, body: &[u8]) -> Result<Vec<GuestSlice<'a>>> {
        if body.is_empty() || !body.len().is_multiple_of(RUN_LEN) {
            return Err(Error::corrupt(format!(
                "{} bytes are not a list of page runs",
                body.len()
            )));
        }
        let mut next = 0;
        body.chunks_exact(RUN_LEN)
            .map(|bytes| {
                let run = run(bytes);
                if run.first < next {
                    return Err(Error::corrupt("page runs are not in ascending order"));
                }
                next = run.end();
                self.map.slice(run)
            })
            .collect()
    }
}

/// `bytes` is [`RUN_LEN`] long.
fn run(bytes: &[u8]) -> PageRun {
    let (first, count) = bytes.split_at(8);
    PageRun {
        first: u64::from_le_bytes(first.try_into().expect("eight bytes")),
        count: u64::from(u32::from_le_bytes(count.try_into().expect("four bytes"))),
    }
}
