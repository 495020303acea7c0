//! Saved state of a disk device: what its transport does not know.

use std::collections::BTreeSet;

use ferry_migration::state::State;
use ferry_migration::{Error as StateError, Result as StateResult};
use serde::{Deserialize, Serialize};

use super::request::SECTOR_LEN;
use crate::virtio::QueueSetup;

/// A virtio block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioBlkState {
    /// Length of the disk in sectors of 512 bytes, as the driver knows it.
    pub capacity: u64,
    /// Whether the write cache is on.
    pub write_cache: bool,
    /// Requests that failed and wait to be tried again.
    pub parked: Vec<ParkedState>,
}

/// A request that failed and waits to be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedState {
    /// Its queue.
    pub queue: u16,
    /// The head of its descriptor chain.
    pub head: u16,
}

impl State for VirtioBlkState {
    const KIND: &'static str = "virtio-blk";
    const VERSION: u16 = 1;
    type Older = Self;
}

impl VirtioBlkState {
    /// Refuses what does not fit this disk of `len` bytes and the queues that were running.
    pub(super) fn check(&self, instance: &str, len: u64, queues: &[QueueSetup]) -> StateResult<()> {
        let bad = |what: String| Err(StateError::state(format!("disk '{instance}': {what}")));
        if self.capacity > len / SECTOR_LEN {
            let (saved, ours) = (self.capacity, len / SECTOR_LEN);
            return bad(format!(
                "the guest knows it with {saved} sectors and here it has {ours}; use the same disk"
            ));
        }
        for queue in queues {
            let heads = || self.parked.iter().filter(|parked| parked.queue == queue.index);
            // Whatever was taken was given back or is parked.
            let taken = queue.ring.next_avail.wrapping_sub(queue.ring.next_used);
            if heads().count() != usize::from(taken) {
                return bad(format!("queue {} has lost requests", queue.index));
            }
            let mut seen = BTreeSet::new();
            if !heads().all(|parked| parked.head < queue.ring.size && seen.insert(parked.head)) {
                return bad(format!("queue {} waits for impossible requests", queue.index));
            }
        }
        let known = |parked: &ParkedState| queues.iter().any(|queue| queue.index == parked.queue);
        if !self.parked.iter().all(known) {
            return bad("requests wait on a queue that does not run".to_owned());
        }
        Ok(())
    }
}
