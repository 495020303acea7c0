//! ferry's live migration: state sections, stream, RAM transfer and the handover.
//!
//! This crate knows no device and no KVM. A monitor implements [`machine::SourceMachine`] and
//! [`machine::DestMachine`] and calls [`source::run()`] and [`dest::run()`], each on a thread of its own; the
//! rest of the process holds a [`Session`] to watch, tune and cancel it.
//!
//! Where to look:
//!
//! - [`stream`]: the protocol, with a diagram of a whole migration; [`handshake`]: what both sides compare.
//! - [`source`] and [`dest`]: who owns the guest at every instant, as two pure state machines. Their `run`
//!   submodules carry the actions out and decide nothing. `handover_tests` walks all interleavings.
//! - [`ram`]: pages, from guest memory to guest memory; [`converge`]: when to stop the guest.
//! - [`state`]: versioned device state, the only part that devices use.
//! - [`transport`]: sockets of which every wait can be cancelled; [`stats`]: what `query-migrate` shows.
//!
//! What is deliberately absent: threads of its own, a clock in decisions, any default that means "no state",
//! checksums over page contents (the guest changes them while they are sent), and any way back to the guest
//! after Commit other than the destination's word or the disks' own marks.

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
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod throttle;
pub mod transport;

pub use cancel::Canceller;
pub use error::{Error, ErrorKind, Result};
pub use session::Session;

#[cfg(test)]
mod handover_tests;
