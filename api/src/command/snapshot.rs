//! Snapshots and backing files.

use crate::schema::{enumeration, object};

object! {
    /// Arguments of `blockdev-snapshot`.
    pub struct BlockdevSnapshot {
        /// Device or node that becomes the backing node.
        node: String = "node",
        /// The node that takes its place.
        overlay: String = "overlay",
    }
}

enumeration! {
    /// Whether an overlay's file is there.
    pub enum NewImageMode {
        /// It is used as it is.
        Existing = "existing",
        /// It is made; it names the image below it by its absolute path.
        AbsolutePaths = "absolute-paths",
    }
}

object! {
    /// Arguments of `blockdev-snapshot-sync`.
    pub struct BlockdevSnapshotSync {
        /// The device.
        device: Option<String> = "device",
        /// Or the node.
        node_name: Option<String> = "node-name",
        /// File of the overlay.
        snapshot_file: String = "snapshot-file",
        /// Node name of the overlay.
        snapshot_node_name: Option<String> = "snapshot-node-name",
        /// Driver of the overlay (default qcow2).
        format: Option<String> = "format",
        /// Whether the overlay is there (default absolute-paths).
        mode: Option<NewImageMode> = "mode",
    }
}

object! {
    /// Arguments of `blockdev-snapshot-internal-sync`.
    pub struct BlockdevSnapshotInternal {
        /// Device or root node.
        device: String = "device",
        /// Name of the snapshot.
        name: String = "name",
    }
}

object! {
    /// Arguments of `blockdev-snapshot-delete-internal-sync`.
    pub struct BlockdevSnapshotDeleteInternal {
        /// Device or root node.
        device: String = "device",
        /// Id of the snapshot.
        id: Option<String> = "id",
        /// Its name.
        name: Option<String> = "name",
    }
}

object! {
    /// A snapshot in an image.
    pub struct SnapshotInfo {
        /// Its id.
        id: String = "id",
        /// Its name.
        name: String = "name",
        /// Bytes of saved machine state.
        vm_state_size: i64 = "vm-state-size",
        /// When it was made, seconds since 1970.
        date_sec: i64 = "date-sec",
        /// And nanoseconds.
        date_nsec: i64 = "date-nsec",
        /// The guest's clock, seconds.
        vm_clock_sec: i64 = "vm-clock-sec",
        /// And nanoseconds.
        vm_clock_nsec: i64 = "vm-clock-nsec",
        /// The guest's count of instructions.
        icount: Option<i64> = "icount",
    }
}

object! {
    /// Arguments of `change-backing-file`.
    pub struct ChangeBackingFile {
        /// Device or root node of the chain.
        device: String = "device",
        /// The node whose image is to name another file.
        image_node_name: String = "image-node-name",
        /// What it is to name.
        backing_file: String = "backing-file",
    }
}
