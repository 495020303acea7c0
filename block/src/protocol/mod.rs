//! Drivers at the bottom of a graph: what reaches storage.

pub mod file;
pub mod nbd;
pub mod null;
