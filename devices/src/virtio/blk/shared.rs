//! What both halves of a disk device know: the vCPUs' side changes it, the I/O thread looks at it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ferry_block::Limits;

use super::config::{ErrorAction, FailedRequest, VirtioBlkConfig, WRITEBACK};
use super::request::{ID_LEN, Rules};
use crate::virtio::features;
use crate::virtio::queue::QueueError;

/// The changeable properties of a disk.
pub(super) struct Shared {
    config: VirtioBlkConfig,
    id: [u8; ID_LEN],
    /// Bytes.
    len: AtomicU64,
    /// The `writeback` field.
    writeback: AtomicBool,
    /// The log tells of the first misbehaviour of a driver only: it could fill the host's disk otherwise.
    complained: AtomicBool,
}

impl Shared {
    pub(super) fn new(config: VirtioBlkConfig, len: u64) -> Self {
        let writeback = AtomicBool::new(config.write_cache);
        let complained = AtomicBool::new(false);
        Self { id: config.id(), config, len: AtomicU64::new(len), writeback, complained }
    }

    pub(super) fn config(&self) -> &VirtioBlkConfig {
        &self.config
    }

    /// Length of the disk in bytes, as the driver knows it or can know it.
    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Sets the length; answers what it was.
    pub(super) fn set_len(&self, len: u64) -> u64 {
        self.len.swap(len, Ordering::AcqRel)
    }

    /// The `writeback` field of the configuration.
    pub(super) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Acquire)
    }

    pub(super) fn set_writeback(&self, on: bool) {
        self.writeback.store(on, Ordering::Release);
    }

    /// Whether writes may complete before they are durable, with these features negotiated (section
    /// 5.2.6.2): as the driver switched it; or if it knows of flushes; else never.
    pub(super) fn write_cache(&self, negotiated: u64) -> bool {
        if negotiated & features::BLK_CONFIG_WCE != 0 {
            self.writeback()
        } else {
            negotiated & features::BLK_FLUSH != 0
        }
    }

    /// The driver reads the configuration space. Beyond its end there are zeroes.
    pub(super) fn read_config(&self, limits: &Limits, offset: u64, data: &mut [u8]) {
        let space = self.config.space(limits, self.len(), self.writeback());
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            let at = start.checked_add(index);
            *byte = at.and_then(|at| space.get(at)).copied().unwrap_or(0);
        }
    }

    /// The driver writes the configuration space. Only the write cache can be switched. The driver may do so
    /// once features are agreed, and only if it negotiated the switch; where it is offered its absence is seen
    /// in the features of the queues.
    pub(super) fn write_config(&self, offset: u64, data: &[u8]) {
        if let (WRITEBACK, [value]) = (offset, data) {
            self.set_writeback(*value != 0);
        }
    }

    /// The driver broke its device: says so in the log.
    pub(super) fn complain(&self, queue: u16, error: QueueError) {
        if self.complained.swap(true, Ordering::Relaxed) {
            tracing::debug!(queue, "the guest's driver broke its disk again: {error}");
        } else {
            tracing::warn!(
                queue,
                "the guest's driver broke its disk, which needs a reset: {error}"
            );
        }
    }

    /// What decides whether a request is possible.
    pub(super) fn rules(&self, features: u64) -> Rules {
        Rules { len: self.len(), read_only: self.config.read_only, features, id: self.id }
    }

    pub(super) fn on_error(&self, failed: &FailedRequest) -> ErrorAction {
        (self.config.on_error)(failed)
    }
}
