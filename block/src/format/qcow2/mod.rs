//! The qcow2 format.

#[cfg_attr(not(test), expect(dead_code, reason = "the driver comes next"))]
mod options;

pub use options::{BackingRef, OverlapCheck, OverlapFlags, OverlapTemplate, Qcow2Options};
