//! ferry's live migration: state sections, stream, RAM transfer and the handover.

mod cancel;
mod clock;
mod error;
pub mod handshake;
pub mod machine;
pub mod ram;
pub mod state;
pub mod stats;
pub mod stream;
mod sys;
pub mod transport;

pub use cancel::Canceller;
pub use error::{Error, ErrorKind, Result};
