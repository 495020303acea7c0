//! Block nodes: what `query-block`, `query-named-block-nodes` and `query-blockstats` return.

use super::blockdev::{DetectZeroes, IoStatus};
use super::image_info::ImageInfo;
use crate::schema::object;

object! {
    /// A guest's disk: one entry of `query-block`.
    pub struct BlockInfo {
        /// Name of the device's root, empty when it has none.
        device: String = "device",
        /// Path of the guest device that uses it.
        qdev: Option<String> = "qdev",
        /// Always "unknown"; kept for old clients.
        kind: String = "type",
        /// Whether its medium can be changed.
        removable: bool = "removable",
        /// Whether the guest has locked the medium.
        locked: bool = "locked",
        /// The node at the root, if there is one.
        inserted: Option<BlockDeviceInfo> = "inserted",
        /// Whether the tray is open, where there is a tray.
        tray_open: Option<bool> = "tray_open",
        /// Its last errors, where the device keeps account of them.
        io_status: Option<IoStatus> = "io-status",
    }
}

object! {
    /// A node: one entry of `query-named-block-nodes`.
    #[derive(Default)]
    pub struct BlockDeviceInfo {
        /// The file or address below it.
        file: String = "file",
        /// Its name.
        node_name: Option<String> = "node-name",
        /// Whether it refuses writes.
        ro: bool = "ro",
        /// Its driver.
        drv: String = "drv",
        /// The file or address of the image below it.
        backing_file: Option<String> = "backing_file",
        /// How many images are below it; not counted when `flat` was asked for.
        backing_file_depth: i64 = "backing_file_depth",
        /// Whether it is encrypted.
        encrypted: bool = "encrypted",
        /// Whether writes of zeroes are recognised.
        detect_zeroes: DetectZeroes = "detect_zeroes",
        /// Limit in bytes/s, 0 for none.
        bps: i64 = "bps",
        /// Read limit in bytes/s, 0 for none.
        bps_rd: i64 = "bps_rd",
        /// Write limit in bytes/s, 0 for none.
        bps_wr: i64 = "bps_wr",
        /// Limit in requests/s, 0 for none.
        iops: i64 = "iops",
        /// Read limit in requests/s, 0 for none.
        iops_rd: i64 = "iops_rd",
        /// Write limit in requests/s, 0 for none.
        iops_wr: i64 = "iops_wr",
        /// Limit of bursts in bytes/s.
        bps_max: Option<i64> = "bps_max",
        /// Limit of bursts in bytes/s read.
        bps_rd_max: Option<i64> = "bps_rd_max",
        /// Limit of bursts in bytes/s written.
        bps_wr_max: Option<i64> = "bps_wr_max",
        /// Limit of bursts in requests/s.
        iops_max: Option<i64> = "iops_max",
        /// Limit of bursts in requests/s read.
        iops_rd_max: Option<i64> = "iops_rd_max",
        /// Limit of bursts in requests/s written.
        iops_wr_max: Option<i64> = "iops_wr_max",
        /// Seconds of a burst in bytes/s.
        bps_max_length: Option<i64> = "bps_max_length",
        /// Seconds of a burst in bytes/s read.
        bps_rd_max_length: Option<i64> = "bps_rd_max_length",
        /// Seconds of a burst in bytes/s written.
        bps_wr_max_length: Option<i64> = "bps_wr_max_length",
        /// Seconds of a burst in requests/s.
        iops_max_length: Option<i64> = "iops_max_length",
        /// Seconds of a burst in requests/s read.
        iops_rd_max_length: Option<i64> = "iops_rd_max_length",
        /// Seconds of a burst in requests/s written.
        iops_wr_max_length: Option<i64> = "iops_wr_max_length",
        /// A request counts as one for each so many bytes.
        iops_size: Option<i64> = "iops_size",
        /// The throttle group it is in.
        group: Option<String> = "group",
        /// What is known of the image.
        image: ImageInfo = "image",
        /// Caching.
        cache: BlockdevCacheInfo = "cache",
        /// Event threshold in bytes, 0 for none.
        write_threshold: i64 = "write_threshold",
        /// Its dirty bitmaps.
        dirty_bitmaps: Option<Vec<BlockDirtyInfo>> = "dirty-bitmaps",
    }
}

object! {
    /// Caching of a node.
    #[derive(Default)]
    pub struct BlockdevCacheInfo {
        /// Whether the guest is told that it must flush.
        writeback: bool = "writeback",
        /// Whether the host's page cache is bypassed.
        direct: bool = "direct",
        /// Whether flushes are ignored.
        no_flush: bool = "no-flush",
    }
}

object! {
    /// A dirty bitmap.
    pub struct BlockDirtyInfo {
        /// Its name; a job's own bitmap has none.
        name: Option<String> = "name",
        /// Dirty bytes.
        count: i64 = "count",
        /// Bytes per bit.
        granularity: u32 = "granularity",
        /// Whether writes are recorded.
        recording: bool = "recording",
        /// Whether a job uses it.
        busy: bool = "busy",
        /// Whether it is stored with the image.
        persistent: bool = "persistent",
        /// Whether it must not be trusted.
        inconsistent: Option<bool> = "inconsistent",
    }
}

object! {
    /// Counters of a device or node: one entry of `query-blockstats`.
    pub struct BlockStats {
        /// Name of the device's root.
        device: Option<String> = "device",
        /// Path of the guest device.
        qdev: Option<String> = "qdev",
        /// Name of the node.
        node_name: Option<String> = "node-name",
        /// The counters.
        stats: BlockDeviceStats = "stats",
        /// Counters of the node with its data.
        parent: Option<Box<BlockStats>> = "parent",
    }
}

object! {
    /// The counters themselves. Times are in nanoseconds.
    #[derive(Default)]
    pub struct BlockDeviceStats {
        /// Bytes read.
        rd_bytes: u64 = "rd_bytes",
        /// Bytes written.
        wr_bytes: u64 = "wr_bytes",
        /// Bytes discarded.
        unmap_bytes: u64 = "unmap_bytes",
        /// Reads.
        rd_operations: u64 = "rd_operations",
        /// Writes.
        wr_operations: u64 = "wr_operations",
        /// Flushes.
        flush_operations: u64 = "flush_operations",
        /// Discards.
        unmap_operations: u64 = "unmap_operations",
        /// Time spent in reads.
        rd_total_time_ns: u64 = "rd_total_time_ns",
        /// Time spent in writes.
        wr_total_time_ns: u64 = "wr_total_time_ns",
        /// Time spent in flushes.
        flush_total_time_ns: u64 = "flush_total_time_ns",
        /// Time spent in discards.
        unmap_total_time_ns: u64 = "unmap_total_time_ns",
        /// End of the highest write.
        wr_highest_offset: u64 = "wr_highest_offset",
        /// Reads that were merged into others.
        rd_merged: u64 = "rd_merged",
        /// Writes that were merged into others.
        wr_merged: u64 = "wr_merged",
        /// Discards that were merged into others.
        unmap_merged: u64 = "unmap_merged",
        /// Time since the last request, if there was one.
        idle_time_ns: Option<u64> = "idle_time_ns",
        /// Failed reads.
        failed_rd_operations: u64 = "failed_rd_operations",
        /// Failed writes.
        failed_wr_operations: u64 = "failed_wr_operations",
        /// Failed flushes.
        failed_flush_operations: u64 = "failed_flush_operations",
        /// Failed discards.
        failed_unmap_operations: u64 = "failed_unmap_operations",
        /// Reads that made no sense.
        invalid_rd_operations: u64 = "invalid_rd_operations",
        /// Writes that made no sense.
        invalid_wr_operations: u64 = "invalid_wr_operations",
        /// Flushes that made no sense.
        invalid_flush_operations: u64 = "invalid_flush_operations",
        /// Discards that made no sense.
        invalid_unmap_operations: u64 = "invalid_unmap_operations",
        /// Whether invalid requests count as a sign of life.
        account_invalid: bool = "account_invalid",
        /// Whether failed requests count in latencies.
        account_failed: bool = "account_failed",
        /// Statistics per interval. None are kept; clients expect the member.
        timed_stats: Vec<BlockDeviceTimedStats> = "timed_stats",
    }
}

object! {
    /// Statistics of one interval, in seconds and nanoseconds.
    pub struct BlockDeviceTimedStats {
        /// Length of the interval in seconds.
        interval_length: i64 = "interval_length",
        /// Fastest read.
        min_rd_latency_ns: i64 = "min_rd_latency_ns",
        /// Slowest read.
        max_rd_latency_ns: i64 = "max_rd_latency_ns",
        /// Average read.
        avg_rd_latency_ns: i64 = "avg_rd_latency_ns",
        /// Fastest write.
        min_wr_latency_ns: i64 = "min_wr_latency_ns",
        /// Slowest write.
        max_wr_latency_ns: i64 = "max_wr_latency_ns",
        /// Average write.
        avg_wr_latency_ns: i64 = "avg_wr_latency_ns",
        /// Fastest flush.
        min_flush_latency_ns: i64 = "min_flush_latency_ns",
        /// Slowest flush.
        max_flush_latency_ns: i64 = "max_flush_latency_ns",
        /// Average flush.
        avg_flush_latency_ns: i64 = "avg_flush_latency_ns",
        /// Average number of reads in flight.
        avg_rd_queue_depth: f64 = "avg_rd_queue_depth",
        /// Average number of writes in flight.
        avg_wr_queue_depth: f64 = "avg_wr_queue_depth",
    }
}
