use std::time::Duration;

use super::*;
use crate::backend::BackendKind;
use crate::clock::Clock;
use crate::driver::ExtentKind;
use crate::executor::Executor;
use crate::graph::{BitmapOptions, Edit};
use crate::node::NodeOptions;
use crate::open::{BlockdevOptions, DriverOptions};
use crate::testing::{
    CONFORMANCE_LEN, Effect, Fault, Model, Rng, SimDisk, SimOp, SimOptions, conformance,
};

struct Rig {
    graph: BlockGraph,
    source: SimDisk,
    target: SimDisk,
}

impl Rig {
    fn options(policy: Option<OnCbwError>, cbw_timeout: Option<u32>) -> CopyBeforeWriteOptions {
        CopyBeforeWriteOptions {
            file: BlockdevRef::Name("source".into()),
            target: BlockdevRef::Name("target".into()),
            bitmap: None,
            on_cbw_error: policy,
            cbw_timeout,
        }
    }

    async fn filter(&self, options: CopyBeforeWriteOptions) -> Result<BlockNode> {
        let driver = DriverOptions::CopyBeforeWrite(options);
        let node_name = Some("cbw".to_owned());
        let discard = Some(crate::open::DiscardMode::Unmap);
        let options = BlockdevOptions { node_name, discard, ..BlockdevOptions::new(driver) };
        self.graph.open(&options).await
    }

    async fn snapshot(&self) -> BlockNode {
        let file = BlockdevRef::Name("cbw".into());
        let driver = DriverOptions::SnapshotAccess(SnapshotAccessOptions { file });
        self.graph.open(&BlockdevOptions::new(driver)).await.unwrap()
    }
}

fn run(latency: bool, test: impl AsyncFnOnce(Rig)) {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(async {
        let disk = |seed| {
            let options = SimOptions::new(CONFORMANCE_LEN, seed);
            SimDisk::new(graph.executor(), if latency { options } else { options.instant() })
        };
        let (source, target) = (disk(1), disk(2));
        let bytes: Vec<u8> =
            (0..CONFORMANCE_LEN).map(|at| (at / 512 + 1).to_le_bytes()[0]).collect();
        source.fill(0, &bytes);
        for (name, disk) in [("source", &source), ("target", &target)] {
            graph.add(Some(name), disk.clone(), NodeOptions::default()).await.unwrap();
        }
        test(Rig { graph, source, target }).await;
    });
}

async fn write(node: &BlockNode, at: u64, byte: u8) -> Result<()> {
    node.write(at, IoBuf::from_vec(&[byte; 4096]), WriteFlags::NONE).await
}

async fn read(node: &BlockNode, at: u64, len: usize) -> Result<Vec<u8>> {
    let buf = IoBuf::alloc(len);
    node.read(at, buf.clone()).await?;
    Ok(buf.to_vec())
}

#[test]
fn the_disk_behaves_as_a_disk_and_the_snapshot_stays_as_it_was() {
    run(true, async |rig| {
        let before = rig.source.contents();
        let node = rig.filter(Rig::options(None, None)).await.unwrap();
        let snapshot = rig.snapshot().await;
        conformance(rig.graph.executor(), &node, 1).await;
        assert!(rig.source.contents() != before);
        assert!(read(&snapshot, 0, before.len()).await.unwrap() == before);
    });
}

#[test]
fn readers_of_the_snapshot_never_see_what_is_written_meanwhile() {
    for seed in 0..30 {
        run(true, async |rig| {
            let before = rig.source.contents();
            let node = rig.filter(Rig::options(None, None)).await.unwrap();
            let snapshot = rig.snapshot().await;
            let mut rng = Rng::new(seed);
            let mut tasks = Vec::new();
            for _ in 0..60 {
                let range = rng.range(CONFORMANCE_LEN, 512, 80_000);
                let (node, snapshot, before) = (node.clone(), snapshot.clone(), before.clone());
                let (len, choice) =
                    (usize::try_from(range.end - range.start).unwrap(), rng.below(4));
                tasks.push(rig.graph.executor().spawn(async move {
                    let at = usize::try_from(range.start).unwrap();
                    match choice {
                        0 => {
                            let buf = IoBuf::from_vec(&vec![0xee; len]);
                            node.write(range.start, buf, WriteFlags::NONE).await.unwrap();
                        }
                        1 => node.write_zeroes(range, WriteFlags::UNMAP).await.unwrap(),
                        _ => {
                            let got = read(&snapshot, range.start, len).await.unwrap();
                            assert!(got == before[at..at + len], "the snapshot changed");
                        }
                    }
                }));
                rig.graph.executor().sleep(Duration::from_micros(rng.below(300))).await;
            }
            for task in tasks {
                task.await;
            }
            assert!(read(&snapshot, 0, before.len()).await.unwrap() == before);
            Model::learn(&snapshot, 0..CONFORMANCE_LEN).await.check_map().await;
        });
    }
}

#[test]
fn a_granule_is_saved_once_and_zeroes_as_zeroes() {
    run(false, async |rig| {
        rig.source.fill(65_536, &[0; 65_536]);
        let node = rig.filter(Rig::options(None, None)).await.unwrap();
        for at in [0, 4096, 61_440] {
            write(&node, at, 1).await.unwrap();
        }
        node.discard(70_000..80_000).await.unwrap();
        assert_eq!(rig.target.counts().writes, (1, 65_536));
        assert_eq!(rig.target.counts().zeroes, (1, 65_536));
        let snapshot = rig.snapshot().await;
        let extent = snapshot.map(65_536..131_072).await.unwrap();
        assert_eq!(extent, Extent { kind: ExtentKind::Zero, len: 65_536 });
        let extent = snapshot.map(0..131_072).await.unwrap();
        assert_eq!(extent, Extent { kind: ExtentKind::Data, len: 65_536 });
    });
}

#[test]
fn when_old_content_cannot_be_saved_the_write_fails_or_the_snapshot_ends() {
    run(false, async |rig| {
        let before = rig.source.contents();
        let node = rig.filter(Rig::options(None, None)).await.unwrap();
        let snapshot = rig.snapshot().await;
        rig.target.inject(Fault::once(SimOp::Write, Effect::Fail(ErrorKind::NoSpace)));
        assert_eq!(write(&node, 0, 1).await.unwrap_err().kind(), ErrorKind::NoSpace);
        assert!(rig.source.contents() == before);
        write(&node, 0, 1).await.unwrap();
        assert!(read(&snapshot, 0, 8192).await.unwrap() == before[..8192]);
    });
    run(false, async |rig| {
        let policy = Some(OnCbwError::BreakSnapshot);
        let node = rig.filter(Rig::options(policy, None)).await.unwrap();
        let snapshot = rig.snapshot().await;
        rig.target.inject(Fault::every(SimOp::Write, Effect::Fail(ErrorKind::NoSpace)));
        write(&node, 0, 1).await.unwrap();
        write(&node, 131_072, 2).await.unwrap();
        let error = read(&snapshot, 200_000, 512).await.unwrap_err();
        assert_eq!((error.kind(), error.errno()), (ErrorKind::PermissionDenied, libc::EACCES));
    });
}

#[test]
fn who_reads_a_snapshot_while_it_breaks_is_told_so() {
    run(false, async |rig| {
        let policy = Some(OnCbwError::BreakSnapshot);
        let node = rig.filter(Rig::options(policy, None)).await.unwrap();
        let snapshot = rig.snapshot().await;
        let second = Duration::from_secs(1);
        let slow = Fault::once(SimOp::Read, Effect::Delay(second)).within(131_072..196_608);
        rig.source.inject(slow);
        rig.target.inject(Fault::every(SimOp::Write, Effect::Fail(ErrorKind::NoSpace)));
        let reader = rig.graph.executor().spawn(async move { read(&snapshot, 131_072, 512).await });
        rig.graph.executor().sleep(second / 2).await;
        // This breaks the snapshot, and the next is held up by nobody.
        write(&node, 0, 1).await.unwrap();
        write(&node, 131_072, 2).await.unwrap();
        assert_eq!(reader.await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    });
}

#[test]
fn where_old_content_is_is_not_said_of_what_was_written_meanwhile() {
    run(false, async |rig| {
        let node = rig.filter(Rig::options(None, None)).await.unwrap();
        let snapshot = rig.snapshot().await;
        let second = Duration::from_secs(1);
        // It answers by what is there when the second is over.
        rig.source.inject(Fault::once(SimOp::Map, Effect::Delay(second)));
        let looker = rig.graph.executor().spawn(async move { snapshot.map(0..65_536).await });
        rig.graph.executor().sleep(second / 2).await;
        let flags = WriteFlags { may_unmap: true, ..WriteFlags::NONE };
        node.write_zeroes(0..65_536, flags).await.unwrap();
        assert_eq!(looker.await.unwrap(), Extent { kind: ExtentKind::Data, len: 65_536 });
    });
}

#[test]
fn a_target_that_hangs_counts_as_failed_in_time() {
    run(false, async |rig| {
        let policy = Some(OnCbwError::BreakSnapshot);
        let node = rig.filter(Rig::options(policy, Some(3))).await.unwrap();
        rig.target.inject(Fault::every(SimOp::Write, Effect::Hang));
        write(&node, 0, 1).await.unwrap();
        assert_eq!(rig.graph.executor().clock().now(), 3_000_000_000);
        assert!(read(&rig.snapshot().await, 0, 512).await.is_err());
    });
    run(false, async |rig| {
        let node = rig.filter(Rig::options(None, Some(1))).await.unwrap();
        rig.target.inject(Fault::once(SimOp::Write, Effect::Hang));
        assert_eq!(write(&node, 0, 1).await.unwrap_err().kind(), ErrorKind::TimedOut);
        write(&node, 0, 1).await.unwrap();
    });
}

#[test]
fn only_what_the_bitmap_says_belongs_to_the_snapshot() {
    run(false, async |rig| {
        let bitmap = BitmapOptions { name: "b0".into(), ..BitmapOptions::default() };
        rig.graph.add_bitmap("source", &bitmap).unwrap().commit();
        write(&rig.graph.node("source").unwrap(), 65_536, 7).await.unwrap();
        let only = BitmapRef { node: "source".into(), name: "b0".into() };
        let options = CopyBeforeWriteOptions { bitmap: Some(only), ..Rig::options(None, None) };
        let node = rig.filter(options).await.unwrap();
        write(&node, 0, 1).await.unwrap();
        assert_eq!(rig.target.counts().writes.0, 0);
        write(&node, 65_536, 1).await.unwrap();
        assert_eq!(rig.target.counts().writes.0, 1);
        let snapshot = rig.snapshot().await;
        assert_eq!(read(&snapshot, 65_536, 4096).await.unwrap(), vec![7; 4096]);
        for at in [0, 65_535, 131_071] {
            let kind = read(&snapshot, at, 2).await.unwrap_err().kind();
            assert_eq!(kind, ErrorKind::PermissionDenied);
        }
        assert!(snapshot.map(0..512).await.is_err());
    });
}

#[test]
fn what_a_reader_discards_is_saved_no_more() {
    run(false, async |rig| {
        let node = rig.filter(Rig::options(None, None)).await.unwrap();
        let snapshot = rig.snapshot().await;
        assert_eq!(write(&snapshot, 0, 1).await.unwrap_err().kind(), ErrorKind::ReadOnly);
        let driver = snapshot.driver::<SnapshotAccess>().unwrap();
        BlockDriver::discard(driver, 1..131_072).await.unwrap();
        write(&node, 65_536, 1).await.unwrap();
        assert_eq!(rig.target.counts().writes.0, 0);
        assert!(read(&snapshot, 65_536, 512).await.is_err());
        write(&node, 0, 1).await.unwrap();
        assert_eq!(rig.target.counts().writes.0, 1);
    });
}

#[test]
fn it_goes_under_a_running_guest_and_keeps_others_from_the_source() {
    run(true, async |rig| {
        let source = rig.graph.node("source").unwrap();
        let perms = EdgePerms::READ_WRITE;
        let device = rig.graph.add_backend(BackendKind::Device, "d0", &source, perms).unwrap();
        let node = rig.filter(Rig::options(None, None)).await.unwrap();
        rig.graph.edit(&Edit::new().replace(&source, &node, &[]), &[]).await.unwrap();
        assert_eq!(device.node().name(), "cbw");
        let snapshot = rig.snapshot().await;
        let before = rig.source.contents();
        device.write(5000, IoBuf::from_vec(&[3; 300]), WriteFlags::NONE).await.unwrap();
        assert!(read(&snapshot, 0, 65_536).await.unwrap() == before[..65_536]);
        let writer = EdgePerms { needs: Perms::WRITE, shares: Perms::ALL };
        let other = rig.graph.add_backend(BackendKind::Export, "e0", &source, writer);
        assert_eq!(other.unwrap_err().kind(), ErrorKind::PermissionConflict);
        assert_eq!(device.resize(4096).await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    });
}

#[test]
fn a_target_that_is_too_short_and_a_snapshot_of_nothing_are_refused() {
    run(false, async |rig| {
        let short = SimDisk::new(rig.graph.executor(), SimOptions::new(4096, 3));
        rig.graph.add(Some("short"), short, NodeOptions::default()).await.unwrap();
        let target = BlockdevRef::Name("short".into());
        let options = CopyBeforeWriteOptions { target, ..Rig::options(None, None) };
        assert_eq!(rig.filter(options).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
        let file = BlockdevRef::Name("source".into());
        let driver = DriverOptions::SnapshotAccess(SnapshotAccessOptions { file });
        let error = rig.graph.open(&BlockdevOptions::new(driver)).await.unwrap_err();
        assert_eq!(error.to_string(), "node 'source' is no copy-before-write filter");
    });
}
