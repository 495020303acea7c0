use super::super::test_rig::Rig;
use crate::format::qcow2::BackingRef;
use crate::open::BlockdevRef;

#[test]
fn a_node_is_given_up_and_taken_back_alone() {
    let rig = Rig::new();
    let (base, other) = (rig.raw("base"), rig.raw("other"));
    let top = rig.image("top", "base", BackingRef::Node(BlockdevRef::Name("base".into())));
    let root = rig.export(&top);
    let busy = rig.run(rig.graph.inactivate(&top)).unwrap_err();
    assert_eq!(busy.to_string(), "export 'e' still writes to node 'top': end it first");
    drop(root);
    let above = rig.run(rig.graph.inactivate(&base)).unwrap_err();
    assert_eq!(above.to_string(), "Node has active parent node");
    rig.run(rig.graph.inactivate(&top)).unwrap();
    assert!(!top.is_active() && !base.is_active() && !top.children()[0].node().is_active());
    assert!(other.is_active());
    assert!(rig.try_write(&rig.export(&top), 0, 1).is_err());
    // From below: what is over it stays as it is.
    rig.run(rig.graph.activate(&base)).unwrap();
    assert!(base.is_active() && !top.is_active());
    rig.run(rig.graph.activate(&top)).unwrap();
    rig.write(&rig.export(&top), 0, 1);
}
