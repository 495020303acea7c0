//! ferry's block layer: graphs of image nodes, dirty tracking and the jobs that move disks.
//!
//! # The tour
//!
//! A request enters through a [`BlockBackend`] (the hold that a device, job or export has of a
//! graph), passes its gate, and goes along an [`Edge`] to a [`BlockNode`]. The node checks the
//! range, aligns, counts and marks bitmaps; behind it a [`BlockDriver`] does the work, itself with
//! edges to further nodes, until [`protocol::file`] hands the bytes to io_uring.
//!
//! Everything of one graph lives on one thread: an [`IoThread`] with its [`Executor`]. Other threads
//! talk to it through a [`BlockHandle`]. No locks, no `Send` futures, no time or randomness that was
//! not passed in, so that the same code runs under a simulated clock in tests.

mod backend;
pub mod bitmap;
mod buf;
mod chain;
mod clock;
mod driver;
mod edge;
mod error;
mod executor;
pub mod filter;
pub mod format;
mod graph;
mod handle;
mod io;
mod io_thread;
pub mod job;
pub mod nbd;
pub mod net;
mod node;
mod notify;
mod open;
pub mod protocol;
mod ranges;
mod secret;
mod sys;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod thread;

pub use backend::{BackendId, BackendKind, BlockBackend, Pass, Retirement};
pub use buf::{BufOwner, IoBuf};
pub use chain::ChainExtent;
pub use clock::Clock;
pub use driver::{BlockDriver, DynDriver, Extent, ExtentKind, Limits, LocalBoxFuture, WriteFlags};
pub use edge::{ChildRole, Edge, EdgePerms, Perms};
pub use error::{Error, ErrorKind, Result};
pub use executor::{Executor, Poller, PollerGuard, Remote, Task, within};
pub use graph::{
    BitmapChange, BitmapOptions, BitmapSource, BlockGraph, Drained, Edit, ExternalSnapshot,
    Generations, MAX_NAME, Turn, check_top,
};
pub use handle::BlockHandle;
pub use io::RingChoice;
pub use io_thread::{IoThread, IoThreadOptions};
pub use node::{AttachedBitmap, BitmapUse, BlockNode, BlockStats, NodeOptions, OpStats};
pub use notify::Notify;
pub use open::{
    BlockdevOptions, BlockdevRef, CacheOptions, DetectZeroes, DiscardMode, DriverOptions,
    json_name, keyval, protocol_name,
};
pub use ranges::{RangeGuard, RangeLocks};
pub use secret::{Secret, SecretFormat, SecretOptions};
