//! Commands that come while the daemon ends.

use serde_json::json;

use super::*;

#[test]
fn at_the_end_nothing_begins_that_nobody_would_end() {
    let executor = Executor::new(Clock::real()).unwrap();
    let disks = IoThread::spawn("disks", IoThreadOptions::default()).unwrap();
    let storage = Storage::new(disks.handle(), ExportKinds::NONE);
    let daemon = Daemon::new(executor.clone(), storage, Vec::new());
    let call = |name: &str, arguments: Value| {
        let command = interface::STORAGE.parse(name, arguments).unwrap();
        executor.block_on(Rc::clone(&daemon).execute(command))
    };
    let add = |name: &str| call("blockdev-add", json!({"driver": "null-co", "node-name": name}));
    add("before").unwrap();
    call("quit", json!({})).unwrap();
    assert!(add("after").unwrap_err().to_string().contains("comes too late"));
    let nodes = call("query-named-block-nodes", json!({})).unwrap();
    assert_eq!(nodes.as_array().map(Vec::len), Some(1), "{nodes}");
    executor.block_on(daemon.storage.close()).unwrap();
}
