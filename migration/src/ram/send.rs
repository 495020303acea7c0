//! One round of sending pages.

use std::sync::Arc;

use super::{GuestSlice, PAGE_SIZE, PageBitmap, PageRun, RamMap};
use crate::error::Result;
use crate::stream::{Framed, HEADER_LEN, Kind, MAX_RUNS, RUN_LEN};

/// Bytes of page contents in one frame: large enough that the cost of a call does not show, small enough
/// that a cancel, a rate limit and the peer's errors are looked at often.
const BATCH_LEN: u64 = 1 << 20;

/// What sending came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Pages sent whole.
    pub(crate) normal: u64,
    /// Pages found zero.
    pub(crate) zero: u64,
    /// Bytes on the wire.
    pub(crate) bytes: u64,
}

impl Sent {
    pub(crate) fn add(&mut self, other: Sent) {
        self.normal += other.normal;
        self.zero += other.zero;
        self.bytes += other.bytes;
    }
}

/// Sends pages, and remembers which of them hold something at the destination.
#[derive(Debug)]
pub(crate) struct Sender {
    map: Arc<RamMap>,
    /// Pages whose last sent content was not zero: only these need to be named when they become zero.
    filled: PageBitmap,
}

/// Runs collected for one frame.
#[derive(Debug, Default)]
struct Batch<'a> {
    /// The runs, as they go into the frame's body.
    runs: Vec<u8>,
    /// The checksums of the pages that are sent whole, behind the runs.
    sums: Vec<u8>,
    slices: Vec<GuestSlice<'a>>,
    bytes: u64,
}

impl Sender {
    pub(crate) fn new(map: Arc<RamMap>) -> Sender {
        let filled = map.bitmap();
        Sender { map, filled }
    }

    /// Sends every page of `pages`. `after_batch` is called whenever a frame's worth went out, with what
    /// it was: to limit the rate, to look for the peer's errors, and to publish progress.
    pub(crate) fn send(
        &mut self,
        framed: &mut Framed,
        pages: &PageBitmap,
        mut after_batch: impl FnMut(&mut Framed, Sent) -> Result<()>,
    ) -> Result<()> {
        let map = Arc::clone(&self.map);
        let mut full = Batch::default();
        let mut zero = Batch::default();
        let mut sent = Sent::default();
        for run in pages.runs() {
            for mut rest in map.split(run) {
                while rest.count > 0 {
                    let (part, is_zero) = self.take_part(&mut rest)?;
                    if is_zero {
                        sent.zero += part.count;
                        self.note_zero(part, &mut zero);
                    } else {
                        sent.normal += part.count;
                        self.filled.set_run(part);
                        full.push(part);
                        full.contents(&map, part)?;
                    }
                    if full.is_full() || zero.is_full() {
                        sent.bytes += full.flush(framed, Kind::Pages)?;
                        sent.bytes += zero.flush(framed, Kind::ZeroPages)?;
                        after_batch(framed, std::mem::take(&mut sent))?;
                    }
                }
            }
        }
        sent.bytes += full.flush(framed, Kind::Pages)?;
        sent.bytes += zero.flush(framed, Kind::ZeroPages)?;
        after_batch(framed, sent)
    }

    /// Cuts from the front of `rest` the longest run of pages that are all zero or all not, as far as
    /// one frame goes. The second value tells which.
    fn take_part(&self, rest: &mut PageRun) -> Result<(PageRun, bool)> {
        let is_zero = |page| Ok(self.map.slice(PageRun { first: page, count: 1 })?.is_zero());
        let first_is_zero = is_zero(rest.first)?;
        let longest = rest.count.min(BATCH_LEN / PAGE_SIZE);
        let mut count = 1;
        while count < longest && is_zero(rest.first + count)? == first_is_zero {
            count += 1;
        }
        let part = PageRun { first: rest.first, count };
        *rest = PageRun { first: part.end(), count: rest.count - count };
        Ok((part, first_is_zero))
    }

    /// Names those pages of a run of zeros that hold something else at the destination.
    fn note_zero(&mut self, run: PageRun, batch: &mut Batch<'_>) {
        let mut open: Option<PageRun> = None;
        for page in run.first..run.end() {
            if self.filled.contains(page) {
                self.filled.clear(page);
                match &mut open {
                    Some(run) => run.count += 1,
                    None => open = Some(PageRun { first: page, count: 1 }),
                }
            } else if let Some(run) = open.take() {
                batch.push(run);
            }
        }
        if let Some(run) = open {
            batch.push(run);
        }
    }
}

impl<'a> Batch<'a> {
    /// Adds what the pages of a run hold. The guest may change a page between the sum and the sending;
    /// the dirty log then names it, and it is sent again.
    fn contents(&mut self, map: &'a RamMap, run: PageRun) -> Result<()> {
        for page in run.first..run.end() {
            self.sums.extend_from_slice(&map.page_sum(page)?.to_le_bytes());
        }
        self.slices.push(map.slice(run)?);
        Ok(())
    }

    fn push(&mut self, run: PageRun) {
        let count = u32::try_from(run.count).expect("a part is no longer than a frame");
        self.runs.extend_from_slice(&run.first.to_le_bytes());
        self.runs.extend_from_slice(&count.to_le_bytes());
        self.bytes += run.bytes();
    }

    /// One more part must always fit: it may add a frame's worth of bytes, or half a frame's of runs.
    fn is_full(&self) -> bool {
        self.bytes >= BATCH_LEN || self.runs.len() >= MAX_RUNS / 2 * RUN_LEN
    }

    /// Sends what was collected and starts anew; returns the bytes on the wire.
    fn flush(&mut self, framed: &mut Framed, kind: Kind) -> Result<u64> {
        if self.runs.is_empty() {
            return Ok(0);
        }
        self.runs.append(&mut self.sums);
        let mut wire = (HEADER_LEN + self.runs.len()) as u64;
        if kind == Kind::Pages {
            framed.send_pages(&self.runs, &self.slices)?;
            wire += self.bytes;
        } else {
            framed.send(kind, &self.runs)?;
        }
        self.runs.clear();
        self.slices.clear();
        self.bytes = 0;
        Ok(wire)
    }
}
