//! Limits of a guest's disk or an export: `block_set_io_throttle`.

use crate::schema::object;

object! {
    /// Arguments of `block_set_io_throttle`: rates in bytes or requests a second, 0 for none; lengths of
    /// bursts in seconds.
    #[derive(Default)]
    pub struct BlockIoThrottle {
        /// Name of the device's root.
        device: Option<String> = "device",
        /// Path of the guest device, or id of an export.
        id: Option<String> = "id",
        /// Bytes.
        bps: i64 = "bps",
        /// Bytes read.
        bps_rd: i64 = "bps_rd",
        /// Bytes written.
        bps_wr: i64 = "bps_wr",
        /// Requests.
        iops: i64 = "iops",
        /// Requests read.
        iops_rd: i64 = "iops_rd",
        /// Requests written.
        iops_wr: i64 = "iops_wr",
        /// Bytes, in a burst.
        bps_max: Option<i64> = "bps_max",
        /// Bytes read, in a burst.
        bps_rd_max: Option<i64> = "bps_rd_max",
        /// Bytes written, in a burst.
        bps_wr_max: Option<i64> = "bps_wr_max",
        /// Requests, in a burst.
        iops_max: Option<i64> = "iops_max",
        /// Requests read, in a burst.
        iops_rd_max: Option<i64> = "iops_rd_max",
        /// Requests written, in a burst.
        iops_wr_max: Option<i64> = "iops_wr_max",
        /// Bytes: seconds of a burst.
        bps_max_length: Option<i64> = "bps_max_length",
        /// Bytes read: seconds of a burst.
        bps_rd_max_length: Option<i64> = "bps_rd_max_length",
        /// Bytes written: seconds of a burst.
        bps_wr_max_length: Option<i64> = "bps_wr_max_length",
        /// Requests: seconds of a burst.
        iops_max_length: Option<i64> = "iops_max_length",
        /// Requests read: seconds of a burst.
        iops_rd_max_length: Option<i64> = "iops_rd_max_length",
        /// Requests written: seconds of a burst.
        iops_wr_max_length: Option<i64> = "iops_wr_max_length",
        /// A request counts as one for each so many bytes.
        iops_size: Option<i64> = "iops_size",
        /// Whoever is in this group shares the limits (default: alone, under its own name).
        group: Option<String> = "group",
    }
}
