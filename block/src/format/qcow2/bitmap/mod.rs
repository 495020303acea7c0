//! Persistent dirty bitmaps: qcow2 specification, "Bitmaps".
//!
//! `directory` lists them, `bits` is what one consists of, `store` replaces all of them.
//!
//! Their life in a running image: the node loads them when it is activated and stores them when it
//! is inactivated; the driver calls [`mark_in_use`] before the first write in between. Adding,
//! removing, clearing or merging is done to the bitmaps in memory and stored with the rest.

mod bits;
mod directory;
mod store;

pub(crate) use bits::is_storable;
pub(super) use bits::load_bitmaps;
pub use bits::{Room, load_bitmap};
pub(super) use directory::BitsAt;
pub use directory::{BitmapEntry, load_directory};
pub use store::{ToStore, mark_in_use, store_bitmaps};

#[cfg(test)]
#[path = "../bitmap_tests.rs"]
mod tests;
