//! Disks for tests, and tests for disks: everything deterministic from a seed.

mod conformance;
mod fault;
mod fuzz;
mod model;
mod overlay;
mod rng;
mod sim_disk;
mod tool;

pub use conformance::{CONFORMANCE_LEN, conformance};
pub use fault::{Effect, Fault, SimOp};
pub use fuzz::{
    fuzz_names, fuzz_nbd_client, fuzz_nbd_server, fuzz_qcow2, fuzz_qcow2_at_rest, name_seeds,
    nbd_client_seeds, nbd_server_seeds, qcow2_seeds,
};
pub use model::Model;
pub use overlay::Overlay;
pub use rng::Rng;
pub use sim_disk::{SimCounts, SimDisk, SimOptions};
pub use tool::{have_tool, tool};
