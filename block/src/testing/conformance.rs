//! The conformance suite: what every writable driver must do. Each driver's tests call [`conformance`].

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use super::model::Model;
use super::rng::Rng;
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::ErrorKind;
use crate::executor::Executor;
use crate::node::BlockNode;

/// Shortest node that the suite takes, in bytes.
pub const CONFORMANCE_LEN: u64 = 256 << 10;

/// Random requests in one run of the suite.
const STEPS: u64 = 300;

/// Tasks that work at once on neighbouring parts.
const TASKS: u64 = 8;

/// Checks that `node` behaves as a disk: bounds, alignment, scatter lists, zeroes, discards, map, flushes,
/// many requests at once, requests that are given up. The node must be active and writable and at least
/// [`CONFORMANCE_LEN`] long; what it holds is overwritten.
///
/// # Panics
/// When it does not.
pub async fn conformance(executor: &Executor, node: &BlockNode, seed: u64) {
    assert!(node.len() >= CONFORMANCE_LEN, "a node of at least {CONFORMANCE_LEN} bytes is needed");
    check_limits(node);
    check_bounds(node).await;
    check_edges(node).await;
    check_scatter(node).await;
    let mut rng = Rng::new(seed);
    let mut model = Model::learn(node, 0..node.len()).await;
    for _ in 0..STEPS {
        step(&mut model, node, &mut rng).await;
    }
    check_given_up(node).await;
    check_at_once(executor, node, &mut rng).await;
    check_resize(node).await;
    Model::learn(node, 0..node.len()).await.check_map().await;
}

fn check_limits(node: &BlockNode) {
    let limits = node.limits();
    assert!(limits.request_alignment.is_power_of_two());
    assert!(limits.memory_alignment.is_power_of_two());
    assert!(limits.discard_granularity.is_power_of_two());
    for most in [limits.max_transfer, limits.max_zeroes] {
        assert!(most == u64::MAX || most.is_multiple_of(u64::from(limits.request_alignment)));
        assert!(most >= u64::from(limits.request_alignment));
    }
}

/// What leaves the node is refused and changes nothing.
async fn check_bounds(node: &BlockNode) {
    let len = node.len();
    let model = Model::learn(node, len - 512..len).await;
    let buf = || IoBuf::from_vec(&[0xbd; 512]);
    for at in [len - 511, len, len + 1, u64::MAX - 511, u64::MAX] {
        let kind = node.read(at, buf()).await.expect_err("a read past the end").kind();
        assert_eq!(kind, ErrorKind::OutOfRange);
        let write = node.write(at, buf(), WriteFlags::NONE).await;
        assert_eq!(write.expect_err("a write past the end").kind(), ErrorKind::OutOfRange);
        let range = at..at.saturating_add(512).max(len + 1);
        let zeroes = node.write_zeroes(range.clone(), WriteFlags::NONE).await;
        assert_eq!(zeroes.expect_err("zeroes past the end").kind(), ErrorKind::OutOfRange);
        assert!(node.map(range).await.is_err());
    }
    assert_eq!(node.len(), len);
    model.check(0..512).await;
    for at in [0, len] {
        node.read(at, IoBuf::alloc(0)).await.expect("a read of nothing");
        node.write(at, IoBuf::alloc(0), WriteFlags::NONE).await.expect("a write of nothing");
    }
}

/// The first and the last byte, and one byte beside each boundary of alignment.
async fn check_edges(node: &BlockNode) {
    let mut model = Model::learn(node, 0..node.len()).await;
    let unit = usize::try_from(node.limits().request_alignment.max(512)).expect("an alignment");
    let last = model.len() - 1;
    for (index, at) in [0, last, unit - 1, unit, 4095, 4096].into_iter().enumerate() {
        let byte = 0x50 + index.to_le_bytes()[0];
        model.write(at, &[byte], WriteFlags::NONE).await.expect("a write of one byte");
        model.check(at.saturating_sub(unit)..(at + unit).min(last + 1)).await;
    }
    model.write_zeroes(unit + 1..3 * unit - 1, WriteFlags::UNMAP).await.expect("zeroes");
    model.check(0..4 * unit).await;
    node.flush().await.expect("a flush");
    node.write_zeroes(7..7, WriteFlags::NONE).await.expect("zeroes of nothing");
    node.discard(7..7).await.expect("a discard of nothing");
}

/// Buffers that start anywhere in memory.
async fn check_scatter(node: &BlockNode) {
    let mut model = Model::learn(node, 0..64 << 10).await;
    let bytes: Vec<u8> = (0..32_u32 << 10).map(|at| at.to_le_bytes()[0] ^ 0x5a).collect();
    for (skip, at, len) in [(1, 0, 4096), (511, 512, 8192), (3, 1000, 777), (2, 4097, 12_289)] {
        let buf = IoBuf::from_vec(&bytes).slice(skip..skip + len);
        model.write_buf(at, buf, WriteFlags::NONE).await.expect("a write from odd memory");
        let into = IoBuf::alloc(len + skip).slice(skip..skip + len);
        node.read(at as u64, into.clone()).await.expect("a read into odd memory");
        assert_eq!(into.to_vec(), &model.bytes()[at..at + len]);
    }
    model.check(0..64 << 10).await;
}

/// One random request, aligned to anything from a byte to 4 KiB.
async fn step(model: &mut Model, node: &BlockNode, rng: &mut Rng) {
    let align = [1, 512, 4096][usize::try_from(rng.below(3)).expect("below three")];
    let longest = if rng.one_in(8) { 128 << 10 } else { 16 << 10 };
    let range = rng.range(model.len() as u64, align, longest);
    let range = usize::try_from(range.start).expect("in memory")
        ..usize::try_from(range.end).expect("in memory");
    match rng.below(16) {
        0..=6 => {
            let bytes: Vec<u8> = range.clone().map(|_| rng.bits().to_le_bytes()[0]).collect();
            let flags = if rng.one_in(4) { WriteFlags::FUA } else { WriteFlags::NONE };
            model.write(range.start, &bytes, flags).await.expect("a write in range");
        }
        7..=8 => {
            let flags = if rng.one_in(2) { WriteFlags::UNMAP } else { WriteFlags::NONE };
            model.write_zeroes(range, flags).await.expect("zeroes in range");
        }
        9 => model.discard(range).await.expect("a discard in range"),
        10 => node.flush().await.expect("a flush"),
        11 => model.check_map().await,
        _ => model.check(range).await,
    }
}

/// Requests that are dropped in the middle harm nothing else.
async fn check_given_up(node: &BlockNode) {
    let (half, len) = (node.len() / 2, node.len());
    let mut model = Model::learn(node, 0..half).await;
    for round in 0..16 {
        let at = half + round * 1024 % (len - half - 4096);
        poll_once(node.read(at, IoBuf::alloc(4096))).await;
        poll_once(node.write(at, IoBuf::alloc(3000), WriteFlags::NONE)).await;
        poll_once(node.flush()).await;
        let bytes = [round.to_le_bytes()[0]; 700];
        model.write(500, &bytes, WriteFlags::NONE).await.expect("a write after given up ones");
        model.check(0..8192).await;
    }
    node.flush().await.expect("a flush");
}

async fn poll_once<T>(future: impl Future<Output = T>) {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let _given_up = future.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
}

/// Neighbours that share every unit of alignment do not see each other's requests.
async fn check_at_once(executor: &Executor, node: &BlockNode, rng: &mut Rng) {
    // Odd lengths, so that no part begins where a unit does.
    let part = node.len() / TASKS - 13;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (node, mut rng) = (node.clone(), Rng::new(rng.bits()));
            executor.spawn(async move {
                let start = task * part;
                let mut model = Model::learn(&node, start..start + part).await;
                for _ in 0..STEPS / TASKS {
                    step(&mut model, &node, &mut rng).await;
                }
                model.check(0..model.len()).await;
            })
        })
        .collect();
    for task in tasks {
        task.await;
    }
}

/// A longer node reads as zeroes in its new part, a shorter one keeps what is left. Or it says that it
/// cannot.
async fn check_resize(node: &BlockNode) {
    let len = node.len();
    let model = Model::learn(node, 0..len).await;
    match node.resize(len + 8192).await {
        Ok(()) => {
            assert_eq!(node.len(), len + 8192);
            let grown = Model::learn(node, len..len + 8192).await;
            assert!(grown.bytes().iter().all(|byte| *byte == 0), "what grew is not zero");
            node.resize(len).await.expect("back to the old length");
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Busy), "{error}");
        }
    }
    assert_eq!(node.len(), len);
    model.check(0..model.len()).await;
}

#[cfg(test)]
#[path = "conformance_tests.rs"]
mod tests;
