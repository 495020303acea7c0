//! What a mirror has to copy when it starts.

use std::ops::Range;

use super::state::Mirror;
use super::{SyncMode, copy};
use crate::driver::{BlockDriver, Extent, ExtentKind};
use crate::error::Result;
use crate::format::raw::RawDriver;
use crate::protocol::nbd::NbdDriver;

/// Looks at so many bytes of a disk at a time, so that pauses and cancels are heard.
const STEP: u64 = 1 << 30;

/// Marks what is to be copied, and finds out where the target may hold anything but zeroes.
pub(super) async fn find_dirty(mirror: &Mirror) {
    mark_target_data(mirror).await;
    match mirror.options.sync {
        SyncMode::None | SyncMode::Incremental | SyncMode::Bitmap => {}
        SyncMode::Top if is_layer(mirror) => mark_own(mirror).await,
        SyncMode::Full | SyncMode::Top => mirror.bitmap.bits.borrow_mut().mark_all(),
    }
    mirror.show_progress();
}

/// Whether the source, or what its filters stand over, is an image over another. If not, everything is in
/// this layer, allocated or not. What `raw` shows has no layers for those who use it, as in QEMU.
fn is_layer(mirror: &Mirror) -> bool {
    let top = mirror.source.node().skip_filters();
    top.format() != RawDriver::FORMAT && top.backing().is_some()
}

/// Marks what the topmost layer of the source holds. What cannot be asked about is copied.
async fn mark_own(mirror: &Mirror) {
    let len = mirror.source.len();
    let mut at = 0;
    while at < len {
        pause(mirror).await;
        let step = at..len.min(at + STEP);
        let extent = ask(mirror.source.map(step.clone()).await, &step);
        if extent.kind != ExtentKind::Absent {
            mirror.bitmap.bits.borrow_mut().mark(at..at + extent.len);
        }
        at += extent.len;
    }
}

/// Marks where the target is not known to read as zeroes.
async fn mark_target_data(mirror: &Mirror) {
    let len = mirror.target.len();
    // Where this layer of the target has nothing, what lies below it shows; who does not copy all layers
    // may still put something there.
    let shows_below = copy::has_backing(&mirror.target) || mirror.may_get_layers();
    // An NBD server says the same of what its image does not have as of what is zero there.
    let is_served = mirror.target.node().passes_to().any(|node| node.format() == NbdDriver::FORMAT);
    let zero_may_be_absent = is_served && mirror.may_get_layers();
    let mut at = 0;
    while at < len {
        pause(mirror).await;
        let step = at..len.min(at + STEP);
        let extent = ask(mirror.target.map(step.clone()).await, &step);
        let may_differ = match extent.kind {
            ExtentKind::Data => true,
            ExtentKind::Absent => shows_below,
            ExtentKind::Zero => zero_may_be_absent,
        };
        if may_differ {
            mirror.target_data.borrow_mut().mark(at..at + extent.len);
        }
        at += extent.len;
    }
    mirror.target_known.set(true);
}

/// An answer of `map` that makes sense; where there is none, all of `range` is data.
fn ask(answer: Result<Extent>, range: &Range<u64>) -> Extent {
    let whole = range.end - range.start;
    match answer {
        Ok(extent) if (1..=whole).contains(&extent.len) => extent,
        _ => Extent { kind: ExtentKind::Data, len: whole },
    }
}

async fn pause(mirror: &Mirror) {
    mirror.ctx.pause_point().await;
}
