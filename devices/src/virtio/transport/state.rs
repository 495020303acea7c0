//! Saved state of the transport, and its check: the state may come from an attacker.

use ferry_migration::state::State;
use ferry_migration::{Error as StateError, Result as StateResult};
use serde::{Deserialize, Serialize};

use super::common::{CommonConfig, QueueConfig};
use super::interrupt::NO_VECTOR;
use crate::GuestMemory;
use crate::pci::state::{ConfigState, MsixState};
use crate::virtio::QueueSetup;
use crate::virtio::features::{self, status};
use crate::virtio::queue::Ring;

/// A virtio PCI function: everything but what the device type adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    /// Configuration space.
    pub config: ConfigState,
    /// Interrupt vectors.
    pub msix: MsixState,
    /// The device status register.
    pub status: u8,
    /// The ISR register.
    pub isr: u8,
    /// The configuration generation.
    pub generation: u8,
    /// Vector of configuration changes; 0xffff is none.
    pub config_vector: u16,
    /// The features the driver accepted.
    pub features: u64,
    /// Selector of `device_feature`.
    pub device_feature_select: u32,
    /// Selector of `driver_feature`.
    pub driver_feature_select: u32,
    /// Selector of the queue registers.
    pub queue_select: u16,
    /// All queues the device has, in order.
    pub queues: Vec<VirtioQueueState>,
}

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioQueueState {
    /// Entries, as the driver chose.
    pub size: u16,
    /// Whether the driver enabled it.
    pub enabled: bool,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the available ring.
    pub driver: u64,
    /// Guest-physical address of the used ring.
    pub device: u64,
    /// Vector of its interrupts; 0xffff is none.
    pub vector: u16,
    /// The next entry of the available ring to take.
    pub next_avail: u16,
    /// The next entry of the used ring to fill.
    pub next_used: u16,
}

impl State for VirtioPciState {
    const KIND: &'static str = "virtio-pci";
    const VERSION: u16 = 1;
    type Older = Self;
}

impl VirtioPciState {
    /// The queues that run, if the device runs at all.
    pub(super) fn running(&self, common: &CommonConfig) -> Vec<QueueSetup> {
        let broken = self.status & status::NEEDS_RESET != 0;
        if self.status & status::DRIVER_OK == 0 || broken {
            return Vec::new();
        }
        let queues = (0..).zip(self.queues.iter().zip(&common.queues));
        let enabled = queues.filter(|(_, (saved, _))| saved.enabled);
        enabled
            .map(|(index, (saved, ours))| {
                let config = saved.config(ours.max_size);
                let ring = config.ring(self.features, saved.next_avail, saved.next_used);
                QueueSetup { index, ring }
            })
            .collect()
    }

    /// Refuses what no driver could have brought this device into.
    pub(super) fn check(
        &self,
        instance: &str,
        common: &CommonConfig,
        vectors: u16,
        memory: &GuestMemory,
    ) -> StateResult<()> {
        let bad =
            |what: String| Err(StateError::state(format!("virtio device '{instance}': {what}")));
        if self.queues.len() != common.queues.len() {
            let (saved, ours) = (self.queues.len(), common.queues.len());
            return bad(format!("the saved device has {saved} queues and this one {ours}"));
        }
        let agreed = self.status & status::FEATURES_OK != 0;
        if agreed && !features::acceptable(common.offered, self.features) {
            let (saved, ours) = (self.features, common.offered);
            return bad(format!(
                "the guest uses features {saved:#x} and this device offers {ours:#x}; \
                 start it with the same disk options as the source"
            ));
        }
        if self.status & status::DRIVER_OK != 0 && !agreed {
            return bad("it runs without agreed features".to_owned());
        }
        let known = |vector: u16| vector == NO_VECTOR || vector < vectors;
        if !known(self.config_vector) {
            return bad(format!("there is no interrupt vector {}", self.config_vector));
        }
        for (index, (saved, ours)) in self.queues.iter().zip(&common.queues).enumerate() {
            if !saved.size.is_power_of_two() || saved.size > ours.max_size {
                let (size, max) = (saved.size, ours.max_size);
                return bad(format!(
                    "queue {index} has {size} entries, at most {max} are possible"
                ));
            }
            if !known(saved.vector) {
                return bad(format!("there is no interrupt vector {}", saved.vector));
            }
        }
        for queue in self.running(common) {
            if let Err(why) = Ring::new(queue.ring, true, memory) {
                return bad(format!("queue {}: {why}", queue.index));
            }
        }
        Ok(())
    }
}

impl VirtioQueueState {
    /// As the driver configured it.
    pub(super) fn config(&self, max_size: u16) -> QueueConfig {
        QueueConfig {
            max_size,
            size: self.size,
            enabled: self.enabled,
            desc: self.desc,
            driver: self.driver,
            device: self.device,
        }
    }
}
