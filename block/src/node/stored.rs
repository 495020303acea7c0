//! Bitmaps that are stored with the image: a node has them while it owns the image.
//!
//! They are loaded when the node is activated and stored when it is inactivated, which every orderly
//! end of a node is. A flush does not store them: until then the image says that they are in use, so
//! that after a crash nobody relies on them.

use super::{AttachedBitmap, BlockNode};
use crate::bitmap::{BitmapState, DirtyBitmap};
use crate::error::Result;
use crate::format::qcow2::Qcow2Driver;
use crate::format::qcow2::bitmap::{Room, is_storable};

impl BlockNode {
    /// Takes the bitmaps from the image. Those that were loaded before, and belonged to another
    /// process meanwhile, get its bits, or are gone if it has removed them.
    pub(super) async fn load_bitmaps(&self) -> Result<()> {
        let Some(driver) = self.driver::<Qcow2Driver>() else { return Ok(()) };
        let loaded = match driver.load_bitmaps().await {
            Err(error) if self.is_read_only() => {
                tracing::warn!("node '{}' shows no bitmaps: {error}", self.name());
                Vec::new()
            }
            loaded => loaded?,
        };
        let before = self.bitmaps().into_iter().filter(|bitmap| bitmap.persistent.get());
        for bitmap in before {
            if !loaded.iter().any(|(name, _)| bitmap.name.as_ref() == Some(name)) {
                self.detach_bitmap(&bitmap);
            }
        }
        for (name, bits) in loaded {
            let known = self.bitmaps().into_iter().find(|other| other.name.as_ref() == Some(&name));
            let bitmap = match known {
                Some(bitmap) => {
                    bitmap.bits.replace(bits);
                    bitmap
                }
                None => {
                    let bitmap = AttachedBitmap::new(Some(name), bits);
                    self.attach_bitmap(bitmap.clone());
                    bitmap
                }
            };
            bitmap.persistent.set(true);
            bitmap.read_only.set(self.is_read_only());
        }
        Ok(())
    }

    /// Puts the bitmaps into the image, with nothing in flight.
    pub(super) async fn store_bitmaps(&self) -> Result<()> {
        let Some(driver) = self.driver::<Qcow2Driver>() else { return Ok(()) };
        if self.is_read_only() || !self.is_active() || driver.is_corrupt() {
            return Ok(());
        }
        let (mut bitmaps, mut room) = (Vec::new(), Room::default());
        for bitmap in self.bitmaps() {
            let Some(name) = bitmap.name.clone().filter(|_| bitmap.persistent.get()) else {
                continue;
            };
            let bits = self.to_store(&bitmap.bits.borrow())?;
            if is_storable(&bits) && room.take(&bits) {
                bitmaps.push((name, bits));
            } else {
                tracing::warn!("bitmap '{name}' of node '{}' cannot be stored", self.name());
            }
        }
        driver.store_bitmaps(bitmaps).await
    }

    /// The bits as they are to be stored.
    fn to_store(&self, bits: &DirtyBitmap) -> Result<DirtyBitmap> {
        if bits.len() == self.len() && bits.state() != BitmapState::Frozen {
            return Ok(bits.clone());
        }
        // A job has some of its bits, or did while the disk changed its length.
        Ok(DirtyBitmap::inconsistent(self.len(), bits.granularity())?)
    }

    /// The image is given up: its bitmaps can only be looked at.
    pub(super) fn leave_bitmaps(&self) {
        for bitmap in self.bitmaps().iter().filter(|bitmap| bitmap.persistent.get()) {
            bitmap.read_only.set(true);
        }
    }
}
