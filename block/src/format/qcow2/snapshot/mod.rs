//! Internal snapshots: qcow2 specification, "Snapshots".
//!
//! A snapshot is a copy of the L1 table; everything that hangs on it is shared, and copied when the
//! disk changes. `table` is how they are listed, `tree` what hangs on one, `ops` what can be
//! done with them, `select` shows one instead of the disk.

mod ops;
mod select;
mod table;
mod tree;

pub(super) use ops::complete_snapshots;
pub use ops::{Moment, apply_snapshot, create_snapshot, delete_snapshot};
pub use select::SnapshotRef;
pub(super) use select::load_header;
pub(super) use table::load_cut;
pub use table::{Snapshot, SnapshotTable, load_snapshots};
pub(super) use tree::{l2_tables, load_l1, share};
