//! Drivers of image formats.

pub mod qcow2;
pub mod raw;
mod recognise;

pub use recognise::{PROBED_BYTES, recognise};
