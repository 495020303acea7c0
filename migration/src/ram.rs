//! Moving guest memory: which pages, in which order, straight from memory to memory.
//!
//! Pages are numbered through all regions; [`RamMap`] knows which number is where. A round sends every
//! page of a [`PageBitmap`], in runs of consecutive pages that go from guest memory into the socket
//! and from the socket into guest memory without a copy in between. The guest may change a page while it
//! is being sent: the dirty log then names it again and a later round sends it again. The checksum that
//! goes with every page may therefore fail to hold for a while, but not for the page's last sending.
//!
//! Pages of zeros are not sent, because the destination's memory starts as zeros; only a page that
//! was sent with something in it and is zero now is named in a frame of its own.

mod bitmap;
mod mapped;
pub(crate) mod receive;
pub(crate) mod send;
mod touched;

pub use bitmap::{PageBitmap, WORD_BITS};
pub(crate) use mapped::GuestSlice;
pub use mapped::{Backing, GuestRam, RamMap, RamRegion};
pub use touched::touched;

/// Bytes per page of the RAM transfer.
pub const PAGE_SIZE: u64 = 4096;

/// Consecutive pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// Number of the first page.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl PageRun {
    /// The page after the last; saturates, and then lies out of every bound.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.count.saturating_mul(PAGE_SIZE)
    }
}
