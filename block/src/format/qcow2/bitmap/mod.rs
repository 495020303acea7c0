//! Persistent dirty bitmaps: qcow2 specification, "Bitmaps".
//!
//! [`directory`] lists them, [`bits`] is what one consists of, [`store`] replaces all of them.
//!
//! Their life in a running image: [`load_directory`] and [`load_bitmap`] when it is activated, then
//! [`mark_in_use`] before the first write, and [`store_bitmaps`] when it is inactivated. Adding,
//! removing, clearing or merging is done to the bitmaps in memory and stored with the rest.

mod bits;
mod directory;
mod store;

pub use bits::load_bitmap;
pub(super) use directory::BitsAt;
pub use directory::{BitmapEntry, load_directory};
pub use store::{ToStore, mark_in_use, store_bitmaps};

#[cfg(test)]
#[path = "../bitmap_tests.rs"]
mod tests;
