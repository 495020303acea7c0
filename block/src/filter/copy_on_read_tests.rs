use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::executor::{Executor, within};
use crate::node::NodeOptions;
use crate::open::{BlockdevOptions, DriverOptions};
use crate::testing::{
    CONFORMANCE_LEN, Effect, Fault, Model, Overlay, Rng, SimDisk, SimOp, SimOptions, conformance,
};

/// Three images over each other, each with the bytes of the simulated disk that is its file.
struct Rig {
    graph: BlockGraph,
    disks: [SimDisk; 3],
}

impl Rig {
    /// `base`, on it `middle`, on it `top`; the base is filled.
    async fn new(graph: BlockGraph, latency: bool) -> Rig {
        let disk = |seed| {
            let options = SimOptions::new(CONFORMANCE_LEN, seed);
            SimDisk::new(graph.executor(), if latency { options } else { options.instant() })
        };
        let disks = [disk(1), disk(2), disk(3)];
        let bytes: Vec<u8> =
            (0..CONFORMANCE_LEN).map(|at| (at / 512 + 1).to_le_bytes()[0]).collect();
        disks[0].fill(0, &bytes);
        let rig = Rig { graph, disks };
        let options = NodeOptions::default();
        let mut below = rig.graph.add(Some("base"), rig.disks[0].clone(), options).await.unwrap();
        for (name, disk) in ["middle", "top"].into_iter().zip(&rig.disks[1..]) {
            let file = rig.graph.add(Some(&format!("{name}-file")), disk.clone(), options).await;
            let overlay = Overlay::new(&rig.graph, &file.unwrap(), &below).unwrap();
            below = rig.graph.add(Some(name), overlay, options).await.unwrap();
        }
        rig
    }

    async fn filter(&self, bottom: Option<&str>) -> Result<BlockNode> {
        let options = CopyOnReadOptions {
            file: BlockdevRef::Name("top".into()),
            bottom: bottom.map(str::to_owned),
        };
        self.graph.open(&BlockdevOptions::new(DriverOptions::CopyOnRead(options))).await
    }

    /// How many bytes of the top are its own.
    async fn own_bytes(&self) -> u64 {
        let top = self.graph.node("top").unwrap();
        let (mut at, mut own) = (0, 0);
        while at < top.len() {
            let extent = top.map(at..top.len()).await.unwrap();
            own += if extent.kind == ExtentKind::Data { extent.len } else { 0 };
            at += extent.len;
        }
        own
    }
}

fn run(latency: bool, test: impl AsyncFnOnce(Rig)) {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(async {
        let rig = Rig::new(graph, latency).await;
        test(rig).await;
    });
}

#[test]
fn a_copying_disk_behaves_as_a_disk() {
    run(true, async |rig| {
        let node = rig.filter(None).await.unwrap();
        conformance(rig.graph.executor(), &node, 1).await;
        assert_eq!(rig.own_bytes().await, CONFORMANCE_LEN);
    });
}

#[test]
fn what_was_read_is_copied_by_whole_clusters_and_read_from_below_no_more() {
    run(false, async |rig| {
        let node = rig.filter(None).await.unwrap();
        let buf = IoBuf::alloc(600);
        node.read(8000, buf.clone()).await.unwrap();
        assert_eq!(buf.to_vec(), rig.disks[0].contents()[8000..8600]);
        assert_eq!(rig.own_bytes().await, 8192);
        let before = rig.disks[0].counts().reads.0;
        let again = IoBuf::alloc(600);
        node.read(8000, again.clone()).await.unwrap();
        assert_eq!(again.to_vec(), buf.to_vec());
        assert_eq!(rig.disks[0].counts().reads.0, before);
    });
}

#[test]
fn only_data_down_to_the_bottom_is_copied() {
    run(false, async |rig| {
        let middle = rig.graph.node("middle").unwrap();
        middle.write(4096, IoBuf::from_vec(&[9; 4096]), WriteFlags::NONE).await.unwrap();
        let node = rig.filter(Some("middle")).await.unwrap();
        let buf = IoBuf::alloc(16_384);
        node.read(0, buf.clone()).await.unwrap();
        let mut expected = rig.disks[0].contents()[..16_384].to_vec();
        expected[4096..8192].fill(9);
        assert_eq!(buf.to_vec(), expected);
        assert_eq!(rig.own_bytes().await, 4096);
    });
}

#[test]
fn a_copy_never_overwrites_what_was_written_meanwhile() {
    for seed in 0..40 {
        run(true, async |rig| {
            let node = rig.filter(None).await.unwrap();
            let executor = rig.graph.executor().clone();
            let mut rng = Rng::new(seed);
            let mut model = Model::learn(&rig.graph.node("top").unwrap(), 0..65_536).await;
            let expected = rig.disks[0].contents();
            for _ in 0..20 {
                let range = rng.range(60_000, 1, 9000);
                let len = usize::try_from(range.end - range.start).unwrap();
                let (reader, start) = (node.clone(), range.start);
                let read = executor.spawn(async move {
                    let buf = IoBuf::alloc(len);
                    reader.read(start, buf).await.unwrap();
                });
                let at = usize::try_from(start + rng.below(len as u64)).unwrap();
                let data = vec![rng.bits().to_le_bytes()[0]; 700];
                model.write(at, &data, WriteFlags::NONE).await.unwrap();
                read.await;
                let direct = node.write(at as u64, IoBuf::from_vec(&data), WriteFlags::NONE);
                direct.await.unwrap();
            }
            drop(expected);
            let all = Model::learn(&node, 0..65_536).await;
            assert!(all.bytes() == model.bytes());
        });
    }
}

#[test]
fn what_cannot_be_stored_is_read_all_the_same() {
    run(false, async |rig| {
        let node = rig.filter(None).await.unwrap();
        let fail = Effect::Fail(ErrorKind::NoSpace);
        for op in [SimOp::Write, SimOp::Zeroes] {
            rig.disks[2].inject(Fault::every(op, fail));
        }
        let buf = IoBuf::alloc(4096);
        node.read(4096, buf.clone()).await.unwrap();
        assert_eq!(buf.to_vec(), rig.disks[0].contents()[4096..8192]);
        assert_eq!(rig.own_bytes().await, 0);
    });
}

#[test]
fn a_bottom_that_is_none_is_refused() {
    run(false, async |rig| {
        for (name, text) in [
            ("nobody", "Bottom node 'nobody' not found"),
            ("top", "Bottom node 'top' is not below node 'top'"),
            ("top-file", "Bottom node 'top-file' is not below node 'top'"),
        ] {
            assert_eq!(rig.filter(Some(name)).await.unwrap_err().to_string(), text);
        }
        let node = rig.filter(None).await.unwrap();
        assert_eq!(node.backing().unwrap().name(), "middle");
        assert_eq!(node.skip_filters().name(), "top");
    });
}

#[test]
fn a_copy_that_was_given_up_does_not_land_on_a_later_write() {
    run(false, async |rig| {
        let node = rig.filter(None).await.unwrap();
        let executor = rig.graph.executor();
        let delay = Effect::Delay(Duration::from_millis(100));
        rig.disks[2].inject(Fault::once(SimOp::Write, delay));
        let read = node.read(0, IoBuf::alloc(4096));
        assert!(within(executor, Duration::from_millis(5), read).await.is_none());
        node.write(0, IoBuf::from_vec(&[0xee; 4096]), WriteFlags::NONE).await.unwrap();
        executor.sleep(Duration::from_secs(1)).await;
        let buf = IoBuf::alloc(4096);
        node.read(0, buf.clone()).await.unwrap();
        assert!(buf.to_vec() == [0xee; 4096], "an older copy is there");
    });
}
