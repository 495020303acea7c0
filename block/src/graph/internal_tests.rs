use super::super::test_rig::Rig;
use super::*;
use crate::format::qcow2::BackingRef;
use crate::testing::{have_tool, tool};

/// An image `top` over `base`.
fn chain() -> (Rig, BlockNode) {
    let rig = Rig::new();
    drop(rig.raw("base"));
    rig.run(rig.graph.remove("base")).unwrap();
    let top = rig.image("top", "base", BackingRef::FromImage);
    (rig, top)
}

impl Rig {
    fn take(&self, node: &BlockNode, name: &str) -> Result<Snapshot> {
        self.run(self.graph.take_internal_snapshot("top", node, name, Moment::default()))
    }

    fn delete(&self, node: &BlockNode, id: Option<&str>, name: Option<&str>) -> Result<Snapshot> {
        self.run(self.graph.delete_internal_snapshot("top", node, id, name))
    }
}

#[test]
fn a_snapshot_of_an_image_in_use_keeps_what_was_written_before() {
    let (rig, top) = chain();
    let root = rig.export(&top);
    rig.write(&root, 0, 1);
    assert_eq!(rig.take(&top, "one").unwrap().id, "1");
    rig.write(&root, 0, 2);
    assert_eq!(rig.take(&top, "two").unwrap().id, "2");
    let exists = "Snapshot with name 'one' already exists on device 'top'";
    assert_eq!(rig.take(&top, "one").unwrap_err().to_string(), exists);
    assert_eq!(rig.delete(&top, Some("1"), Some("one")).unwrap().name, "one");
    rig.write(&root, 0, 3);
    rig.take(&top, "three").unwrap();
    drop((root, top));
    rig.run(rig.graph.remove("top")).unwrap();
    if have_tool("qemu-img") {
        let path = rig.path("top");
        tool("qemu-img", &["check", &path]);
        for (name, byte) in [("two", 2), ("three", 3)] {
            let copy = rig.path("copy");
            tool("qemu-img", &["convert", "-l", name, "-O", "raw", &path, &copy]);
            assert_eq!(std::fs::read(copy).unwrap()[..4096], [byte; 4096]);
        }
    }
}

#[test]
fn which_snapshot_is_meant_must_be_clear() {
    let (rig, top) = chain();
    assert_eq!(rig.take(&top, "").unwrap_err().to_string(), "Name is empty");
    rig.take(&top, "one").unwrap();
    assert_eq!(
        rig.delete(&top, None, None).unwrap_err().to_string(),
        "Name or id must be provided"
    );
    let missing = "Snapshot with id '2' and name 'one' does not exist on device 'top'";
    assert_eq!(rig.delete(&top, Some("2"), Some("one")).unwrap_err().to_string(), missing);
    rig.run(rig.graph.set_read_only(&top, true)).unwrap();
    assert_eq!(rig.take(&top, "two").unwrap_err().to_string(), "Device 'top' is read only");
    assert_eq!(
        rig.delete(&top, None, Some("one")).unwrap_err().to_string(),
        "Device 'top' is read only"
    );
}

#[test]
fn an_image_in_use_says_another_name_of_what_is_below_it() {
    let (rig, top) = chain();
    let root = rig.export(&top);
    rig.write(&root, 0, 1);
    let base = top.backing().unwrap();
    rig.run(rig.graph.change_backing_file(&top, &top, "base")).unwrap();
    rig.write(&root, 0, 2);
    assert!(top.backing().unwrap().is_same(&base));
    let header = top.driver::<Qcow2Driver>().unwrap().header();
    assert_eq!(header.backing_file.as_deref(), Some("base"));
    assert_eq!(header.extensions.backing_format.as_deref(), Some("raw"));
    let refused = "not allowing backing file change on an image without a backing file";
    assert_eq!(
        rig.run(rig.graph.change_backing_file(&top, &base, "x")).unwrap_err().to_string(),
        refused
    );
    rig.run(rig.graph.change_backing_file(&top, &top, "")).unwrap();
    assert_eq!(top.driver::<Qcow2Driver>().unwrap().header().backing_file, None);
}
