//! How the transport is saved and restored.

use ferry_migration::state::{Migrate, Sections};
use ferry_migration::{Error as StateError, Result as StateResult};

use super::VirtioPci;
use super::common::QueueConfig;
use super::state::{VirtioPciState, VirtioQueueState};
use crate::virtio::features::status;

impl Migrate for VirtioPci {
    fn save(&self, out: &mut Sections) -> StateResult<()> {
        let Some(positions) = &self.positions else {
            return Err(StateError::state(format!("virtio device '{}' is not quiesced", self.id)));
        };
        let position = |index: u16| positions.iter().find(|position| position.index == index);
        let queue = |(index, queue): (u16, &QueueConfig)| VirtioQueueState {
            size: queue.size,
            enabled: queue.enabled,
            desc: queue.desc,
            driver: queue.driver,
            device: queue.device,
            vector: self.interrupt.queue_vector(index),
            next_avail: position(index).map_or(0, |position| position.next_avail),
            next_used: position(index).map_or(0, |position| position.next_used),
        };
        let state = VirtioPciState {
            config: self.config.save(),
            msix: self.msix.save(),
            status: self.interrupt.status(),
            isr: self.interrupt.isr(),
            generation: self.common.generation,
            config_vector: self.interrupt.config_vector(),
            features: self.common.accepted,
            device_feature_select: self.common.device_feature_select,
            driver_feature_select: self.common.driver_feature_select,
            queue_select: self.common.queue_select,
            queues: (0..).zip(&self.common.queues).map(queue).collect(),
        };
        out.save(&self.id, &state)?;
        self.device.save(&self.id, out)
    }

    /// The queues stay stopped until [`VirtioPci::resume`].
    fn restore(&mut self, from: &mut Sections) -> StateResult<()> {
        let state: VirtioPciState = from.load(&self.id)?;
        state.check(&self.id, &self.common, self.msix.vector_count(), &self.memory)?;
        let queues = state.running(&self.common);
        self.device.restore(&self.id, from, state.features, &queues)?;
        self.msix.restore(&state.msix)?;
        self.config.restore(&state.config)?;

        self.interrupt.restore(state.status, state.isr);
        self.interrupt.set_config_vector(state.config_vector);
        self.common.accepted = state.features;
        self.common.generation = state.generation;
        self.common.device_feature_select = state.device_feature_select;
        self.common.driver_feature_select = state.driver_feature_select;
        self.common.queue_select = state.queue_select;
        let saved = state.queues.iter().zip(&mut self.common.queues);
        for (index, (saved, queue)) in (0..).zip(saved) {
            *queue = saved.config(queue.max_size);
            self.interrupt.set_queue_vector(index, saved.vector);
        }
        if state.status & status::FEATURES_OK != 0 {
            self.device.negotiated(state.features);
        }
        self.started = state.status & status::DRIVER_OK != 0;
        // Nobody waits for this: the device takes its orders one after the other.
        drop(self.device.quiesce());
        if !queues.is_empty() {
            self.device.start(state.features, queues);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "migrate_tests.rs"]
mod tests;
