//! ferry's control interface: QMP types, server and client; knows nothing of KVM.

pub mod cli;
pub mod client;
pub mod command;
pub mod error;
pub mod event;
pub mod qmp;
pub mod schema;

pub use command::{Command, Controller, LocalBoxFuture};
pub use error::{ErrorClass, QmpError};
pub use event::{Event, EventKind, Timestamp};
