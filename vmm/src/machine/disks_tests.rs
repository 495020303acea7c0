//! What is said of images whose format is not.

use ferry_block::{BlockGraph, Clock, Executor};

use super::*;

#[test]
fn a_raw_disk_that_looks_like_something_else_is_told_of() {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let folder = tempfile::tempdir().unwrap();
    let shown = |head: &[u8]| {
        let path = folder.path().join("disk");
        std::fs::write(&path, [head, &[0; 4096]].concat()).unwrap();
        let file = BlockdevRef::nested(BlockdevOptions::file(path.to_str().unwrap()));
        executor.block_on(async {
            let node = graph.open(&BlockdevOptions::raw(file)).await.unwrap();
            let shown = shown_format(&node).await.unwrap();
            graph.disown(&node);
            shown
        })
    };
    assert_eq!(shown(b"QFI\xfb\0\0\0\x03"), Some("qcow2"));
    assert_eq!(shown(b"\xeb\x63\x90"), None);

    let disk = DiskConfig {
        path: "a.img".into(),
        format: None,
        id: "root".into(),
        readonly: false,
        direct: false,
        serial: None,
        queues: None,
    };
    let line = mistakable(&disk, "qcow2");
    assert!(line.contains("disk 'root': a.img looks like a qcow2 image"), "{line}");
    assert!(line.contains("add format=qcow2") && line.ends_with("format=raw"), "{line}");
    assert!(mistakable(&disk, "vmdk").contains("convert"));
}
