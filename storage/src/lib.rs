//! ferry's block layer by QMP: the same commands for a machine's disks and for disks without a machine.
//!
//! [`Storage`] carries out the block commands of QMP on a graph. Whoever has a guest hands it what is
//! not the guest's. [`Monitor`] is the QMP socket in front of either, and [`serve`] a process that has
//! nothing else.

mod command;
mod connection;
mod daemon;
mod error;
mod events;
mod export_kind;
mod monitor;
mod signals;

pub use command::Storage;
pub use daemon::{Ending, StorageArgs, serve};
pub use error::{Error, ErrorKind, Result};
pub use events::signed;
pub use export_kind::{ExportKinds, RunningExport, StartExport, VhostUserBlkOptions};
pub use monitor::{Listener, Monitor};
pub use signals::Signals;
