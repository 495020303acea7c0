//! Filters: nodes that pass everything on to another and do something besides.

pub(crate) mod mirror_top;
pub mod throttle;
