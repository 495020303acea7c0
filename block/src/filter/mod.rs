//! Filters: nodes that pass everything on to another and do something besides.

pub mod blkdebug;
pub mod compress;
pub mod copy_before_write;
pub mod copy_on_read;
pub(crate) mod mirror_top;
pub mod throttle;
