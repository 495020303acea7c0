//! `block_set_io_throttle`: limits of one disk or export, or of several that share them.

use ferry_api::QmpError;
use ferry_api::command::{BlockDeviceInfo, BlockIoThrottle};
use ferry_block::filter::throttle::{ThrottleGroup, ThrottleLimits};
use ferry_block::{BackendKind, BlockBackend, BlockGraph};

use super::{Result, Storage};
use crate::events::signed;

impl Storage {
    /// `block_set_io_throttle`
    pub(super) async fn block_set_io_throttle(&self, arguments: BlockIoThrottle) -> Result<()> {
        let limits = limits_of(&arguments);
        let group = arguments.group;
        let who = match (arguments.device, arguments.id) {
            (Some(device), None) => Who::Device(device),
            (None, Some(id)) => Who::Id(id),
            _ => return Err(QmpError::generic("Need exactly one of 'device' and 'id'")),
        };
        let name = who.name().to_owned();
        let set = move |graph: BlockGraph| async move {
            let Some(root) = who.find(&graph) else { return Ok(false) };
            let group = group.as_deref();
            set_limits(&graph, &root, group, who.name(), limits).map(|()| true)
        };
        if self.on_graph(set).await? { Ok(()) } else { Err(QmpError::device_not_found(&name)) }
    }
}

/// How a client names what it limits.
enum Who {
    /// A disk by the name of its root.
    Device(String),
    /// A disk by the path of its device, or an export by its id.
    Id(String),
}

impl Who {
    fn name(&self) -> &str {
        match self {
            Who::Device(name) | Who::Id(name) => name,
        }
    }

    fn find(&self, graph: &BlockGraph) -> Option<BlockBackend> {
        match self {
            Who::Device(name) => graph.backend(name),
            // A disk's device and its root have one id between them.
            Who::Id(id) => graph.backend(id).or_else(|| {
                graph.backends().into_iter().find(|root| match root.kind() {
                    BackendKind::Device => root.tag().as_ref() == Some(id),
                    BackendKind::Export => root.name() == id,
                    BackendKind::Job => false,
                })
            }),
        }
    }
}

/// Puts `root` into `group`, or leaves it in its own, and sets that group's limits; without any limit
/// takes it out.
fn set_limits(
    graph: &BlockGraph,
    root: &BlockBackend,
    group: Option<&str>,
    own_name: &str,
    limits: ThrottleLimits,
) -> ferry_block::Result<()> {
    limits.check()?;
    if !limits.is_limited() {
        root.set_throttle(None);
        return Ok(());
    }
    let before = root.throttle();
    let name = group.or(before.as_ref().map(ThrottleGroup::name)).unwrap_or(own_name);
    let group = ThrottleGroup::find_or_make(graph, name);
    group.set_limits(limits)?;
    if before.is_none_or(|before| before.name() != group.name()) {
        root.set_throttle(Some(&group));
    }
    Ok(())
}

fn limits_of(from: &BlockIoThrottle) -> ThrottleLimits {
    // What is negative is out of range like what is too large.
    let number = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    let burst = |value: Option<i64>| value.map_or(0, number);
    let length = |value: Option<i64>| value.map_or(1, number);
    ThrottleLimits {
        bps_total: number(from.bps),
        bps_total_max: burst(from.bps_max),
        bps_total_max_length: length(from.bps_max_length),
        bps_read: number(from.bps_rd),
        bps_read_max: burst(from.bps_rd_max),
        bps_read_max_length: length(from.bps_rd_max_length),
        bps_write: number(from.bps_wr),
        bps_write_max: burst(from.bps_wr_max),
        bps_write_max_length: length(from.bps_wr_max_length),
        iops_total: number(from.iops),
        iops_total_max: burst(from.iops_max),
        iops_total_max_length: length(from.iops_max_length),
        iops_read: number(from.iops_rd),
        iops_read_max: burst(from.iops_rd_max),
        iops_read_max_length: length(from.iops_rd_max_length),
        iops_write: number(from.iops_wr),
        iops_write_max: burst(from.iops_wr_max),
        iops_write_max_length: length(from.iops_wr_max_length),
        iops_size: burst(from.iops_size),
    }
}

/// `info` with the limits of a disk's group.
pub(super) fn with_limits(info: BlockDeviceInfo, group: &ThrottleGroup) -> BlockDeviceInfo {
    let limits = group.limits();
    let some = |value: u64| (value != 0).then(|| signed(value));
    let length = |max: u64, length: u64| (max != 0).then(|| signed(length));
    BlockDeviceInfo {
        bps: signed(limits.bps_total),
        bps_rd: signed(limits.bps_read),
        bps_wr: signed(limits.bps_write),
        iops: signed(limits.iops_total),
        iops_rd: signed(limits.iops_read),
        iops_wr: signed(limits.iops_write),
        bps_max: some(limits.bps_total_max),
        bps_rd_max: some(limits.bps_read_max),
        bps_wr_max: some(limits.bps_write_max),
        iops_max: some(limits.iops_total_max),
        iops_rd_max: some(limits.iops_read_max),
        iops_wr_max: some(limits.iops_write_max),
        bps_max_length: length(limits.bps_total_max, limits.bps_total_max_length),
        bps_rd_max_length: length(limits.bps_read_max, limits.bps_read_max_length),
        bps_wr_max_length: length(limits.bps_write_max, limits.bps_write_max_length),
        iops_max_length: length(limits.iops_total_max, limits.iops_total_max_length),
        iops_rd_max_length: length(limits.iops_read_max, limits.iops_read_max_length),
        iops_wr_max_length: length(limits.iops_write_max, limits.iops_write_max_length),
        iops_size: some(limits.iops_size),
        group: Some(group.name().to_owned()),
        ..info
    }
}

#[cfg(test)]
#[path = "io_throttle_tests.rs"]
mod tests;
