//! The `qcow2` format.
//!
//! [`header`] is where an image begins, [`geometry`] what follows from it, [`entry`] what the
//! tables say.

pub mod bitmap;
mod bytes;
pub mod check;
mod container;
pub mod create;
pub mod entry;
pub mod geometry;
pub mod header;
#[cfg_attr(not(test), expect(dead_code, reason = "the driver comes next"))]
mod options;
pub mod snapshot;
#[cfg(test)]
mod test_rig;

pub use options::{BackingRef, OverlapCheck, OverlapFlags, OverlapTemplate, Qcow2Options};
