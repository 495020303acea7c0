//! ferry's live migration: state sections, stream, RAM transfer and the handover.

mod error;
pub mod state;

pub use error::{Error, ErrorKind, Result};
