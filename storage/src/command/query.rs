//! `query-block`, `query-named-block-nodes`, `query-blockstats`.

use ferry_api::command::{
    self, BlockDeviceInfo, BlockDeviceStats, BlockDirtyInfo, BlockInfo, BlockStats,
    BlockdevCacheInfo, ImageInfo, IoStatus,
};
use ferry_block::bitmap::BitmapState;
use ferry_block::{BackendKind, BlockBackend, BlockGraph, BlockNode, DetectZeroes, OpStats};

use super::{Result, Storage, qmp_error};
use crate::events::signed;

impl Storage {
    /// The guest's disks.
    pub(super) async fn query_block(&self) -> Result<Vec<BlockInfo>> {
        self.with_graph(|graph| devices(graph).iter().map(block_info).collect()).await
    }

    /// All nodes that have a name.
    pub(super) async fn query_named_block_nodes(&self) -> Result<Vec<BlockDeviceInfo>> {
        self.with_graph(|graph| {
            graph.nodes().iter().filter(|n| is_named(n)).map(node_info).collect()
        })
        .await
    }

    /// Counters of devices, or of nodes.
    pub(super) async fn query_blockstats(&self, nodes: bool) -> Result<Vec<BlockStats>> {
        self.with_graph(move |graph| {
            if nodes {
                graph.nodes().iter().map(node_stats).collect()
            } else {
                devices(graph).iter().map(device_stats).collect()
            }
        })
        .await
    }

    async fn with_graph<R: Send + 'static>(
        &self,
        look: impl FnOnce(&BlockGraph) -> R + Send + 'static,
    ) -> Result<R> {
        self.blocks.call(|graph| async move { look(&graph) }).await.map_err(qmp_error)
    }
}

fn devices(graph: &BlockGraph) -> Vec<BlockBackend> {
    graph.backends().into_iter().filter(|b| b.kind() == BackendKind::Device).collect()
}

/// Nodes without a name of the user's have one that starts with `#`; implicit filters are among them.
fn is_named(node: &BlockNode) -> bool {
    !node.name().starts_with('#') || node.format() != "mirror_top"
}

/// The node a user means by a device's disk: below the filters of jobs that he gave no name.
fn visible(backend: &BlockBackend) -> BlockNode {
    let mut node = backend.node();
    while !is_named(&node) {
        let Some(below) = node.children().first().map(|edge| edge.node()) else { break };
        node = below;
    }
    node
}

fn block_info(backend: &BlockBackend) -> BlockInfo {
    BlockInfo {
        device: backend.name().to_owned(),
        qdev: backend.tag(),
        kind: "unknown".to_owned(),
        removable: false,
        locked: false,
        inserted: Some(node_info(&visible(backend))),
        tray_open: None,
        io_status: Some(IoStatus::Ok),
    }
}

fn node_info(node: &BlockNode) -> BlockDeviceInfo {
    let filename = file_of(node);
    let options = node.options();
    let bitmaps: Vec<_> = node.bitmaps().iter().map(|b| dirty_info(b)).collect();
    BlockDeviceInfo {
        file: filename.clone(),
        node_name: Some(node.name().to_owned()),
        ro: node.is_read_only(),
        drv: node.format().to_owned(),
        backing_file_depth: 0,
        encrypted: false,
        detect_zeroes: match options.detect_zeroes {
            DetectZeroes::Off => command::DetectZeroes::Off,
            DetectZeroes::On => command::DetectZeroes::On,
            DetectZeroes::Unmap => command::DetectZeroes::Unmap,
        },
        bps: 0,
        bps_rd: 0,
        bps_wr: 0,
        iops: 0,
        iops_rd: 0,
        iops_wr: 0,
        image: ImageInfo {
            filename,
            format: node.format().to_owned(),
            actual_size: None,
            virtual_size: signed(node.len()),
        },
        cache: BlockdevCacheInfo { writeback: true, direct: options.direct, no_flush: false },
        write_threshold: 0,
        dirty_bitmaps: Some(bitmaps).filter(|bitmaps| !bitmaps.is_empty()),
    }
}

/// The file a node's data is in: its own, or that of the first node below that has one.
fn file_of(node: &BlockNode) -> String {
    let below = || node.children().first().map(|edge| file_of(&edge.node()));
    node.filename().or_else(below).unwrap_or_default()
}

fn dirty_info(bitmap: &ferry_block::AttachedBitmap) -> BlockDirtyInfo {
    let bits = bitmap.bits.borrow();
    BlockDirtyInfo {
        name: bitmap.name.clone(),
        count: signed(bits.dirty_bytes()),
        granularity: u32::try_from(bits.granularity()).unwrap_or(u32::MAX),
        recording: bits.state() == BitmapState::Recording,
        busy: bitmap.busy.get(),
        persistent: bitmap.persistent.get(),
        inconsistent: (bits.state() == BitmapState::Inconsistent).then_some(true),
    }
}

fn device_stats(backend: &BlockBackend) -> BlockStats {
    BlockStats {
        device: Some(backend.name().to_owned()),
        qdev: backend.tag(),
        node_name: Some(visible(backend).name().to_owned()),
        stats: counters(backend.stats()),
        parent: None,
    }
}

fn node_stats(node: &BlockNode) -> BlockStats {
    BlockStats {
        device: None,
        qdev: None,
        node_name: Some(node.name().to_owned()),
        stats: counters(node.stats()),
        parent: None,
    }
}

fn counters(from: ferry_block::BlockStats) -> BlockDeviceStats {
    let good = |stats: OpStats| stats.ops.saturating_sub(stats.failed);
    BlockDeviceStats {
        rd_bytes: from.read.bytes,
        wr_bytes: from.write.bytes,
        unmap_bytes: from.discard.bytes,
        rd_operations: good(from.read),
        wr_operations: good(from.write),
        flush_operations: good(from.flush),
        unmap_operations: good(from.discard),
        rd_total_time_ns: from.read.ns,
        wr_total_time_ns: from.write.ns,
        flush_total_time_ns: from.flush.ns,
        unmap_total_time_ns: from.discard.ns,
        wr_highest_offset: from.write_highest,
        failed_rd_operations: from.read.failed,
        failed_wr_operations: from.write.failed,
        failed_flush_operations: from.flush.failed,
        failed_unmap_operations: from.discard.failed,
        account_invalid: true,
        account_failed: true,
        ..BlockDeviceStats::default()
    }
}
