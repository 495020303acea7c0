use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::backend::{BackendKind, BlockBackend};
use crate::clock::Clock;
use crate::executor::Executor;
use crate::node::NodeOptions;
use crate::open::{BlockdevOptions, DriverOptions};
use crate::testing::{CONFORMANCE_LEN, SimDisk, SimOptions, conformance};

const SECOND: Duration = Duration::from_secs(1);

fn rig() -> (Executor, BlockGraph) {
    let executor = Executor::new(Clock::simulated()).unwrap();
    (executor.clone(), BlockGraph::new(executor))
}

/// A throttled disk with a root over it.
async fn disk(graph: &BlockGraph, name: &str, group: &str) -> BlockBackend {
    let below = format!("{name}-disk");
    let sim = SimDisk::new(graph.executor(), SimOptions::new(CONFORMANCE_LEN, 1).instant());
    graph.add(Some(&below), sim, NodeOptions::default()).await.unwrap();
    let options = ThrottleOptions { throttle_group: group.into(), file: BlockdevRef::Name(below) };
    let options = BlockdevOptions::new(DriverOptions::Throttle(options));
    let node = graph.open(&options).await.unwrap();
    graph.add_backend(BackendKind::Device, name, &node, EdgePerms::READ_WRITE).unwrap()
}

/// Keeps `depth` requests of `len` bytes under way and counts those that are done.
fn load(
    executor: &Executor,
    disk: &BlockBackend,
    write: bool,
    len: usize,
    depth: u64,
) -> Rc<Cell<u64>> {
    let done = Rc::new(Cell::new(0));
    for _ in 0..depth {
        let (disk, done) = (disk.clone(), Rc::clone(&done));
        executor.spawn(async move {
            loop {
                let buf = IoBuf::alloc(len);
                let result = match write {
                    true => disk.write(0, buf, WriteFlags::NONE).await,
                    false => disk.read(0, buf).await,
                };
                result.unwrap();
                done.set(done.get() + 1);
            }
        });
    }
    done
}

fn in_range(count: u64, expected: std::ops::RangeInclusive<u64>) {
    assert!(expected.contains(&count), "{count} is not in {expected:?}");
}

#[test]
fn a_throttled_disk_behaves_as_a_disk() {
    let (executor, graph) = rig();
    let limits = ThrottleLimits { iops_total: 100_000, ..Default::default() };
    executor.block_on(async {
        ThrottleGroup::create(&graph, "g", limits).unwrap();
        let disk = disk(&graph, "d", "g").await;
        conformance(graph.executor(), &disk.node(), 1).await;
    });
}

#[test]
fn each_limit_holds_in_its_direction_only() {
    let cases: [(ThrottleLimits, bool, u64); 6] = [
        (ThrottleLimits { iops_total: 100, ..Default::default() }, true, 100),
        (ThrottleLimits { iops_read: 100, ..Default::default() }, false, 100),
        (ThrottleLimits { iops_write: 100, ..Default::default() }, true, 100),
        (ThrottleLimits { bps_total: 100 * 4096, ..Default::default() }, false, 100),
        (ThrottleLimits { bps_write: 100 * 4096, ..Default::default() }, true, 100),
        // A request of 4096 bytes counts as four.
        (ThrottleLimits { iops_total: 400, iops_size: 1024, ..Default::default() }, true, 100),
    ];
    for (limits, write, rate) in cases {
        let (executor, graph) = rig();
        let disk = executor.block_on(async {
            ThrottleGroup::create(&graph, "g", limits).unwrap();
            disk(&graph, "d", "g").await
        });
        let done = load(&executor, &disk, write, 4096, 4);
        executor.advance(SECOND * 20);
        // A tenth of a second is lent, and the one that fills the bucket is let through.
        in_range(done.get(), 20 * rate..=20 * rate + rate / 10 + 5);
    }
    let (executor, graph) = rig();
    let free = executor.block_on(async {
        let limits = ThrottleLimits { iops_write: 1, bps_write: 1, ..Default::default() };
        ThrottleGroup::create(&graph, "g", limits).unwrap();
        let disk = disk(&graph, "d", "g").await;
        for _ in 0..1000 {
            disk.read(0, IoBuf::alloc(4096)).await.unwrap();
        }
        executor.clock().now()
    });
    assert_eq!(free, 0);
}

#[test]
fn a_burst_lasts_as_long_as_it_may() {
    let limits = ThrottleLimits {
        iops_total: 100,
        iops_total_max: 1000,
        iops_total_max_length: 5,
        ..Default::default()
    };
    let (executor, graph) = rig();
    let disk = executor.block_on(async {
        ThrottleGroup::create(&graph, "g", limits).unwrap();
        disk(&graph, "d", "g").await
    });
    let done = load(&executor, &disk, true, 512, 4);
    executor.advance(SECOND * 2);
    in_range(done.get(), 2000..=2110);
    // The bucket of 5000 fills at 1000 and leaks 100 a second: the burst ends after 5.5 s.
    executor.advance(SECOND * 18);
    in_range(done.get(), 5000 + 20 * 100..=5000 + 20 * 100 + 10);
    let before = done.get();
    executor.advance(SECOND * 10);
    in_range(done.get() - before, 990..=1010);
}

#[test]
fn disks_of_a_group_share_evenly_however_deep_their_queues_are() {
    let (executor, graph) = rig();
    let disks = executor.block_on(async {
        let limits = ThrottleLimits { iops_total: 300, ..Default::default() };
        ThrottleGroup::create(&graph, "g", limits).unwrap();
        [disk(&graph, "a", "g").await, disk(&graph, "b", "g").await, disk(&graph, "c", "g").await]
    });
    let counts: Vec<_> = disks
        .iter()
        .zip([1, 8, 64])
        .map(|(disk, depth)| load(&executor, disk, true, 512, depth))
        .collect();
    executor.advance(SECOND * 10);
    for count in &counts {
        in_range(count.get(), 950..=1080);
    }
}

#[test]
fn new_limits_hold_at_once_for_those_who_wait() {
    let (executor, graph) = rig();
    let (disk, group) = executor.block_on(async {
        let limits = ThrottleLimits { bps_write: 1, ..Default::default() };
        let group = ThrottleGroup::create(&graph, "g", limits).unwrap();
        (disk(&graph, "d", "g").await, group)
    });
    let done = load(&executor, &disk, true, 4096, 8);
    executor.advance(SECOND * 100);
    assert_eq!(done.get(), 1);
    group.set_limits(ThrottleLimits { iops_write: 10, ..Default::default() }).unwrap();
    executor.advance(SECOND * 10);
    in_range(done.get(), 100..=104);
    assert_eq!(group.limits().iops_write, 10);
    assert!(group.set_limits(ThrottleLimits { iops_size: 1, ..Default::default() }).is_err());
    assert_eq!(group.limits().iops_write, 10);
}

#[test]
fn a_drain_does_not_wait_for_limits() {
    let (executor, graph) = rig();
    let disk = executor.block_on(async {
        let limits = ThrottleLimits { iops_write: 1, ..Default::default() };
        ThrottleGroup::create(&graph, "g", limits).unwrap();
        disk(&graph, "d", "g").await
    });
    let done = load(&executor, &disk, true, 512, 50);
    executor.advance(SECOND);
    let start = executor.clock().now();
    executor.block_on(async {
        let below = graph.node("d-disk").unwrap();
        let drained = graph.drain(&below, &[]).await;
        assert_eq!(executor.clock().now(), start);
        assert!(disk.is_quiet() && done.get() >= 50);
        drop(drained);
    });
    // What went by unchecked was counted, so the disk now pays for it.
    let after = done.get();
    executor.advance(SECOND * 10);
    assert_eq!(done.get(), after);
}

#[test]
fn a_request_that_gives_up_holds_nobody_back() {
    let (executor, graph) = rig();
    let disk = executor.block_on(async {
        let limits = ThrottleLimits { bps_write: 512, ..Default::default() };
        ThrottleGroup::create(&graph, "g", limits).unwrap();
        disk(&graph, "d", "g").await
    });
    let write = |len| {
        let disk = disk.clone();
        executor.spawn(async move { disk.write(0, IoBuf::alloc(len), WriteFlags::NONE).await })
    };
    drop(write(5120));
    executor.advance(Duration::ZERO);
    let (first, second) = (write(1 << 17), write(512));
    executor.advance(SECOND);
    executor.block_on(first.cancel());
    executor.advance(SECOND * 10);
    // Ten seconds for what went first; the one that gave up was never counted.
    assert!(second.is_finished());
}

#[test]
fn groups_live_as_long_as_they_are_named_or_used() {
    let (executor, graph) = rig();
    executor.block_on(async {
        let limits = ThrottleLimits { iops_total: 10, ..Default::default() };
        ThrottleGroup::create(&graph, "g", limits).unwrap();
        let again = ThrottleGroup::create(&graph, "g", limits).map(|_| ()).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        let root = disk(&graph, "d", "g").await;
        let busy = ThrottleGroup::delete(&graph, "g").unwrap_err();
        assert_eq!(busy.to_string(), "object 'g' is in use, can not be deleted");
        let name = root.node().name().to_owned();
        drop(root);
        graph.disown(&graph.node(&name).unwrap());
        ThrottleGroup::delete(&graph, "g").unwrap();
        assert!(ThrottleGroup::find(&graph, "g").is_none());
        let options = ThrottleOptions {
            throttle_group: "g".into(),
            file: BlockdevRef::Name("d-disk".into()),
        };
        let options = BlockdevOptions::new(DriverOptions::Throttle(options));
        let error = graph.open(&options).await.unwrap_err();
        assert_eq!(error.to_string(), "Throttle group 'g' does not exist");
    });
}

#[test]
fn limits_that_contradict_themselves_are_refused_in_qemus_words() {
    let none = ThrottleLimits::default();
    let cases = [
        (
            ThrottleLimits { bps_total: 1, bps_read: 1, ..none },
            "bps/iops/max total values and read/write values cannot be used at the same time",
        ),
        (
            ThrottleLimits { iops_total: 1, iops_write: 1, ..none },
            "bps/iops/max total values and read/write values cannot be used at the same time",
        ),
        (
            ThrottleLimits { iops_size: 1, bps_read: 1, ..none },
            "iops size requires an iops value to be set",
        ),
        (
            ThrottleLimits { bps_read: 1_000_000_000_000_001, ..none },
            "bps/iops/max values must be within [0, 1000000000000000]",
        ),
        (
            ThrottleLimits { bps_read: 1, bps_read_max_length: 0, ..none },
            "the burst length cannot be 0",
        ),
        (
            ThrottleLimits { bps_read: 1, bps_read_max_length: 2, ..none },
            "burst length set without burst rate",
        ),
        (
            ThrottleLimits {
                bps_read: 1,
                bps_read_max: 1 << 40,
                bps_read_max_length: 1 << 40,
                ..none
            },
            "burst length too high for this burst rate",
        ),
        (
            ThrottleLimits { iops_read_max: 5, ..none },
            "bps_max/iops_max require corresponding bps/iops values",
        ),
        (
            ThrottleLimits { iops_read: 6, iops_read_max: 5, ..none },
            "bps_max/iops_max cannot be lower than bps/iops",
        ),
    ];
    for (limits, text) in cases {
        assert_eq!(limits.check().unwrap_err().to_string(), text);
    }
    assert!(none.check().is_ok() && !none.is_limited());
}

#[test]
fn a_device_is_limited_by_itself_and_let_go_when_it_leaves() {
    let (executor, graph) = rig();
    let (disk, group) = executor.block_on(async {
        let sim = SimDisk::new(graph.executor(), SimOptions::new(CONFORMANCE_LEN, 1).instant());
        let node = graph.add(Some("n0"), sim, NodeOptions::default()).await.unwrap();
        let perms = EdgePerms::READ_WRITE;
        let disk = graph.add_backend(BackendKind::Device, "d0", &node, perms).unwrap();
        let group = ThrottleGroup::find_or_make(&graph, "d0");
        (disk, group)
    });
    disk.set_throttle(Some(&group));
    group.set_limits(ThrottleLimits { iops_write: 10, ..Default::default() }).unwrap();
    assert_eq!(disk.throttle().unwrap().name(), "d0");
    let done = load(&executor, &disk, true, 512, 8);
    executor.advance(SECOND * 10);
    in_range(done.get(), 100..=104);
    // The drain must not take the second that the next request would have to wait.
    let start = executor.clock().now();
    executor.block_on(async { drop(graph.drain(&disk.node(), &[]).await) });
    assert_eq!(executor.clock().now(), start);
    group.set_limits(ThrottleLimits { bps_write: 1, ..Default::default() }).unwrap();
    executor.advance(SECOND * 10);
    let waiting = executor.spawn({
        let disk = disk.clone();
        async move { disk.write(0, IoBuf::alloc(512), WriteFlags::NONE).await }
    });
    executor.advance(SECOND * 10);
    assert!(!waiting.is_finished());
    drop(done);
}
