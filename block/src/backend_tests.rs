use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::edge::EdgePerms;
use crate::error::ErrorKind;
use crate::executor::Executor;
use crate::graph::{BlockGraph, Edit};
use crate::node::NodeOptions;
use crate::protocol::null::NullDriver;

const LATENCY: Duration = Duration::from_millis(1);

struct Bench {
    executor: Executor,
    graph: BlockGraph,
}

impl Bench {
    fn new() -> Bench {
        let executor = Executor::new(Clock::simulated()).unwrap();
        Bench { graph: BlockGraph::new(executor.clone()), executor }
    }

    /// A disk on which every request takes a millisecond.
    fn disk(&self, name: &str) -> BlockNode {
        let driver = NullDriver::new(self.executor.clone(), 1 << 20, true, LATENCY);
        self.executor.block_on(self.graph.add(Some(name), driver, NodeOptions::default())).unwrap()
    }

    fn root(&self, kind: BackendKind, name: &str, node: &BlockNode) -> BlockBackend {
        let shared = EdgePerms { shares: crate::Perms::ALL, ..EdgePerms::READ_WRITE };
        self.graph.add_backend(kind, name, node, shared).unwrap()
    }

    fn start_write(&self, root: &BlockBackend) -> crate::Task<Result<()>> {
        let root = root.clone();
        self.executor.spawn(async move { root.write(0, IoBuf::alloc(512), WriteFlags::NONE).await })
    }
}

#[test]
fn a_drain_waits_for_what_is_inside_and_holds_back_what_comes() {
    let bench = Bench::new();
    let disk = bench.disk("n0");
    let device = bench.root(BackendKind::Device, "d0", &disk);
    let inside = bench.start_write(&device);
    bench.executor.run_until_stalled();
    let drained = bench.executor.block_on(bench.graph.drain(&disk, &[]));
    assert!(inside.is_finished() && device.is_quiet());
    let waiting = bench.start_write(&device);
    bench.executor.advance(Duration::from_secs(1));
    assert!(!waiting.is_finished() && disk.stats().write.ops == 1);
    drop(drained);
    bench.executor.block_on(waiting).unwrap();
    assert_eq!((disk.stats().write.ops, device.stats().write.bytes), (2, 1024));
}

#[test]
fn a_request_that_waited_goes_to_the_new_node() {
    let bench = Bench::new();
    let (old, new) = (bench.disk("old"), bench.disk("new"));
    let device = bench.root(BackendKind::Device, "d0", &old);
    let before = bench.start_write(&device);
    bench.executor.run_until_stalled();
    bench.executor.block_on(async {
        let drained = bench.graph.drain(&old, &[]).await;
        let waiting = bench.start_write(&device);
        bench.executor.sleep(LATENCY).await;
        bench.graph.apply(&Edit::new().replace(&old, &new, &[]), &drained).unwrap();
        drop(drained);
        waiting.await.unwrap();
    });
    assert!(before.is_finished());
    assert_eq!((old.stats().write.ops, new.stats().write.ops), (1, 1));
}

#[test]
fn drains_nest_and_a_drain_given_up_opens_again() {
    let bench = Bench::new();
    let disk = bench.disk("n0");
    let device = bench.root(BackendKind::Device, "d0", &disk);
    let first = bench.executor.block_on(bench.graph.drain(&disk, &[]));
    let second = bench.executor.block_on(bench.graph.drain(&disk, &[]));
    let waiting = bench.start_write(&device);
    drop(first);
    bench.executor.advance(LATENCY * 5);
    assert!(!waiting.is_finished());
    drop(second);
    bench.executor.block_on(waiting).unwrap();
    // One that is still waiting for a request when it is dropped.
    let inside = bench.start_write(&device);
    let drain = {
        let (graph, disk) = (bench.graph.clone(), disk.clone());
        bench.executor.spawn(async move { drop(graph.drain(&disk, &[]).await) })
    };
    bench.executor.run_until_stalled();
    assert!(!device.0.gate.is_open());
    bench.executor.block_on(drain.cancel());
    assert!(device.0.gate.is_open());
    bench.executor.block_on(inside).unwrap();
}

#[test]
fn a_job_that_drains_goes_on_itself() {
    let bench = Bench::new();
    let disk = bench.disk("n0");
    let device = bench.root(BackendKind::Device, "d0", &disk);
    let job = bench.root(BackendKind::Job, "j0", &disk);
    bench.executor.block_on(async {
        let drained = bench.graph.drain(&disk, &[job.id()]).await;
        assert!(drained.covers(&device) && !drained.covers(&job));
        job.write(0, IoBuf::alloc(512), WriteFlags::NONE).await.unwrap();
    });
}

#[test]
fn only_roots_that_reach_the_node_are_shut() {
    let bench = Bench::new();
    let (disk, other) = (bench.disk("n0"), bench.disk("n1"));
    let raw = crate::format::raw::RawDriver::new(&bench.graph, &disk, 0, None).unwrap();
    let raw = bench.graph.add(Some("raw"), raw, NodeOptions::default());
    let raw = bench.executor.block_on(raw).unwrap();
    let device = bench.root(BackendKind::Device, "d0", &raw);
    let elsewhere = bench.root(BackendKind::Device, "d1", &other);
    let drained = bench.executor.block_on(bench.graph.drain(&disk, &[]));
    assert!(drained.covers(&device) && !drained.covers(&elsewhere));
    bench.executor.block_on(elsewhere.flush()).unwrap();
}

#[test]
fn a_root_made_during_a_drain_waits_too() {
    let bench = Bench::new();
    let disk = bench.disk("n0");
    let drained = bench.executor.block_on(bench.graph.drain(&disk, &[]));
    let late = bench.root(BackendKind::Device, "d0", &disk);
    let waiting = bench.start_write(&late);
    bench.executor.advance(LATENCY * 5);
    assert!(drained.covers(&late) && !waiting.is_finished());
    drop(drained);
    bench.executor.block_on(waiting).unwrap();
}

/// A copy that is inside its source while its target is drained would be waited for for ever by a
/// drain of both.
#[test]
fn two_roots_are_entered_together_or_not_at_all() {
    let bench = Bench::new();
    let (source, target) = (bench.disk("s0"), bench.disk("t0"));
    let from = bench.root(BackendKind::Job, "j0", &source);
    let to = bench.root(BackendKind::Job, "j0", &target);
    let shut = bench.executor.block_on(bench.graph.drain(&target, &[]));
    let copy = {
        let (from, to) = (from.clone(), to.clone());
        bench.executor.spawn(async move {
            let (from, to) = from.enter_both(&to).await;
            let buf = IoBuf::alloc(4096);
            from.read(0, buf.clone()).await?;
            to.write(0, buf, WriteFlags::NONE).await
        })
    };
    bench.executor.run_until_stalled();
    // While the copy waits for the target the source can be drained.
    let both = bench.executor.block_on(bench.graph.drain(&source, &[]));
    drop(shut);
    bench.executor.run_until_stalled();
    assert!(from.is_quiet() && to.is_quiet());
    drop(both);
    bench.executor.block_on(copy).unwrap();
    // And inside, both are waited for although the second request has not begun.
    let copy = {
        let (from, to) = (from.clone(), to.clone());
        bench.executor.spawn(async move {
            let (from, to) = from.enter_both(&to).await;
            from.flush().await?;
            to.flush().await
        })
    };
    bench.executor.run_until_stalled();
    drop(bench.executor.block_on(bench.graph.drain(&target, &[])));
    assert!(copy.is_finished() && target.stats().flush.ops == 1);
}

#[test]
fn a_root_counts_what_goes_through_it() {
    let bench = Bench::new();
    let disk = bench.disk("n0");
    let device = bench.root(BackendKind::Device, "d0", &disk);
    bench.executor.block_on(async {
        device.write(512, IoBuf::alloc(1024), WriteFlags::NONE).await.unwrap();
        device.read(0, IoBuf::alloc(512)).await.unwrap();
        device.flush().await.unwrap();
        let error = device.read(1 << 20, IoBuf::alloc(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
        device.discard(0..4096).await.unwrap();
    });
    let stats = device.stats();
    assert_eq!((stats.write.ops, stats.write.bytes, stats.write_highest), (1, 1024, 1536));
    assert_eq!(stats.write.ns, 1_000_000);
    assert_eq!((stats.read.ops, stats.read.failed, stats.read.bytes), (2, 1, 512));
    assert_eq!((stats.flush.ops, stats.discard.ops), (1, 1));
}

#[test]
fn a_drain_keeps_neither_nodes_nor_roots() {
    let bench = Bench::new();
    let low = bench.disk("low");
    let raw = crate::format::raw::RawDriver::new(&bench.graph, &low, 0, None).unwrap();
    let options = NodeOptions { owned: false, ..NodeOptions::default() };
    let raw = bench.executor.block_on(bench.graph.add(Some("raw"), raw, options)).unwrap();
    let root = bench.root(BackendKind::Job, "j0", &raw);
    let drained = bench.executor.block_on(bench.graph.drain_all(&[]));
    drop((raw, root));
    assert!(bench.graph.backends().is_empty());
    assert_eq!(bench.graph.nodes().len(), 1);
    drop(drained);
}

#[test]
fn what_waits_at_the_gate_of_a_retired_root_is_given_up() {
    let bench = Bench::new();
    let disk = bench.disk("n0");
    let (export, other) = (
        bench.root(BackendKind::Export, "e0", &disk),
        bench.root(BackendKind::Export, "e1", &disk),
    );
    let inside = bench.start_write(&export);
    bench.executor.run_until_stalled();
    let drained = bench.executor.block_on(bench.graph.drain(&disk, &[]));
    bench.executor.block_on(inside).unwrap();
    let (waiting, patient) = (bench.start_write(&export), bench.start_write(&other));
    bench.executor.run_until_stalled();
    export.retire();
    let error = bench.executor.block_on(waiting).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    drop(drained);
    bench.executor.block_on(patient).unwrap();
    assert!(bench.executor.block_on(bench.start_write(&export)).is_err(), "nor later");
    assert_eq!(disk.stats().write.ops, 2);
}

#[test]
fn what_is_inside_a_retired_root_goes_on_to_its_end() {
    let bench = Bench::new();
    let disk = bench.disk("n0");
    let export = bench.root(BackendKind::Export, "e0", &disk);
    let inside = bench.start_write(&export);
    bench.executor.run_until_stalled();
    export.retire();
    assert!(!export.is_quiet());
    bench.executor.block_on(inside).unwrap();
    assert!(export.is_quiet() && disk.stats().write.ops == 1);
}
