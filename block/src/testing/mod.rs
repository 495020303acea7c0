//! Disks for tests, and tests for disks: everything deterministic from a seed.

mod fault;
mod rng;
mod sim_disk;

pub use fault::{Effect, Fault, SimOp};
pub use rng::Rng;
pub use sim_disk::{SimCounts, SimDisk, SimOptions};
