//! Persistent dirty bitmaps: qcow2 specification, "Bitmaps".

mod directory;

pub(super) use directory::BitsAt;
pub use directory::{BitmapEntry, load_directory};
