//! Writes of parts of a block.

use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::driver::Limits;
use crate::executor::{Executor, within};
use crate::graph::BlockGraph;
use crate::node::NodeOptions;
use crate::testing::{Effect, Fault, SimDisk, SimOp, SimOptions};

/// A write of a part of a block that is given up while its disk is slow to read, or to write; how often the
/// disk was written to after that, and what is in the next part then, to which somebody else has written.
fn given_up_in(op: SimOp) -> (u64, u8) {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let limits = Limits { request_alignment: 4096, ..Limits::NONE };
    let disk = SimDisk::new(&executor, SimOptions { limits, ..SimOptions::new(8192, 1) });
    executor.block_on(async {
        let graph = BlockGraph::new(executor.clone());
        let node = graph.add(None, disk.clone(), NodeOptions::default()).await.unwrap();
        let bytes = |byte: u8| IoBuf::from_vec(&[byte; 512]);
        disk.inject(Fault::once(op, Effect::Delay(Duration::from_millis(100))));
        let first = node.write(0, bytes(1), WriteFlags::NONE);
        assert!(within(&executor, Duration::from_millis(5), first).await.is_none());
        let before = disk.counts().writes.0;
        node.write(512, bytes(2), WriteFlags::NONE).await.unwrap();
        executor.sleep(Duration::from_secs(1)).await;
        (disk.counts().writes.0 - before, disk.contents()[512])
    })
}

#[test]
fn the_rest_of_a_block_that_was_given_up_is_not_put_back() {
    assert_eq!(given_up_in(SimOp::Write), (1, 2));
}

#[test]
fn what_is_given_up_before_it_writes_does_not_write() {
    assert_eq!(given_up_in(SimOp::Read), (1, 2));
}

#[test]
fn zeroes_for_a_part_of_a_block_that_is_longer_than_a_piece() {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let block = 2 * u32::try_from(BOUNCE_LIMIT).unwrap();
    let limits = Limits { request_alignment: block, ..Limits::NONE };
    let len = u64::from(block);
    let disk = SimDisk::new(&executor, SimOptions { limits, ..SimOptions::new(len, 1) });
    disk.fill(0, &vec![7; usize::try_from(len).unwrap()]);
    executor.block_on(async {
        let graph = BlockGraph::new(executor.clone());
        let node = graph.add(None, disk.clone(), NodeOptions::default()).await.unwrap();
        node.write_zeroes(512..len - 512, WriteFlags::NONE).await.unwrap();
    });
    let (content, end) = (disk.contents(), usize::try_from(len).unwrap());
    assert!(content[..512].iter().chain(&content[end - 512..]).all(|byte| *byte == 7));
    assert!(content[512..end - 512].iter().all(|byte| *byte == 0));
}
