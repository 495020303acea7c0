//! Internal snapshots: qcow2 specification, "Snapshots".

mod table;

pub use table::{Snapshot, SnapshotTable, load_snapshots};
