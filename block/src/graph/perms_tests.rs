use super::super::test_rig::Rig;
use super::*;
use crate::backend::{BackendKind, BlockBackend};
use crate::format::qcow2::BackingRef;
use crate::node::BlockNode;
use crate::open::BlockdevRef;

const EXPORT: EdgePerms = EdgePerms { shares: Perms::ALL, ..EdgePerms::READ_WRITE };

impl Rig {
    fn root(&self, node: &BlockNode, perms: EdgePerms) -> Result<BlockBackend> {
        self.graph.add_backend(BackendKind::Export, "r", node, perms)
    }
}

#[test]
fn an_image_below_another_may_be_changed_while_nobody_minds() {
    let rig = Rig::new();
    let base = rig.raw("base");
    let over = rig.image("over", "base", BackingRef::Node(BlockdevRef::Name("base".into())));
    assert_eq!(base.perms(), EdgePerms::IDLE);
    let writer = rig.root(&base, EXPORT).unwrap();
    rig.write(&writer, 0, 1);
    // Whoever lets others change the overlay lets them change what is below.
    let lenient = rig.root(&over, EXPORT).unwrap();
    assert_eq!(rig.read(&lenient, 0), 1);
    drop(lenient);
    let error = rig.root(&over, EdgePerms::READ_WRITE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionConflict);
    assert!(
        error.to_string().contains("node 'over' (uses node 'base' as 'backing' child)"),
        "{error}"
    );
    drop(writer);
    let strict = rig.root(&over, EdgePerms::READ_WRITE).unwrap();
    let error = rig.root(&base, EXPORT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionConflict);
    drop(strict);
    rig.root(&base, EXPORT).unwrap();
}
