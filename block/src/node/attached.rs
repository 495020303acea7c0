//! Dirty bitmaps on a node, and who may do what to them now.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::bitmap::{BitmapState, DirtyBitmap};
use crate::error::{Error, ErrorKind, Result};

/// A dirty bitmap on a node: every write to the node is recorded in it when it completes.
pub struct AttachedBitmap {
    /// Its name, for QMP; a job's own bitmap has none.
    pub name: Option<String>,
    /// The bits.
    pub bits: RefCell<DirtyBitmap>,
    /// In use by an operation, so that others may not change it.
    pub busy: Cell<bool>,
    /// Stored with the image when it is closed.
    pub persistent: Cell<bool>,
    /// Its image cannot be told now that it has changed.
    pub read_only: Cell<bool>,
}

/// What somebody wants of a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapUse {
    /// Its bits, or whether it records: allowed while its image is read-only.
    Look,
    /// Other bits in it.
    Change,
    /// To be rid of it: allowed when it is inconsistent.
    Remove,
}

impl AttachedBitmap {
    /// A bitmap that is neither busy nor persistent.
    pub fn new(name: Option<String>, bits: DirtyBitmap) -> Rc<AttachedBitmap> {
        Rc::new(AttachedBitmap {
            name,
            bits: RefCell::new(bits),
            busy: Cell::new(false),
            persistent: Cell::new(false),
            read_only: Cell::new(false),
        })
    }

    /// Refuses, in QEMU's words, what its state forbids.
    pub fn check(&self, wanted: BitmapUse) -> Result<()> {
        let name = self.name.as_deref().unwrap_or_default();
        let state = self.bits.borrow().state();
        if self.busy.get() || state == BitmapState::Frozen {
            let context = format!(
                "Bitmap '{name}' is currently in use by another operation and cannot be used"
            );
            return Err(Error::new(ErrorKind::Busy, context));
        }
        if self.read_only.get() && wanted != BitmapUse::Look {
            let context = format!("Bitmap '{name}' is readonly and cannot be modified");
            return Err(Error::new(ErrorKind::ReadOnly, context));
        }
        if state == BitmapState::Inconsistent && wanted != BitmapUse::Remove {
            let context = format!("Bitmap '{name}' is inconsistent and cannot be used");
            return Err(Error::new(ErrorKind::Corrupt, context));
        }
        Ok(())
    }
}
