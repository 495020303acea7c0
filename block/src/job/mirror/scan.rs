//! What a mirror has to copy when it starts.

use std::ops::Range;

use super::state::Mirror;
use super::{SyncMode, copy};
use crate::driver::{Extent, ExtentKind};
use crate::error::Result;

/// Looks at so many bytes of a disk at a time, so that pauses and cancels are heard.
const STEP: u64 = 1 << 30;

/// Marks what is to be copied, and finds out where the target may hold anything but zeroes.
pub(super) async fn find_dirty(mirror: &Mirror) {
    mark_target_data(mirror).await;
    match mirror.options.sync {
        SyncMode::None | SyncMode::Incremental | SyncMode::Bitmap => {}
        SyncMode::Full => scan_source(mirror, |_| true).await,
        SyncMode::Top => scan_source(mirror, |kind| kind != ExtentKind::Absent).await,
    }
    mirror.show_progress();
}

/// Marks what the source holds and `wanted` takes. What cannot be asked about is copied.
async fn scan_source(mirror: &Mirror, wanted: impl Fn(ExtentKind) -> bool) {
    let len = mirror.source.len();
    // Nothing is below: everything is in this layer, allocated or not.
    let everything = !copy::has_backing(&mirror.source);
    let mut at = 0;
    while at < len {
        pause(mirror).await;
        let step = at..len.min(at + STEP);
        let extent = if everything {
            Extent { kind: ExtentKind::Data, len: step.end - at }
        } else {
            ask(mirror.source.map(step.clone()).await, &step)
        };
        if everything || wanted(extent.kind) {
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
    let shows_below = copy::has_backing(&mirror.target) || mirror.options.sync != SyncMode::Full;
    let mut at = 0;
    while at < len {
        pause(mirror).await;
        let step = at..len.min(at + STEP);
        let extent = ask(mirror.target.map(step.clone()).await, &step);
        let below = extent.kind == ExtentKind::Absent && shows_below;
        if extent.kind == ExtentKind::Data || below {
            mirror.target_data.borrow_mut().mark(at..at + extent.len);
        }
        at += extent.len;
    }
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
