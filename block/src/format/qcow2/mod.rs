//! The `qcow2` format.
//!
//! [`header`] is where an image begins, [`geometry`] what follows from it, [`entry`] what the
//! tables say.

mod bytes;
pub mod entry;
pub mod geometry;
pub mod header;
#[cfg_attr(not(test), expect(dead_code, reason = "the driver comes next"))]
mod options;

pub use options::{BackingRef, OverlapCheck, OverlapFlags, OverlapTemplate, Qcow2Options};
