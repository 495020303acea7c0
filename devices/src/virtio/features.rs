//! Feature bits and the device status field (virtio 1.2, sections 2.1, 2.2, 5.2.3 and 6).

/// Descriptors may refer to a table of further descriptors (section 6, `VIRTIO_F_INDIRECT_DESC`).
pub const RING_INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are suppressed by index instead of by flag (section 6, `VIRTIO_F_EVENT_IDX`).
pub const RING_EVENT_IDX: u64 = 1 << 29;
/// The device follows virtio 1.0 or later; we know no other (section 6, `VIRTIO_F_VERSION_1`).
pub const VERSION_1: u64 = 1 << 32;

/// What every device of ours offers besides its own bits.
pub const TRANSPORT: u64 = RING_INDIRECT_DESC | RING_EVENT_IDX | VERSION_1;

/// Block: `size_max` in the configuration is valid (section 5.2.3).
pub const BLK_SIZE_MAX: u64 = 1 << 1;
/// Block: `seg_max` in the configuration is valid.
pub const BLK_SEG_MAX: u64 = 1 << 2;
/// Block: the disk is read-only.
pub const BLK_RO: u64 = 1 << 5;
/// Block: `blk_size` in the configuration is valid.
pub const BLK_BLK_SIZE: u64 = 1 << 6;
/// Block: the flush command exists.
pub const BLK_FLUSH: u64 = 1 << 9;
/// Block: `topology` in the configuration is valid.
pub const BLK_TOPOLOGY: u64 = 1 << 10;
/// Block: the driver may switch the write cache.
pub const BLK_CONFIG_WCE: u64 = 1 << 11;
/// Block: there are `num_queues` queues.
pub const BLK_MQ: u64 = 1 << 12;
/// Block: the discard command exists.
pub const BLK_DISCARD: u64 = 1 << 13;
/// Block: the write-zeroes command exists.
pub const BLK_WRITE_ZEROES: u64 = 1 << 14;

/// The bits of the device status field (section 2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest knows how to drive the device.
    pub const DRIVER: u8 = 2;
    /// The driver is set up: queues run from now on.
    pub const DRIVER_OK: u8 = 4;
    /// The driver has accepted features and we have agreed.
    pub const FEATURES_OK: u8 = 8;
    /// We met something that we cannot go on from; only a reset helps.
    pub const NEEDS_RESET: u8 = 64;
    /// The guest has given up on the device.
    pub const FAILED: u8 = 128;
}

/// Whether a driver may run with the features it accepted (section 2.2.2 and 6.1).
///
/// It may accept only what was offered, and must accept [`VERSION_1`], as we have no legacy interface.
pub const fn acceptable(offered: u64, accepted: u64) -> bool {
    accepted & !offered == 0 && accepted & VERSION_1 != 0
}
