//! Block status: what the bytes of an export are, in one metadata context.

use std::ops::Range;
use std::rc::Rc;

use super::export::{Context, Export, child_of};
use crate::backend::Pass;
use crate::bitmap::DirtyBitmap;
use crate::driver::{BlockDriver, ExtentKind};
use crate::edge::ChildRole;
use crate::error::Result;
use crate::format::raw::RawDriver;
use crate::nbd::proto::reply::Descriptor;
use crate::nbd::proto::state;
use crate::node::BlockNode;

/// Most descriptors in one reply: clients ask again from where it ends.
const MAX_DESCRIPTORS: usize = 1024;
/// Most layers that are asked for one reply, so that a client cannot keep the thread busy.
const MAX_LOOKS: usize = 4096;

/// What a range consists of, from its start on, for as far as is found out without much effort: at
/// least one descriptor, at most one with `one`. No descriptor is longer than `longest`.
pub(super) async fn describe(
    export: &Rc<Export>,
    pass: &Pass,
    context: &Context,
    range: Range<u64>,
    one: bool,
    longest: u64,
) -> Result<Vec<Descriptor>> {
    let mut list: Vec<Descriptor> = Vec::new();
    let (mut at, mut looks) = (range.start, 0);
    let most = if one { 1 } else { MAX_DESCRIPTORS };
    while at < range.end && looks < MAX_LOOKS {
        let found = match context {
            Context::Bitmap(bitmap) => dirty(&bitmap.bits.borrow(), at..range.end),
            Context::Allocation | Context::Depth => {
                let top = export.backend.node();
                let layer = look(pass, &top, at..range.end, &mut looks).await?;
                layer.descriptor(matches!(context, Context::Depth))
            }
        };
        looks += 1;
        let len = found.len.min(longest);
        let full = list.len() >= most;
        match list.last_mut() {
            Some(last) if last.flags == found.flags && last.len + len <= longest => {
                last.len += len;
            }
            _ if full => break,
            _ => list.push(Descriptor { len, flags: found.flags }),
        }
        at += len;
    }
    Ok(list)
}

fn dirty(bits: &DirtyBitmap, range: Range<u64>) -> Descriptor {
    match bits.next_dirty(range.start, range.end) {
        Some(found) if found.start <= range.start => {
            // As one run, however many granules it has.
            let mut end = found.end;
            while let Some(next) = bits.next_dirty(end, range.end).filter(|next| next.start == end)
            {
                end = next.end;
            }
            Descriptor { len: end.min(range.end) - range.start, flags: state::DIRTY }
        }
        Some(found) => Descriptor { len: found.start - range.start, flags: 0 },
        None => Descriptor { len: range.end - range.start, flags: 0 },
    }
}

/// What was found at one place of a chain.
struct Layer {
    kind: ExtentKind,
    len: u64,
    /// Counted from 1; 0 where no layer has anything.
    depth: u64,
}

impl Layer {
    fn descriptor(&self, depth: bool) -> Descriptor {
        let flags = match self.kind {
            _ if depth => self.depth,
            ExtentKind::Data => 0,
            ExtentKind::Zero | ExtentKind::Absent => state::HOLE | state::ZERO,
        };
        Descriptor { len: self.len, flags }
    }
}

/// The layer that the bytes at the start of `range` come from.
async fn look(pass: &Pass, top: &BlockNode, range: Range<u64>, looks: &mut usize) -> Result<Layer> {
    let mut extent = pass.map(range.clone()).await?;
    let (mut node, mut depth) = (top.clone(), 1);
    while extent.kind == ExtentKind::Absent {
        let Some((next, deeper)) = below(&node) else {
            let kind = if hides_layers(&node) { ExtentKind::Data } else { ExtentKind::Absent };
            return Ok(Layer { kind, len: extent.len, depth: 0 });
        };
        node = next;
        depth += u64::from(deeper);
        *looks += 1;
        let end = range.start + extent.len;
        if range.start >= node.len() {
            // A backing file that is shorter reads as zeroes beyond its end, and hides what is below it there.
            return Ok(Layer { kind: ExtentKind::Zero, len: extent.len, depth });
        }
        extent = node.map(range.start..end.min(node.len())).await?;
    }
    Ok(Layer { kind: extent.kind, len: extent.len, depth })
}

/// What shows through where a node has nothing, and whether that is another layer of the chain: a
/// filter and what it filters are one.
pub(super) fn below(node: &BlockNode) -> Option<(BlockNode, bool)> {
    let backing = child_of(node, ChildRole::Backing).map(|node| (node, true));
    backing.or_else(|| child_of(node, ChildRole::Filtered).map(|node| (node, false)))
}

/// Whether there may be layers below that cannot be asked: a raw window moves what it shows.
fn hides_layers(node: &BlockNode) -> bool {
    let file = child_of(node, ChildRole::File).filter(|_| node.format() == RawDriver::FORMAT);
    file.is_some_and(|file| below(&file).is_some() || hides_layers(&file))
}
