use std::time::Duration;

use super::super::BitmapOptions;
use super::super::test_rig::Rig;
use crate::backend::BackendKind;
use crate::buf::IoBuf;
use crate::edge::EdgePerms;
use crate::filter::blkdebug::{BlkdebugOptions, InjectError, IoType};
use crate::format::qcow2::BackingRef;
use crate::node::NodeOptions;
use crate::open::{BlockdevOptions, BlockdevRef, DriverOptions};
use crate::testing::{Effect, Fault, SimDisk, SimOp, SimOptions};

/// A node that cannot be flushed.
fn bad(rig: &Rig) {
    rig.raw("bad");
    let mut options = BlkdebugOptions::new(BlockdevRef::Name("bad".into()));
    options.inject_error.push(InjectError::every(IoType::Flush));
    rig.open(BlockdevOptions::new(DriverOptions::Blkdebug(options)));
}

#[test]
fn in_the_end_an_image_that_fails_keeps_nothing_from_the_others() {
    for bad_is_last in [false, true] {
        let rig = Rig::new();
        if !bad_is_last {
            bad(&rig);
        }
        let base = rig.raw("base");
        let top = rig.image("top", "base", BackingRef::Node(BlockdevRef::Name("base".into())));
        rig.write(&rig.export(&top), 0, 7);
        if bad_is_last {
            bad(&rig);
        }
        let error = rig.run(rig.graph.close_all()).unwrap_err();
        assert!(error.to_string().starts_with("cannot flush node '#block"), "{error}");
        assert!(!top.is_active() && !base.is_active());
        assert!(!rig.graph.node("bad").unwrap().is_active(), "what is below was given up");
    }
}

#[test]
fn a_node_is_given_up_and_taken_back_alone() {
    let rig = Rig::new();
    let (base, other) = (rig.raw("base"), rig.raw("other"));
    let top = rig.image("top", "base", BackingRef::Node(BlockdevRef::Name("base".into())));
    let root = rig.export(&top);
    let busy = rig.run(rig.graph.inactivate(top.name())).unwrap_err();
    assert_eq!(busy.to_string(), "export 'e' still writes to node 'top': end it first");
    drop(root);
    let above = rig.run(rig.graph.inactivate(base.name())).unwrap_err();
    assert_eq!(above.to_string(), "Node has active parent node");
    rig.run(rig.graph.inactivate(top.name())).unwrap();
    assert!(!top.is_active() && !base.is_active() && !top.children()[0].node().is_active());
    assert!(other.is_active());
    assert!(rig.try_write(&rig.export(&top), 0, 1).is_err());
    // From below: what is over it stays as it is.
    rig.run(rig.graph.activate(base.name())).unwrap();
    assert!(base.is_active() && !top.is_active());
    rig.run(rig.graph.activate(top.name())).unwrap();
    rig.write(&rig.export(&top), 0, 1);
}

#[test]
fn what_another_process_may_own_is_below_nothing_that_this_one_owns() {
    let rig = Rig::new();
    let base = rig.raw("base");
    rig.run(rig.graph.inactivate(base.name())).unwrap();
    let over = |active| BlockdevOptions {
        active: Some(active),
        ..BlockdevOptions::raw(BlockdevRef::Name("base".into()))
    };
    let refused = rig.run(rig.graph.open(&over(true))).unwrap_err().to_string();
    assert!(
        refused.starts_with("Inactive 'base' can't be a file child of active '#block"),
        "{refused}"
    );
    let above = rig.run(rig.graph.open(&over(false))).unwrap();
    rig.run(rig.graph.activate(above.name())).unwrap();
    assert!(above.is_active() && base.is_active());
}

/// It would be gone with the bitmaps that are read when the image is taken over.
#[test]
fn a_bitmap_is_stored_only_with_an_image_that_this_process_owns() {
    let rig = Rig::new();
    rig.raw("base");
    let top = rig.image("top", "base", BackingRef::Node(BlockdevRef::Name("base".into())));
    let options = BitmapOptions { name: "b".into(), persistent: true, ..BitmapOptions::default() };
    rig.run(rig.graph.inactivate(top.name())).unwrap();
    let refused = rig.graph.add_bitmap("top", &options).map(drop).unwrap_err().to_string();
    assert!(refused.starts_with("Can't make bitmap 'b' persistent in 'top': it is inactive"));
    rig.run(rig.graph.activate(top.name())).unwrap();
    rig.graph.add_bitmap("top", &options).unwrap().commit();
    rig.run(rig.graph.inactivate(top.name())).unwrap();
    rig.run(rig.graph.activate(top.name())).unwrap();
    assert_eq!(top.bitmaps().len(), 1);
}

/// A node that is being opened anew is at rest for a while: who took it over then would own it twice.
#[test]
fn ownership_changes_hands_when_no_other_change_is_under_way() {
    let rig = Rig::new();
    let node = rig.raw("disk");
    for active in [false, true] {
        let turn = rig.run(rig.graph.turn());
        let graph = rig.graph.clone();
        let waiting = rig.executor.spawn(async move {
            if active { graph.activate_all(None).await } else { graph.inactivate_all().await }
        });
        rig.run(rig.executor.sleep(Duration::from_millis(50)));
        assert!(!waiting.is_finished() && node.is_active() != active);
        drop(turn);
        rig.run(waiting).unwrap();
        assert_eq!(node.is_active(), active);
    }
}

/// A command that is under way may be the one that advances a mark.
#[test]
fn the_marks_of_a_hand_over_are_those_that_the_images_are_left_with() {
    let rig = Rig::new();
    let disk = rig.raw("disk");
    let device = || {
        let perms = EdgePerms::READ_WRITE;
        rig.graph.add_backend(BackendKind::Device, "d", &disk, perms).unwrap()
    };
    let first = device();
    let turn = rig.run(rig.graph.turn());
    let graph = rig.graph.clone();
    let waiting = rig.executor.spawn(async move { graph.hand_over().await });
    rig.run(rig.executor.sleep(Duration::from_millis(50)));
    // Who begins to write advances the mark.
    drop(first);
    let _second = device();
    drop(turn);
    let marks = rig.run(waiting).unwrap();
    assert!(marks == rig.run(rig.graph.generations()).unwrap());
    if marks.unmarked().is_empty() {
        rig.run(rig.graph.activate_all(Some(&marks))).unwrap();
    }
}

/// While it waits for its turn another node may get the name.
#[test]
fn who_is_given_up_by_name_is_who_has_it_then() {
    let rig = Rig::new();
    rig.raw("disk");
    let turn = rig.run(rig.graph.turn());
    let graph = rig.graph.clone();
    let waiting = rig.executor.spawn(async move { graph.inactivate("disk").await });
    rig.run(rig.executor.sleep(Duration::from_millis(50)));
    let anew = BlockdevOptions::raw_file(rig.path("disk"));
    let anew = BlockdevOptions { node_name: Some("disk".into()), ..anew };
    rig.run(rig.graph.reopen(&[anew])).unwrap();
    drop(turn);
    rig.run(waiting).unwrap();
    assert!(!rig.graph.node("disk").unwrap().is_active());
}

#[test]
fn what_is_removed_meanwhile_is_taken_by_nobody() {
    let rig = Rig::new();
    let slow = SimDisk::new(&rig.executor, SimOptions::new(1 << 20, 1).instant());
    let disk = slow.clone();
    let busy = rig.run(rig.graph.add(Some("slow"), disk, NodeOptions::default())).unwrap();
    let reader = rig.graph.add_backend(BackendKind::Device, "d", &busy, EdgePerms::READ).unwrap();
    let removed = rig.raw("removed");
    rig.run(rig.graph.inactivate_all()).unwrap();
    slow.inject(Fault::once(SimOp::Read, Effect::Hang));
    let reading = rig.executor.spawn(async move { reader.read(0, IoBuf::alloc(512)).await });
    let graph = rig.graph.clone();
    let taking = rig.executor.spawn(async move { graph.activate_all(None).await });
    rig.run(rig.executor.sleep(Duration::from_millis(50)));
    rig.run(rig.graph.remove("removed")).unwrap();
    slow.heal();
    rig.run(taking).unwrap();
    drop(reading);
    let file = removed.children()[0].node();
    assert!(rig.graph.node("slow").unwrap().is_active());
    assert!(!removed.is_active() && !file.is_active());
}
