//! Hostile input. Each `fuzz_` function takes any bytes and comes back soon, having used little
//! memory, whatever they say; a panic or a hang is a mistake of what it tests. What they answer
//! says how far the bytes got, so that a seed can be seen to go deep.

mod nbd;
mod qcow2;

use crate::backend::BackendKind;
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::edge::EdgePerms;
use crate::graph::BlockGraph;
use crate::node::BlockNode;

pub use nbd::{fuzz_nbd_client, fuzz_nbd_server, nbd_client_seeds, nbd_server_seeds};
pub use qcow2::{fuzz_qcow2, qcow2_seeds};

/// Bytes of a request.
const STEP: usize = 16 << 10;
/// Requests go no further than this, however long a disk says it is, bytes.
const REACH: u64 = 1 << 20;

/// Reads, maps and changes a disk; how many requests succeeded.
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
        let changed = match turn % 4 {
            0 => root.write(at, part, WriteFlags::NONE).await,
            1 => root.write_zeroes(at..end, WriteFlags::UNMAP).await,
            2 => root.write(at, part.slice(0..part.len().min(512)), WriteFlags::FUA).await,
            _ => node.discard(at..end).await,
        };
        passed += u32::from(changed.is_ok());
    }
    passed + u32::from(node.flush().await.is_ok())
}

#[cfg(test)]
#[path = "../fuzz_tests.rs"]
mod tests;
