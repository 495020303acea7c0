//! Snapshots of disks: overlays over them, and those inside an image.

use crate::schema::{enumeration, object};

object! {
    /// Arguments of `blockdev-snapshot`.
    pub struct BlockdevSnapshot {
        /// The node, or the device over it.
        node: String = "node",
        /// The node that takes its place: an image that nobody uses and nothing is below.
        overlay: String = "overlay",
    }
}

object! {
    /// Arguments of `blockdev-snapshot-sync`.
    pub struct BlockdevSnapshotSync {
        /// The device, unless a node is named.
        device: Option<String> = "device",
        /// The node.
        node_name: Option<String> = "node-name",
        /// File of the overlay.
        snapshot_file: String = "snapshot-file",
        /// Name of the overlay's node.
        snapshot_node_name: Option<String> = "snapshot-node-name",
        /// Format of the overlay (default qcow2).
        format: Option<String> = "format",
        /// Whether the overlay is made (default absolute-paths).
        mode: Option<NewImageMode> = "mode",
    }
}

enumeration! {
    /// How an image comes to be.
    pub enum NewImageMode {
        /// It is there.
        Existing = "existing",
        /// It is made, and names the image below it by its absolute path.
        AbsolutePaths = "absolute-paths",
    }
}

object! {
    /// Arguments of `change-backing-file`.
    pub struct ChangeBackingFile {
        /// The device or root node that the image belongs to.
        device: String = "device",
        /// The node of the image that is changed.
        image_node_name: String = "image-node-name",
        /// What the image is to say is below it.
        backing_file: String = "backing-file",
    }
}

object! {
    /// Arguments of `blockdev-snapshot-internal-sync`.
    pub struct BlockdevSnapshotInternal {
        /// The device or root node.
        device: String = "device",
        /// Name of the snapshot.
        name: String = "name",
    }
}

object! {
    /// Arguments of `blockdev-snapshot-delete-internal-sync`: an id, a name or both.
    pub struct BlockdevSnapshotDeleteInternal {
        /// The device or root node.
        device: String = "device",
        /// Id of the snapshot.
        id: Option<String> = "id",
        /// Its name.
        name: Option<String> = "name",
    }
}

object! {
    /// A snapshot inside an image.
    pub struct SnapshotInfo {
        /// Its id.
        id: String = "id",
        /// Its name.
        name: String = "name",
        /// Bytes of the machine's state that was saved with it.
        vm_state_size: i64 = "vm-state-size",
        /// When it was taken: seconds since the epoch.
        date_sec: i64 = "date-sec",
        /// The same: nanoseconds of that second.
        date_nsec: i64 = "date-nsec",
        /// How long the guest had been running: seconds.
        vm_clock_sec: i64 = "vm-clock-sec",
        /// The same: nanoseconds of that second.
        vm_clock_nsec: i64 = "vm-clock-nsec",
        /// Instructions executed, with record and replay.
        icount: Option<i64> = "icount",
    }
}
