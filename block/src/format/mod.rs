//! Drivers of image formats.

pub mod raw;
