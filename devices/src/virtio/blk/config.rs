//! What the driver is told of the disk: feature bits and configuration space
//! (virtio 1.2, sections 5.2.3 and 5.2.4).

use std::sync::Arc;

use ferry_block::{ErrorKind, Limits};

use super::request::{ID_LEN, MAX_RANGE_SECTORS, MAX_RANGES, SECTOR_LEN};
use crate::virtio::features;
use crate::virtio::queue::{MAX_CHAIN_LEN, MAX_QUEUE_SIZE};

/// Bytes of `struct virtio_blk_config` up to what secure erase and zones would add.
pub(super) const CONFIG_LEN: usize = 60;
/// Offset of `writeback`, the only field that the driver may write.
pub(super) const WRITEBACK: u64 = 32;

/// What to do with a request that the disk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// Tell the driver.
    Report,
    /// Tell the driver that all is well.
    Ignore,
    /// Keep the request and try it again at the next resume. Whoever decides so also stops the machine.
    Stop,
}

/// A request that the disk failed.
#[derive(Clone, Debug)]
pub struct FailedRequest {
    /// Whether it would have changed the disk; a flush counts as such.
    pub is_write: bool,
    /// What kind of error it was.
    pub kind: ErrorKind,
    /// In words.
    pub message: String,
}

/// Decides about failed requests. Called on the I/O thread; must not block.
pub type ErrorPolicy = Arc<dyn Fn(&FailedRequest) -> ErrorAction + Send + Sync>;

/// How a disk shall look to the guest.
#[derive(Clone)]
pub struct VirtioBlkConfig {
    /// Up to 20 bytes of ASCII that the guest can ask for; what is longer is cut.
    pub serial: String,
    /// Writes are refused.
    pub read_only: bool,
    /// How many queues, at least 1.
    pub queues: u16,
    /// Entries of each queue: a power of two from 4 to 1024.
    pub queue_size: u16,
    /// Bytes of a logical block: a power of two from 512 to 32768. Partition tables count in it.
    pub block_size: u32,
    /// Whether the write cache is on after a reset. The guest can switch it in either case.
    pub write_cache: bool,
    /// What to do when the disk fails a request.
    pub on_error: ErrorPolicy,
}

impl Default for VirtioBlkConfig {
    /// One queue of 256 entries, writable, with a write cache, errors reported.
    fn default() -> Self {
        Self {
            serial: String::new(),
            read_only: false,
            queues: 1,
            queue_size: 256,
            block_size: 512,
            write_cache: true,
            on_error: Arc::new(|_failed| ErrorAction::Report),
        }
    }
}

/// A configuration that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// See [`VirtioBlkConfig::queues`].
    #[error("a disk cannot have {0} queues; choose 1 to 255")]
    Queues(u16),
    /// See [`VirtioBlkConfig::queue_size`].
    #[error("a queue cannot have {0} entries; choose a power of two from 4 to 1024")]
    QueueSize(u16),
    /// See [`VirtioBlkConfig::block_size`].
    #[error("a disk cannot have blocks of {0} bytes; choose a power of two from 512 to 32768")]
    BlockSize(u32),
}

impl VirtioBlkConfig {
    /// Refuses what cannot be.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.queues == 0 || self.queues > 255 {
            return Err(ConfigError::Queues(self.queues));
        }
        let possible = self.queue_size.is_power_of_two() && self.queue_size >= 4;
        if !possible || self.queue_size > MAX_QUEUE_SIZE {
            return Err(ConfigError::QueueSize(self.queue_size));
        }
        if !self.block_size.is_power_of_two() || !(512..=1 << 15).contains(&self.block_size) {
            return Err(ConfigError::BlockSize(self.block_size));
        }
        Ok(())
    }

    /// The identifier as the driver gets it.
    pub(super) fn id(&self) -> [u8; ID_LEN] {
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(self.serial.bytes()) {
            *to = from;
        }
        id
    }

    /// What we offer besides the transport's bits.
    pub(super) fn features(&self, limits: &Limits) -> u64 {
        // Section 5.2.5.2: flush always, and with the switch for the cache it must be.
        let mut offered = features::BLK_SEG_MAX
            | features::BLK_BLK_SIZE
            | features::BLK_TOPOLOGY
            | features::BLK_FLUSH
            | features::BLK_CONFIG_WCE;
        if limits.max_transfer < u64::from(u32::MAX) {
            offered |= features::BLK_SIZE_MAX;
        }
        if self.queues > 1 {
            offered |= features::BLK_MQ;
        }
        offered |= if self.read_only {
            features::BLK_RO
        } else {
            features::BLK_DISCARD | features::BLK_WRITE_ZEROES
        };
        offered
    }

    /// The configuration space.
    pub(super) fn space(&self, limits: &Limits, len: u64, writeback: bool) -> [u8; CONFIG_LEN] {
        let sector = u32::try_from(SECTOR_LEN).unwrap_or(u32::MAX);
        // The logical block stays what it is whatever the image's alignment is: partition tables count in
        // it, and the image may be mirrored to storage with another. The alignment is only a hint.
        let logical = self.block_size;
        let physical = limits.request_alignment.clamp(logical, 1 << 16);
        let physical_exp = physical.ilog2() - logical.ilog2();
        let size_max = u32::try_from(limits.max_transfer).unwrap_or(u32::MAX);
        let seg_max = usize::from(self.queue_size).min(MAX_CHAIN_LEN) - 2;
        let zero_sectors = limits.max_zeroes / SECTOR_LEN;
        let zero_sectors = u32::try_from(zero_sectors).unwrap_or(u32::MAX).min(MAX_RANGE_SECTORS);
        let ranges = u32::try_from(MAX_RANGES).unwrap_or(u32::MAX);
        let alignment = limits.discard_granularity.max(logical) / sector;

        let mut space = Space { bytes: [0; CONFIG_LEN], end: 0 };
        space.put(&(len / SECTOR_LEN).to_le_bytes());
        space.put(&size_max.to_le_bytes());
        space.put(&u32::try_from(seg_max).unwrap_or(u32::MAX).to_le_bytes());
        space.put(&[0; 4]); // no geometry
        space.put(&logical.to_le_bytes());
        // Topology: physical block exponent, alignment offset, minimum and optimal I/O size in blocks.
        space.put(&[u8::try_from(physical_exp).unwrap_or(0), 0]);
        space.put(&u16::try_from(1 << physical_exp).unwrap_or(1).to_le_bytes());
        space.put(&[0; 4]);
        space.put(&[u8::from(writeback), 0]);
        space.put(&self.queues.to_le_bytes());
        for field in [zero_sectors, ranges, alignment, zero_sectors, ranges] {
            space.put(&field.to_le_bytes());
        }
        space.put(&[1, 0, 0, 0]); // write zeroes may unmap
        space.bytes
    }
}

/// Fills a structure front to back.
struct Space {
    bytes: [u8; CONFIG_LEN],
    end: usize,
}

impl Space {
    fn put(&mut self, field: &[u8]) {
        let end = self.end + field.len();
        self.bytes[self.end..end].copy_from_slice(field);
        self.end = end;
    }
}
