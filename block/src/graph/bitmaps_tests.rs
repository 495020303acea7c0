use super::*;
use crate::buf::IoBuf;
use crate::clock::Clock;
use crate::driver::WriteFlags;
use crate::executor::Executor;
use crate::node::NodeOptions;
use crate::testing::{SimDisk, SimOptions};

const LEN: u64 = 1 << 20;

fn run(test: impl AsyncFnOnce(BlockGraph)) {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(async {
        for (name, len) in [("d0", LEN), ("d1", LEN), ("long", 2 * LEN)] {
            let sim = SimDisk::new(graph.executor(), SimOptions::new(len, 1).instant());
            graph.add(Some(name), sim, NodeOptions::default()).await.unwrap();
        }
        test(graph).await;
    });
}

fn options(name: &str) -> BitmapOptions {
    BitmapOptions { name: name.to_owned(), ..BitmapOptions::default() }
}

fn add(graph: &BlockGraph, node: &str, name: &str) -> Rc<AttachedBitmap> {
    let change = graph.add_bitmap(node, &options(name)).unwrap();
    let bitmap = Rc::clone(change.bitmap());
    change.commit();
    bitmap
}

async fn write(graph: &BlockGraph, node: &str, at: u64) {
    let node = graph.node(node).unwrap();
    node.write(at, IoBuf::alloc(1), WriteFlags::NONE).await.unwrap();
}

fn dirty(bitmap: &AttachedBitmap) -> u64 {
    bitmap.bits.borrow().dirty_bytes()
}

fn refusal(result: Result<BitmapChange>) -> String {
    result.map(BitmapChange::commit).unwrap_err().to_string()
}

/// The texts are those of QEMU 7.2.
#[test]
fn what_cannot_be_is_refused_in_qemus_words() {
    run(async |graph| {
        let long = "x".repeat(1024);
        let source = |node: Option<&str>, name: &str| {
            [BitmapSource { node: node.map(str::to_owned), name: name.to_owned() }]
        };
        add(&graph, "d0", "b");
        add(&graph, "long", "l");
        let grain = |granularity| BitmapOptions { granularity: Some(granularity), ..options("g") };
        let persistent = BitmapOptions { persistent: true, ..options("p") };
        let cases = [
            (graph.add_bitmap("d0", &options("")), "Bitmap name cannot be empty"),
            (
                graph.add_bitmap("nono", &options("b")),
                "Cannot find device='nono' nor node-name='nono'",
            ),
            (
                graph.add_bitmap("d0", &grain(1000)),
                "Granularity must be power of 2 and at least 512",
            ),
            (
                graph.add_bitmap("d0", &grain(256)),
                "Granularity must be power of 2 and at least 512",
            ),
            (graph.add_bitmap("d0", &options("b")), "Bitmap already exists: b"),
            (
                graph.add_bitmap("d0", &persistent),
                "Can't store persistent bitmaps to d0: Operation not supported",
            ),
            (graph.remove_bitmap("d0", "zz").await, "Dirty bitmap 'zz' not found"),
            (graph.remove_bitmap("zz", "zz").await, "Node 'zz' not found"),
            (
                graph.merge_bitmaps("d0", "b", &source(None, "zz")).await,
                "Dirty bitmap 'zz' not found",
            ),
            (
                graph.merge_bitmaps("d0", "zz", &source(None, "b")).await,
                "Dirty bitmap 'zz' not found",
            ),
            (
                graph.merge_bitmaps("d0", "b", &source(Some("long"), "l")).await,
                "Bitmaps are of different sizes (destination size is 1048576, source size is \
                 2097152) and can't be merged",
            ),
        ];
        for (result, text) in cases {
            assert_eq!(refusal(result), text);
        }
        let text = refusal(graph.add_bitmap("d0", &options(&long)));
        assert_eq!(text, format!("Bitmap name too long: {long}"));
        add(&graph, "d0", &long[1..]);
        graph.add_bitmap("d0", &grain(2 << 30)).unwrap().commit();
    });
}

#[test]
fn states_forbid_what_they_should() {
    run(async |graph| {
        let bitmap = add(&graph, "d0", "b");
        let other = add(&graph, "d0", "o");
        let source = [BitmapSource { node: None, name: "b".into() }];
        let busy = "Bitmap 'b' is currently in use by another operation and cannot be used";
        let view = bitmap.bits.borrow_mut().freeze().unwrap();
        let frozen = [
            graph.remove_bitmap("d0", "b").await,
            graph.clear_bitmap("d0", "b").await,
            graph.enable_bitmap("d0", "b").await,
            graph.disable_bitmap("d0", "b").await,
            graph.merge_bitmaps("d0", "o", &source).await,
            graph.merge_bitmaps("d0", "b", &[]).await,
        ];
        for result in frozen {
            assert_eq!(refusal(result), busy);
        }
        bitmap.bits.borrow_mut().release(view);
        bitmap.busy.set(true);
        assert_eq!(refusal(graph.clear_bitmap("d0", "b").await), busy);
        bitmap.busy.set(false);
        bitmap.read_only.set(true);
        let read_only = "Bitmap 'b' is readonly and cannot be modified";
        assert_eq!(refusal(graph.clear_bitmap("d0", "b").await), read_only);
        assert_eq!(refusal(graph.remove_bitmap("d0", "b").await), read_only);
        graph.disable_bitmap("d0", "b").await.unwrap().commit();
        graph.merge_bitmaps("d0", "o", &source).await.unwrap().commit();
        bitmap.read_only.set(false);
        bitmap.bits.borrow_mut().mark_inconsistent();
        let inconsistent = "Bitmap 'b' is inconsistent and cannot be used";
        assert_eq!(refusal(graph.enable_bitmap("d0", "b").await), inconsistent);
        assert_eq!(refusal(graph.merge_bitmaps("d0", "o", &source).await), inconsistent);
        graph.remove_bitmap("d0", "b").await.unwrap().commit();
        assert_eq!(graph.node("d0").unwrap().bitmaps().len(), 1);
        assert_eq!(dirty(&other), 0);
    });
}

#[test]
fn what_a_bitmap_is_told_it_does() {
    run(async |graph| {
        let bitmap = add(&graph, "d0", "b");
        assert_eq!(bitmap.bits.borrow().granularity(), 65_536);
        write(&graph, "d0", 70_000).await;
        assert_eq!(dirty(&bitmap), 65_536);
        graph.disable_bitmap("d0", "b").await.unwrap().commit();
        write(&graph, "d0", 0).await;
        assert_eq!(dirty(&bitmap), 65_536);
        graph.enable_bitmap("d0", "b").await.unwrap().commit();
        write(&graph, "d0", 0).await;
        assert_eq!(dirty(&bitmap), 2 * 65_536);
        graph.clear_bitmap("d0", "b").await.unwrap().commit();
        assert_eq!(dirty(&bitmap), 0);
        let quiet = BitmapOptions { disabled: true, ..options("q") };
        let quiet = graph.add_bitmap("d0", &quiet).unwrap();
        let bits = Rc::clone(quiet.bitmap());
        quiet.commit();
        write(&graph, "d0", 0).await;
        assert_eq!(dirty(&bits), 0);
    });
}

#[test]
fn merging_takes_all_sources_of_any_granularity_or_none() {
    run(async |graph| {
        let target = add(&graph, "d0", "target");
        let fine = BitmapOptions { granularity: Some(512), ..options("fine") };
        graph.add_bitmap("d1", &fine).unwrap().commit();
        let coarse = BitmapOptions { granularity: Some(256 << 10), ..options("coarse") };
        graph.add_bitmap("d0", &coarse).unwrap().commit();
        write(&graph, "d1", 100_000).await;
        graph.clear_bitmap("d0", "target").await.unwrap().commit();
        let source = |node: Option<&str>, name: &str| BitmapSource {
            node: node.map(str::to_owned),
            name: name.to_owned(),
        };
        let missing = [source(Some("d1"), "fine"), source(None, "missing")];
        assert!(graph.merge_bitmaps("d0", "target", &missing).await.is_err());
        assert_eq!(dirty(&target), 0);
        let all = [source(Some("d1"), "fine"), source(None, "coarse"), source(None, "target")];
        graph.merge_bitmaps("d0", "target", &all).await.unwrap().commit();
        assert_eq!(target.bits.borrow().next_dirty(0, u64::MAX), Some(65_536..131_072));
    });
}

#[test]
fn every_change_can_be_undone() {
    run(async |graph| {
        let bitmap = add(&graph, "d0", "b");
        let other = add(&graph, "d0", "o");
        write(&graph, "d0", 0).await;
        graph.clear_bitmap("d0", "o").await.unwrap().commit();
        write(&graph, "d0", LEN - 1).await;
        let before = bitmap.bits.borrow().clone();
        let source = [BitmapSource { node: None, name: "o".into() }];
        graph.add_bitmap("d0", &options("new")).unwrap().undo();
        assert!(graph.find_bitmap("d0", "new").is_err());
        graph.clear_bitmap("d0", "b").await.unwrap().undo();
        graph.disable_bitmap("d0", "b").await.unwrap().undo();
        graph.merge_bitmaps("d0", "b", &source).await.unwrap().undo();
        assert!(*bitmap.bits.borrow() == before);
        let removal = graph.remove_bitmap("d0", "b").await.unwrap();
        assert!(graph.clear_bitmap("d0", "b").await.is_err(), "busy until the end");
        write(&graph, "d0", LEN / 2).await;
        removal.undo();
        assert_eq!(dirty(&bitmap), dirty(&other) + 65_536);
        let removal = graph.remove_bitmap("d0", "b").await.unwrap();
        removal.commit();
        assert!(graph.find_bitmap("d0", "b").is_err());
    });
}
