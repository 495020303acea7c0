//! `query-block`, `query-named-block-nodes`, `query-blockstats`.

use ferry_api::command::{
    self, BlockDeviceInfo, BlockDeviceStats, BlockDirtyInfo, BlockInfo, BlockStats,
    BlockdevCacheInfo, IoStatus,
};
use ferry_block::bitmap::BitmapState;
use ferry_block::{BackendKind, BlockBackend, BlockGraph, BlockNode, DetectZeroes, OpStats};

use super::image_info::{Depth, backing_of, image_info};
use super::io_throttle::with_limits;
use super::{Result, Storage, qmp_error};
use crate::events::signed;

impl Storage {
    /// The guest's disks.
    pub(super) async fn query_block(&self) -> Result<Vec<BlockInfo>> {
        let look = |graph: BlockGraph| async move {
            let mut disks = Vec::new();
            for device in devices(&graph) {
                disks.push(block_info(&device).await);
            }
            disks
        };
        self.blocks.call(look).await.map_err(qmp_error)
    }

    /// All nodes that have a name.
    pub(super) async fn query_named_block_nodes(
        &self,
        depth: Depth,
    ) -> Result<Vec<BlockDeviceInfo>> {
        let look = move |graph: BlockGraph| async move {
            let mut infos = Vec::new();
            for node in graph.nodes().iter().filter(|node| is_named(node)) {
                infos.push(node_info(node, depth).await);
            }
            infos
        };
        self.blocks.call(look).await.map_err(qmp_error)
    }

    /// Counters of devices, or of nodes.
    pub(super) async fn query_blockstats(&self, nodes: bool) -> Result<Vec<BlockStats>> {
        let look = move |graph: BlockGraph| async move {
            if nodes {
                graph.nodes().iter().map(node_stats).collect()
            } else {
                devices(&graph).iter().map(device_stats).collect()
            }
        };
        self.blocks.call(look).await.map_err(qmp_error)
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

async fn block_info(backend: &BlockBackend) -> BlockInfo {
    let info = node_info(&visible(backend), Depth::Chain).await;
    let inserted = match backend.throttle() {
        Some(group) => with_limits(info, &group),
        None => info,
    };
    BlockInfo {
        device: backend.name().to_owned(),
        qdev: backend.tag(),
        kind: "unknown".to_owned(),
        removable: false,
        locked: false,
        inserted: Some(inserted),
        tray_open: None,
        io_status: Some(IoStatus::Ok),
    }
}

async fn node_info(node: &BlockNode, depth: Depth) -> BlockDeviceInfo {
    let image = image_info(node, depth).await;
    let options = node.options();
    // The newest first, as QEMU lists them.
    let bitmaps: Vec<_> = node.bitmaps().iter().rev().map(|b| dirty_info(b)).collect();
    BlockDeviceInfo {
        file: file_of(node),
        node_name: Some(node.name().to_owned()),
        ro: node.is_read_only(),
        drv: node.format().to_owned(),
        backing_file: backing_of(node).map(|below| file_of(&below)),
        backing_file_depth: depth.count(node),
        detect_zeroes: match options.detect_zeroes {
            DetectZeroes::Off => command::DetectZeroes::Off,
            DetectZeroes::On => command::DetectZeroes::On,
            DetectZeroes::Unmap => command::DetectZeroes::Unmap,
        },
        image,
        cache: BlockdevCacheInfo { writeback: true, direct: options.direct, no_flush: false },
        dirty_bitmaps: Some(bitmaps).filter(|bitmaps| !bitmaps.is_empty()),
        ..BlockDeviceInfo::default()
    }
}

/// The file a node's data is in: its own, or that of the first node below that has one.
pub(super) fn file_of(node: &BlockNode) -> String {
    let below = || node.children().first().map(|edge| file_of(&edge.node()));
    node.image_name().or_else(below).unwrap_or_default()
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
