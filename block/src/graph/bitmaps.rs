//! Named dirty bitmaps of a graph: what QMP's `block-dirty-bitmap-*` commands do, each with a way
//! back for `transaction`.

use std::rc::Rc;

use super::BlockGraph;
use crate::bitmap::DirtyBitmap;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::Qcow2Driver;
use crate::format::qcow2::bitmap::Room;
use crate::format::qcow2::header::Version;
use crate::node::{AttachedBitmap, BitmapUse, BlockNode};

/// Longest name, bytes.
const MAX_BITMAP_NAME: usize = 1023;
/// Granularity where the image has no clusters, and the coarsest default, bytes.
const DEFAULT_GRANULARITY: u64 = 64 << 10;
/// The finest default, bytes.
const FINEST_DEFAULT: u64 = 4096;

/// What a new bitmap is to be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BitmapOptions {
    /// Its name, unique on its node.
    pub name: String,
    /// Bytes of a granule (default: the image's cluster, within 4 KiB and 64 KiB).
    pub granularity: Option<u64>,
    /// Stored with the image.
    pub persistent: bool,
    /// Does not record at first.
    pub disabled: bool,
}

/// A bitmap that is merged into another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapSource {
    /// Its node, by name (default: that of the bitmap merged into).
    pub node: Option<String>,
    /// Its name.
    pub name: String,
}

/// A change that was made. [`commit`](BitmapChange::commit) makes it stay,
/// [`undo`](BitmapChange::undo) takes it back, as does dropping it.
///
/// Between the change and its end nothing may write to the node, or an undo would lose what was
/// recorded meanwhile: hold a [`Drained`](super::Drained) over a transaction.
#[must_use = "a change that is dropped is undone"]
pub struct BitmapChange {
    node: BlockNode,
    bitmap: Rc<AttachedBitmap>,
    step: Step,
}

enum Step {
    /// Nothing is left to do.
    Done,
    Added,
    /// Still attached and recording, but busy for everybody else.
    Removed,
    /// The bits were other ones, and its state may have been another.
    Changed(Box<DirtyBitmap>),
}

impl BitmapChange {
    /// The bitmap.
    pub fn bitmap(&self) -> &Rc<AttachedBitmap> {
        &self.bitmap
    }

    /// Makes the change stay.
    pub fn commit(mut self) {
        if matches!(std::mem::replace(&mut self.step, Step::Done), Step::Removed) {
            self.node.detach_bitmap(&self.bitmap);
        }
    }

    /// Takes the change back.
    pub fn undo(self) {
        drop(self);
    }
}

impl Drop for BitmapChange {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.step, Step::Done) {
            Step::Done => {}
            Step::Added => self.node.detach_bitmap(&self.bitmap),
            Step::Removed => self.bitmap.busy.set(false),
            Step::Changed(before) => {
                self.bitmap.bits.replace(*before);
            }
        }
    }
}

impl BlockGraph {
    /// The bitmap of that name on the node, or root node of the device, of that name.
    pub fn find_bitmap(&self, node: &str, name: &str) -> Result<(BlockNode, Rc<AttachedBitmap>)> {
        let Ok(found) = self.device_or_node(node) else {
            return Err(Error::new(ErrorKind::NotFound, format!("Node '{node}' not found")));
        };
        let bitmap = named(&found, name)?;
        Ok((found, bitmap))
    }

    /// Adds a clean bitmap.
    pub fn add_bitmap(&self, node: &str, options: &BitmapOptions) -> Result<BitmapChange> {
        let refuse = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
        let name = &options.name;
        if name.is_empty() {
            return refuse("Bitmap name cannot be empty".to_owned());
        }
        let Ok(node) = self.device_or_node(node) else {
            let context = format!("Cannot find device='{node}' nor node-name='{node}'");
            return Err(Error::new(ErrorKind::NotFound, context));
        };
        let granularity = options.granularity.unwrap_or_else(|| default_granularity(&node));
        if granularity < crate::bitmap::MIN_GRANULARITY || !granularity.is_power_of_two() {
            return refuse("Granularity must be power of 2 and at least 512".to_owned());
        }
        if options.persistent {
            check_storable(&node, name)?;
        }
        if node.bitmaps().iter().any(|other| other.name.as_ref() == Some(name)) {
            let context = format!("Bitmap already exists: {name}");
            return Err(Error::new(ErrorKind::AlreadyExists, context));
        }
        if name.len() > MAX_BITMAP_NAME {
            return refuse(format!("Bitmap name too long: {name}"));
        }
        let mut bits = DirtyBitmap::new(node.len(), granularity)?;
        if options.disabled {
            bits.disable()?;
        }
        if options.persistent {
            check_room(&node, name, &bits)?;
        }
        let bitmap = AttachedBitmap::new(Some(name.clone()), bits);
        bitmap.persistent.set(options.persistent);
        node.attach_bitmap(Rc::clone(&bitmap));
        Ok(BitmapChange { node, bitmap, step: Step::Added })
    }

    /// Takes a bitmap away, an inconsistent one too. Until the change is committed it is busy and
    /// records on.
    pub async fn remove_bitmap(&self, node: &str, name: &str) -> Result<BitmapChange> {
        let (node, bitmap) = self.find_bitmap(node, name)?;
        mark_in_use(&node, &bitmap).await?;
        bitmap.check(BitmapUse::Remove)?;
        bitmap.busy.set(true);
        Ok(BitmapChange { node, bitmap, step: Step::Removed })
    }

    /// Makes everything clean.
    pub async fn clear_bitmap(&self, node: &str, name: &str) -> Result<BitmapChange> {
        let clear = |bits: &mut DirtyBitmap| {
            bits.clear_all();
            Ok(())
        };
        self.change_bitmap(node, name, BitmapUse::Change, clear).await
    }

    /// Records from now on.
    pub async fn enable_bitmap(&self, node: &str, name: &str) -> Result<BitmapChange> {
        self.change_bitmap(node, name, BitmapUse::Look, |bits| Ok(bits.enable()?)).await
    }

    /// Records no longer.
    pub async fn disable_bitmap(&self, node: &str, name: &str) -> Result<BitmapChange> {
        self.change_bitmap(node, name, BitmapUse::Look, |bits| Ok(bits.disable()?)).await
    }

    /// Adds what is dirty in `sources`, of any granularity, to a bitmap; all of them or none.
    pub async fn merge_bitmaps(
        &self,
        node: &str,
        target: &str,
        sources: &[BitmapSource],
    ) -> Result<BitmapChange> {
        let (found, _) = self.find_bitmap(node, target)?;
        let merge = |merged: &mut DirtyBitmap| {
            for source in sources {
                let source = match &source.node {
                    None => named(&found, &source.name)?,
                    Some(node) => self.find_bitmap(node, &source.name)?.1,
                };
                source.check(BitmapUse::Look)?;
                let bits = source.bits.borrow();
                if bits.len() != merged.len() {
                    let context = format!(
                        "Bitmaps are of different sizes (destination size is {}, source size is {}) \
                         and can't be merged",
                        merged.len(),
                        bits.len()
                    );
                    return Err(Error::new(ErrorKind::InvalidArgument, context));
                }
                merged.merge(&bits)?;
            }
            Ok(())
        };
        self.change_bitmap(node, target, BitmapUse::Change, merge).await
    }

    async fn change_bitmap(
        &self,
        node: &str,
        name: &str,
        wanted: BitmapUse,
        change: impl FnOnce(&mut DirtyBitmap) -> Result<()>,
    ) -> Result<BitmapChange> {
        let (node, bitmap) = self.find_bitmap(node, name)?;
        mark_in_use(&node, &bitmap).await?;
        bitmap.check(wanted)?;
        // A copy is changed: what is merged into it may be the bitmap itself.
        let mut bits = bitmap.bits.borrow().clone();
        change(&mut bits)?;
        let before = bitmap.bits.replace(bits);
        Ok(BitmapChange { node, bitmap, step: Step::Changed(Box::new(before)) })
    }
}

/// Lets the image say that its bitmaps are in use, if it stores this one, before its bits are other ones.
async fn mark_in_use(node: &BlockNode, bitmap: &AttachedBitmap) -> Result<()> {
    let is_ours = node.is_active() && !node.is_read_only();
    match node.driver::<Qcow2Driver>() {
        Some(driver) if bitmap.persistent.get() && is_ours => driver.mark_bitmaps_in_use().await,
        _ => Ok(()),
    }
}

fn named(node: &BlockNode, name: &str) -> Result<Rc<AttachedBitmap>> {
    let mut bitmaps = node.bitmaps().into_iter();
    bitmaps
        .find(|bitmap| bitmap.name.as_deref() == Some(name))
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("Dirty bitmap '{name}' not found")))
}

/// Refuses a bitmap that is to be stored where none can be.
fn check_storable(node: &BlockNode, name: &str) -> Result<()> {
    let Some(driver) = node.driver::<Qcow2Driver>() else {
        let context = format!("Can't store persistent bitmaps to {}", node.name());
        return Err(Error::from_errno(libc::EOPNOTSUPP, context));
    };
    // The image's own bitmaps take the place of what is there when the image is taken over.
    if !node.is_active() {
        let context = format!(
            "Can't make bitmap '{name}' persistent in '{}': it is inactive, another process may own it",
            node.name()
        );
        return Err(Error::new(ErrorKind::Inactive, context));
    }
    if driver.header().geometry.version() == Version::V2 {
        let context = format!(
            "Can't make bitmap '{name}' persistent in '{}': Cannot store dirty bitmaps in qcow2 v2 \
             files",
            node.name()
        );
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    Ok(())
}

/// Refuses a bitmap that the image has no room for besides those that it will have.
fn check_room(node: &BlockNode, name: &str, bits: &DirtyBitmap) -> Result<()> {
    let mut room = Room::default();
    for other in node.bitmaps().iter().filter(|bitmap| bitmap.persistent.get()) {
        room.take(&other.bits.borrow());
    }
    if room.take(bits) {
        return Ok(());
    }
    let context = format!(
        "Can't make bitmap '{name}' persistent in '{}': it would have more than 512 MiB of bits, or all \
         together more than 1 GiB; a larger granularity takes fewer",
        node.name()
    );
    Err(Error::new(ErrorKind::Unsupported, context))
}

/// The cluster of the image where it has clusters, within bounds.
fn default_granularity(node: &BlockNode) -> u64 {
    if node.format() != "qcow2" {
        return DEFAULT_GRANULARITY;
    }
    let cluster = u64::from(node.limits().discard_granularity);
    cluster.clamp(FINEST_DEFAULT, DEFAULT_GRANULARITY)
}

#[cfg(test)]
#[path = "bitmaps_tests.rs"]
mod tests;
