//! The common configuration structure: what the driver sets up before it starts the device
//! (virtio 1.2, section 4.1.4.3).

use std::sync::Arc;

use virtio_queue::QueueState;

use super::interrupt::Interrupt;
use crate::virtio::features;

/// Bytes of the structure without the parts that unoffered features add.
pub(super) const COMMON_LEN: usize = 0x38;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_MSIX_VECTOR: u64 = 0x10;
/// The device status; the transport handles its writes.
pub(super) const DEVICE_STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

/// A queue as the driver configures it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueConfig {
    /// What we offer; a power of two.
    pub(super) max_size: u16,
    /// What the driver chose; a power of two, never more.
    pub(super) size: u16,
    /// The driver finished with it.
    pub(super) enabled: bool,
    /// Guest-physical address of the descriptor table.
    pub(super) desc: u64,
    /// Guest-physical address of the available ring.
    pub(super) driver: u64,
    /// Guest-physical address of the used ring.
    pub(super) device: u64,
}

impl QueueConfig {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, enabled: false, desc: 0, driver: 0, device: 0 }
    }

    fn takes_size(&self, size: u16) -> bool {
        !self.enabled && size.is_power_of_two() && size <= self.max_size
    }

    /// In the form in which the ring takes it over, at given positions.
    pub(super) fn ring(&self, accepted: u64, next_avail: u16, next_used: u16) -> QueueState {
        QueueState {
            max_size: self.max_size,
            next_avail,
            next_used,
            event_idx_enabled: accepted & features::RING_EVENT_IDX != 0,
            size: self.size,
            ready: self.enabled,
            desc_table: self.desc,
            avail_ring: self.driver,
            used_ring: self.device,
        }
    }
}

/// The registers; status and vectors live in [`Interrupt`], as the I/O thread uses them too.
#[derive(Debug)]
pub(super) struct CommonConfig {
    pub(super) offered: u64,
    pub(super) accepted: u64,
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) queue_select: u16,
    pub(super) generation: u8,
    pub(super) queues: Vec<QueueConfig>,
    interrupt: Arc<Interrupt>,
}

impl CommonConfig {
    pub(super) fn new(offered: u64, sizes: &[u16], interrupt: Arc<Interrupt>) -> Self {
        Self {
            offered,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            generation: 0,
            queues: sizes.iter().map(|size| QueueConfig::new(*size)).collect(),
            interrupt,
        }
    }

    /// As after power-on. The generation goes on: a driver may compare it across a reset.
    pub(super) fn reset(&mut self) {
        self.accepted = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = QueueConfig::new(queue.max_size);
        }
    }

    fn selected(&self) -> Option<QueueConfig> {
        self.queues.get(usize::from(self.queue_select)).copied()
    }

    fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// Reads any bytes of the structure: no register of it has a side effect when read.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            let at = start.checked_add(index);
            *byte = at.and_then(|at| image.get(at)).copied().unwrap_or(0);
        }
    }

    fn image(&self) -> [u8; COMMON_LEN] {
        // A queue that does not exist has size 0 (section 4.1.4.3.1).
        let nothing = QueueConfig { size: 0, ..QueueConfig::new(0) };
        let queue = self.selected().unwrap_or(nothing);
        let notify_off = if queue.max_size == 0 { 0 } else { self.queue_select };
        let mut image = Image { bytes: [0; COMMON_LEN], end: 0 };
        image.put(&self.device_feature_select.to_le_bytes());
        image.put(&half(self.offered, self.device_feature_select).to_le_bytes());
        image.put(&self.driver_feature_select.to_le_bytes());
        image.put(&half(self.accepted, self.driver_feature_select).to_le_bytes());
        image.put(&self.interrupt.config_vector().to_le_bytes());
        image.put(&self.queue_count().to_le_bytes());
        image.put(&[self.interrupt.status(), self.generation]);
        image.put(&self.queue_select.to_le_bytes());
        image.put(&queue.size.to_le_bytes());
        image.put(&self.interrupt.queue_vector(self.queue_select).to_le_bytes());
        image.put(&u16::from(queue.enabled).to_le_bytes());
        image.put(&notify_off.to_le_bytes());
        image.put(&queue.desc.to_le_bytes());
        image.put(&queue.driver.to_le_bytes());
        image.put(&queue.device.to_le_bytes());
        image.bytes
    }

    /// Writes one register. Accesses must have its width, or 32 bits for either half of a 64-bit one
    /// (section 4.1.3.1); other writes do nothing. `frozen` once the device runs: then only selectors and
    /// vectors still change.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], frozen: bool) {
        match *data {
            [b0, b1] => self.write16(offset, u16::from_le_bytes([b0, b1]), frozen),
            [b0, b1, b2, b3] => self.write32(offset, u32::from_le_bytes([b0, b1, b2, b3]), frozen),
            [b0, b1, b2, b3, b4, b5, b6, b7] if offset >= QUEUE_DESC => {
                self.write32(offset, u32::from_le_bytes([b0, b1, b2, b3]), frozen);
                self.write32(offset + 4, u32::from_le_bytes([b4, b5, b6, b7]), frozen);
            }
            _ => {}
        }
    }

    fn write16(&mut self, offset: u64, value: u16, frozen: bool) {
        let select = self.queue_select;
        let queue = self.queues.get_mut(usize::from(select));
        match (offset, queue) {
            (CONFIG_MSIX_VECTOR, _) => self.interrupt.set_config_vector(value),
            (QUEUE_SELECT, _) => self.queue_select = value,
            (QUEUE_MSIX_VECTOR, Some(_)) => self.interrupt.set_queue_vector(select, value),
            // Section 4.1.4.3.2: the driver must write a power of two; what is none is not taken.
            (QUEUE_SIZE, Some(queue)) if !frozen && queue.takes_size(value) => queue.size = value,
            // Writing 0 is forbidden to the driver and does nothing.
            (QUEUE_ENABLE, Some(queue)) if !frozen && value == 1 => queue.enabled = true,
            _ => {}
        }
    }

    fn write32(&mut self, offset: u64, value: u32, frozen: bool) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            DRIVER_FEATURE => {
                let agreed = self.interrupt.status() & features::status::FEATURES_OK != 0;
                if !agreed {
                    set_half(&mut self.accepted, self.driver_feature_select, value);
                }
            }
            _ => {
                let queue = self.queues.get_mut(usize::from(self.queue_select));
                let Some(queue) = queue.filter(|queue| !frozen && !queue.enabled) else { return };
                match offset & !4 {
                    QUEUE_DESC => set_half(&mut queue.desc, half_index(offset), value),
                    QUEUE_DRIVER => set_half(&mut queue.driver, half_index(offset), value),
                    QUEUE_DEVICE => set_half(&mut queue.device, half_index(offset), value),
                    _ => {}
                }
            }
        }
    }
}

/// Fills a structure front to back.
struct Image {
    bytes: [u8; COMMON_LEN],
    end: usize,
}

impl Image {
    fn put(&mut self, field: &[u8]) {
        let end = self.end + field.len();
        self.bytes[self.end..end].copy_from_slice(field);
        self.end = end;
    }
}

/// 0 for the low, 1 for the high half of the 64-bit register at `offset`.
fn half_index(offset: u64) -> u32 {
    u32::from(offset & 4 != 0)
}

/// Bits `select * 32` and up; there are none above 63.
fn half(value: u64, select: u32) -> u32 {
    let [b0, b1, b2, b3, b4, b5, b6, b7] = value.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([b0, b1, b2, b3]),
        1 => u32::from_le_bytes([b4, b5, b6, b7]),
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = (*value & !u64::from(u32::MAX)) | u64::from(half),
        1 => *value = (*value & u64::from(u32::MAX)) | u64::from(half) << 32,
        _ => {}
    }
}
