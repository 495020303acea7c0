//! Hostile input. Each `fuzz_` function takes any bytes and comes back soon, having used little
//! memory, whatever they say; a panic or a hang is a mistake of what it tests. What they answer
//! says how far the bytes got, so that a seed can be seen to go deep.

mod at_rest;
mod names;
mod nbd;
mod qcow2;

use crate::backend::BackendKind;
use crate::buf::IoBuf;
use crate::clock::Clock;
use crate::driver::WriteFlags;
use crate::edge::EdgePerms;
use crate::executor::Executor;
use crate::graph::BlockGraph;
use crate::node::BlockNode;

pub use at_rest::fuzz_qcow2_at_rest;
pub use names::{fuzz_names, name_seeds};
pub use nbd::{fuzz_nbd_client, fuzz_nbd_server, nbd_client_seeds, nbd_server_seeds};
pub use qcow2::{fuzz_qcow2, qcow2_seeds};

/// Bytes of a request.
const STEP: usize = 16 << 10;
/// Requests go no further than this, however long a disk says it is, bytes.
const REACH: u64 = 1 << 20;

/// Runs `work` on a graph and a thread of its own, so to speak, of which nothing is left. The clock
/// is simulated: a request that waits for what never comes is a panic.
fn on_a_graph<T>(work: impl AsyncFnOnce(&BlockGraph) -> T) -> T {
    let executor = Executor::new(Clock::simulated()).expect("an executor");
    let graph = BlockGraph::new(executor.clone());
    let result = executor.block_on(work(&graph));
    drop(graph);
    executor.shut_down();
    result
}

/// Reads, maps and changes a disk, its length too; how many requests succeeded.
async fn use_disk(graph: &BlockGraph, node: &BlockNode) -> u32 {
    let perms = if node.is_read_only() { EdgePerms::READ } else { EdgePerms::READ_WRITE };
    let Ok(root) = graph.add_backend(BackendKind::Device, "d", node, perms) else { return 0 };
    let buf = IoBuf::alloc(STEP);
    let last = node.len().saturating_sub(STEP as u64);
    let mut passed = 0;
    for (turn, at) in (0..node.len().min(REACH)).step_by(STEP).chain([last]).enumerate() {
        let end = at.saturating_add(STEP as u64).min(node.len());
        let part = buf.slice(0..usize::try_from(end - at).unwrap_or(0));
        passed += u32::from(root.read(at, part.clone()).await.is_ok());
        passed += u32::from(node.map(at..end).await.is_ok());
        let changed = match turn % 6 {
            0 => root.write(at, part, WriteFlags::NONE).await,
            1 => root.write_zeroes(at..end, WriteFlags::UNMAP).await,
            2 => root.write(at, part.slice(0..part.len().min(512)), WriteFlags::FUA).await,
            3 => node.discard(at..end).await,
            4 => root.write(at, part, WriteFlags::COMPRESSED).await,
            _ => root.write_zeroes(at..end, WriteFlags::NONE).await,
        };
        passed += u32::from(changed.is_ok());
    }
    drop(root);
    let len = node.len();
    for len in [len.saturating_add(STEP as u64), len / 2, len] {
        passed += u32::from(node.resize(len).await.is_ok());
    }
    passed + u32::from(node.flush().await.is_ok())
}

#[cfg(test)]
#[path = "../fuzz_tests.rs"]
mod tests;
