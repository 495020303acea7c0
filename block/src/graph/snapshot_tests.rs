use super::super::test_rig::Rig;
use super::*;
use crate::Perms;
use crate::backend::{BackendKind, BlockBackend};
use crate::edge::EdgePerms;
use crate::format::qcow2::BackingRef;
use crate::graph::BitmapOptions;
use crate::open::{BlockdevOptions, BlockdevRef};
use crate::testing::{have_tool, tool};

impl Rig {
    fn overlay(&self, name: &str, below: &str) -> BlockNode {
        self.image(name, below, BackingRef::None)
    }

    fn snapshot(&self, node: &BlockNode, overlay: &BlockNode) -> Result<()> {
        self.run(async {
            let both = vec![node.clone(), overlay.clone()];
            let drained = self.graph.drain_nodes(both, &[]).await;
            let taken = self.graph.snapshot(node, overlay, &drained).await?;
            drop(drained);
            taken.commit().await;
            Ok(())
        })
    }

    /// A root as a job has one of what it fills.
    fn fills(&self, node: &BlockNode) -> BlockBackend {
        let perms = EdgePerms { needs: Perms::WRITE, shares: Perms::WRITE_UNCHANGED };
        self.graph.add_backend(BackendKind::Job, "j", node, perms).unwrap()
    }

    fn refusal(&self, node: &BlockNode, overlay: &BlockNode) -> String {
        self.snapshot(node, overlay).unwrap_err().to_string()
    }
}

#[test]
fn an_overlay_takes_what_is_written_from_then_on() {
    let rig = Rig::new();
    let (disk, overlay) = (rig.raw("disk"), rig.overlay("over", "disk"));
    let root = rig.export(&disk);
    rig.write(&root, 0, 1);
    rig.snapshot(&disk, &overlay).unwrap();
    assert!(root.node().is_same(&overlay) && overlay.backing().unwrap().is_same(&disk));
    assert!(disk.is_read_only() && disk.children()[0].node().is_read_only());
    assert!(!disk.perms().needs.contains(Perms::WRITE));
    rig.write(&root, 65536, 2);
    assert_eq!([rig.read(&root, 0), rig.read(&root, 65536)], [1, 2]);
    let below = std::fs::read(rig.path("disk")).unwrap();
    assert_eq!([below[0], below[65536]], [1, 0]);
    rig.run(root.flush()).unwrap();
    if have_tool("qemu-img") {
        // The image below is free for who reads it; that above is not.
        let map = tool("qemu-img", &["map", "-U", "--output=json", &rig.path("over")]);
        assert!(map.contains("\"depth\": 1") && map.contains("\"start\": 65536"), "{map}");
        tool("qemu-img", &["check", "-U", &rig.path("over")]);
        tool("qemu-img", &["info", &rig.path("disk")]);
    }
}

/// It would go on writing to its file, which nobody may write any more.
#[test]
fn an_image_that_was_opened_with_a_node_is_left_at_rest_with_it() {
    if !have_tool("qemu-img") {
        return;
    }
    let rig = Rig::new();
    drop(rig.raw("base"));
    rig.run(rig.graph.remove("base")).unwrap();
    drop(rig.image("inner", "base", BackingRef::None));
    rig.run(rig.graph.remove("inner")).unwrap();
    let path = rig.path("inner");
    tool("qemu-img", &["rebase", "-u", "-b", "", &path]);
    tool("qemu-img", &["bitmap", "--add", &path, "b0"]);
    let image = BlockdevOptions::qcow2(BlockdevRef::nested(BlockdevOptions::file(&path)));
    let image = BlockdevOptions { node_name: Some("inner".into()), ..image };
    let disk = BlockdevOptions::raw(BlockdevRef::nested(image));
    let disk = rig.open(BlockdevOptions { node_name: Some("disk".into()), ..disk });
    let overlay = rig.overlay("over", "disk");
    let root = rig.export(&disk);
    rig.write(&root, 0, 1);
    rig.snapshot(&disk, &overlay).unwrap();
    let info = tool("qemu-img", &["info", &path]);
    assert!(info.contains("name: b0") && !info.contains("in-use"), "{info}");
    assert!(rig.graph.node("inner").unwrap().is_read_only());
    assert_eq!(rig.read(&root, 0), 1);
    drop(root);
    rig.run(rig.graph.inactivate_all()).unwrap();
}

#[test]
fn an_undone_snapshot_leaves_nothing() {
    let rig = Rig::new();
    let (disk, overlay) = (rig.raw("disk"), rig.overlay("over", "disk"));
    let root = rig.export(&disk);
    rig.run(async {
        let drained = rig.graph.drain(&disk, &[]).await;
        let taken = rig.graph.snapshot(&disk, &overlay, &drained).await.unwrap();
        assert!(root.node().is_same(&overlay));
        taken.undo(&drained);
    });
    assert!(root.node().is_same(&disk) && overlay.backing().is_none() && !disk.is_read_only());
    rig.write(&root, 0, 7);
    assert_eq!(std::fs::read(rig.path("disk")).unwrap()[0], 7);
    rig.run(rig.graph.remove("over")).unwrap();
}

#[test]
fn an_overlay_that_a_job_fills_stays_with_the_job() {
    let rig = Rig::new();
    let (disk, overlay) = (rig.raw("disk"), rig.overlay("over", "disk"));
    let (root, job) = (rig.export(&disk), rig.fills(&overlay));
    rig.write(&root, 0, 1);
    rig.write(&job, 65536, 2);
    drop(root);
    rig.run(async {
        let drained = rig.graph.drain_nodes(vec![disk.clone(), overlay.clone()], &[]).await;
        let taken = rig.graph.snapshot(&disk, &overlay, &drained).await.unwrap();
        taken.undo(&drained);
    });
    assert!(overlay.backing().is_none() && job.node().is_same(&overlay));
    rig.snapshot(&disk, &overlay).unwrap();
    rig.write(&job, 131_072, 3);
    assert!(job.node().is_same(&overlay));
    let read = [0, 65536, 131_072].map(|at| rig.read(&job, at));
    assert_eq!(read, [1, 2, 3]);
}

#[test]
fn the_image_below_is_left_as_the_next_program_likes_it() {
    if !have_tool("qemu-img") {
        return;
    }
    let rig = Rig::new();
    let (first, second) = (rig.overlay("first", "nothing"), rig.overlay("second", "first"));
    let root = rig.export(&first);
    let bitmap = BitmapOptions { name: "b".into(), persistent: true, ..BitmapOptions::default() };
    rig.graph.add_bitmap("first", &bitmap).unwrap().commit();
    rig.write(&root, 0, 1);
    rig.snapshot(&first, &second).unwrap();
    rig.write(&root, 0, 2);
    // No sharing is asked for: nobody holds it for writing.
    std::fs::write(rig.path("nothing"), []).unwrap();
    let info = tool("qemu-img", &["info", &rig.path("first")]);
    assert!(info.contains("auto"), "{info}");
    assert!(!info.contains("in-use"), "{info}");
    tool("qemu-img", &["check", &rig.path("first")]);
    let cleared = rig.run(rig.graph.clear_bitmap("first", "b"));
    assert!(cleared.is_err(), "its image cannot be told");
    // Written to again once nobody lies over it.
    drop((root, second));
    rig.run(rig.graph.remove("second")).unwrap();
    rig.run(rig.graph.set_read_only(&first, false)).unwrap();
    rig.write(&rig.export(&first), 0, 3);
    rig.run(rig.graph.clear_bitmap("first", "b")).unwrap().commit();
}

#[test]
fn what_does_not_go_together_is_refused() {
    let rig = Rig::new();
    let (disk, other) = (rig.raw("disk"), rig.raw("other"));
    let (over, more) = (rig.overlay("over", "disk"), rig.overlay("more", "over"));
    assert_eq!(rig.refusal(&disk, &other), "The overlay does not support backing images");
    let cycle = "Making 'over' a backing child of 'over' would create a cycle";
    assert_eq!(rig.refusal(&over, &over), cycle);
    let used = rig.export(&over);
    assert_eq!(rig.refusal(&disk, &over), "The overlay is already in use");
    drop(used);
    rig.run(rig.graph.inactivate("over")).unwrap();
    let not_ours = "Inactive 'over' can't take the place of active 'disk'";
    assert_eq!(rig.refusal(&disk, &over), not_ours);
    rig.run(rig.graph.activate("over")).unwrap();
    rig.snapshot(&disk, &over).unwrap();
    assert_eq!(rig.refusal(&other, &over), "The overlay already has a backing image");
    let busy = "Node 'disk' is busy: node is used as backing hd of 'over'";
    assert_eq!(rig.refusal(&disk, &more), busy);
    let job = rig.graph.add_backend(BackendKind::Job, "j", &over, EdgePerms::IDLE).unwrap();
    let busy = "Node 'over' is busy: block device is in use by block job: job";
    assert_eq!(rig.refusal(&over, &more), busy);
    drop(job);
    rig.snapshot(&over, &more).unwrap();
}
