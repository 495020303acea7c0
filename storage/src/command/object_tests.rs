//! Objects that are kept, as a client sees them.

use std::error::Error;

use ferry_api::{Command, interface};
use ferry_block::{Clock, Executor, IoThread, IoThreadOptions};
use serde_json::json;

use super::*;
use crate::ExportKinds;

#[test]
fn polling_is_as_long_as_the_last_thread_asks_for_that_is_left()
-> std::result::Result<(), Box<dyn Error>> {
    let executor = Executor::new(Clock::real())?;
    let disks = IoThread::spawn("disks", IoThreadOptions::default())?;
    let storage = Storage::new(disks.handle(), ExportKinds::NONE);
    let polling = || {
        let limit = |graph: BlockGraph| async move { graph.executor().poll_max_ns() };
        executor.block_on(disks.handle().call(limit)).unwrap()
    };
    let del = |id: &str| executor.block_on(storage.object_del(ObjectDel { id: id.to_owned() }));
    let add = |options: Value| {
        let options = serde_json::from_value(options).unwrap();
        executor.block_on(storage.object_add(options))
    };
    let otherwise = polling();
    add(json!({"qom-type": "iothread", "id": "t0", "poll-max-ns": 7}))?;
    add(json!({"qom-type": "iothread", "id": "silent"}))?;
    add(json!({"qom-type": "iothread", "id": "t2", "poll-max-ns": 8}))?;
    add(json!({"qom-type": "iothread", "id": "t1", "poll-max-ns": 0}))?;
    assert_eq!(polling(), 0);
    for (id, expected) in [("t2", 0), ("t1", 7), ("silent", 7), ("t0", otherwise)] {
        del(id)?;
        assert_eq!(polling(), expected, "without {id}");
    }
    Ok(())
}

#[test]
fn secrets_and_threads_are_told_of_until_they_are_deleted()
-> std::result::Result<(), Box<dyn Error>> {
    let executor = Executor::new(Clock::real())?;
    let disks = IoThread::spawn("disks", IoThreadOptions::default())?;
    let storage = Storage::new(disks.handle(), ExportKinds::NONE);
    let ask = |name: &str, arguments: Value| -> Result<Value> {
        let Command::Block(command) = interface::STORAGE.parse(name, arguments)? else {
            return Err(QmpError::command_not_found(name));
        };
        executor.block_on(storage.execute(command))
    };
    ask("object-add", json!({"qom-type": "iothread", "id": "t0", "poll-max-ns": 7}))?;
    let threads = ask("query-iothreads", json!({}))?;
    let expected = json!([{
        "id": "t0", "thread-id": threads[0]["thread-id"], "poll-max-ns": 7, "poll-grow": 0,
        "poll-shrink": 0, "aio-max-batch": 0,
    }]);
    assert_eq!(threads, expected);
    assert_ne!(threads[0]["thread-id"], 0);
    let polling = |graph: BlockGraph| async move { graph.executor().poll_max_ns() };
    assert_eq!(executor.block_on(disks.handle().call(polling))?, 7);

    let key = json!({"qom-type": "secret", "id": "k", "data": "k".repeat(32)});
    ask("object-add", key.clone())?;
    assert!(ask("object-add", key).is_err(), "two of one id");
    let coded = |id: &str, data: &str| {
        json!({"qom-type": "secret", "id": id, "keyid": "k", "format": "base64", "data": data,
               "iv": "aWlpaWlpaWlpaWlpaWlpaQ=="})
    };
    ask("object-add", coded("s", "ioKNFMhJ1U5QPG7Ri3bZnA=="))?;
    assert_eq!(ask("qom-get", json!({"path": "/objects/s", "property": "keyid"}))?, json!("k"));
    let wrong = ask("object-add", coded("x", "AAAA")).unwrap_err();
    assert_eq!(wrong.desc, "Length 3 must be a multiple of block size 16");
    ask("object-del", json!({"id": "k"}))?;
    let gone = ask("object-add", coded("x", "ioKNFMhJ1U5QPG7Ri3bZnA==")).unwrap_err();
    assert_eq!(gone.desc, "No secret with id 'k'");
    ask("object-del", json!({"id": "t0"}))?;
    assert_eq!(ask("query-iothreads", json!({}))?, json!([]));
    Ok(())
}
