//! ferry's live migration: state sections, stream, RAM transfer and the handover.

mod cancel;
mod clock;
pub mod converge;
pub mod dest;
mod error;
pub mod handshake;
pub mod machine;
mod messages;
pub mod ram;
pub mod session;
pub mod source;
pub mod state;
pub mod stats;
pub mod stream;
mod sys;
mod throttle;
pub mod transport;

pub use cancel::Canceller;
pub use error::{Error, ErrorKind, Result};
pub use session::Session;

#[cfg(test)]
mod handover_tests;
