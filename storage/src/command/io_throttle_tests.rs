//! Limits as a client sets them and as it is told of them.

use std::error::Error;

use ferry_api::command::{BlockCommand, BlockIoThrottle};
use ferry_block::{
    BackendKind, BlockdevOptions, Clock, EdgePerms, Executor, IoThread, IoThreadOptions,
};
use serde_json::{Value, json};

use super::*;
use crate::ExportKinds;

type TestResult = std::result::Result<(), Box<dyn Error>>;

/// Two disks, `d0` and `d1`.
struct Rig {
    executor: Executor,
    storage: Storage,
    _folder: tempfile::TempDir,
    _disks: IoThread,
}

#[derive(Default)]
struct Roots(std::cell::RefCell<Vec<BlockBackend>>);

impl Rig {
    fn new() -> std::result::Result<Rig, Box<dyn Error>> {
        let executor = Executor::new(Clock::real())?;
        let disks = IoThread::spawn("disks", IoThreadOptions::default())?;
        let folder = tempfile::tempdir()?;
        for id in ["d0", "d1"] {
            let path = folder.path().join(id);
            std::fs::File::create(&path)?.set_len(1 << 20)?;
            let options = BlockdevOptions::raw_file(path.to_string_lossy());
            let open = move |graph: BlockGraph| async move {
                let node = graph.open(&options).await?;
                let root =
                    graph.add_backend(BackendKind::Device, id, &node, EdgePerms::READ_WRITE)?;
                graph.extension(Roots::default).0.borrow_mut().push(root);
                Ok::<_, ferry_block::Error>(())
            };
            executor.block_on(disks.handle().call(open))??;
        }
        let storage = Storage::new(disks.handle(), ExportKinds::NONE);
        Ok(Rig { executor, storage, _folder: folder, _disks: disks })
    }

    /// Sets limits as a client does, without those of the six that must be there but are 0.
    fn set(&self, mut arguments: Value) -> std::result::Result<(), QmpError> {
        for name in ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"] {
            if arguments.get(name).is_none() {
                arguments[name] = json!(0);
            }
        }
        let arguments: BlockIoThrottle = serde_json::from_value(arguments)
            .map_err(|error| QmpError::generic(error.to_string()))?;
        let command = BlockCommand::BlockSetIoThrottle(Box::new(arguments));
        self.executor.block_on(self.storage.execute(command)).map(drop)
    }

    /// What `query-block` tells of a disk.
    fn inserted(&self, disk: usize) -> std::result::Result<Value, QmpError> {
        let list = self.executor.block_on(self.storage.execute(BlockCommand::QueryBlock))?;
        Ok(list[disk]["inserted"].clone())
    }
}

#[test]
fn limits_are_told_until_they_are_lifted() -> TestResult {
    let rig = Rig::new()?;
    assert_eq!(rig.inserted(0)?.get("group"), None);
    rig.set(json!({"device": "d0", "bps": 1000, "bps_max": 5000, "bps_max_length": 3,
        "iops_wr": 10, "iops_size": 4096}))?;
    let told = rig.inserted(0)?;
    let expected = json!({"bps": 1000, "bps_max": 5000, "bps_max_length": 3, "iops_wr": 10,
        "iops_size": 4096, "group": "d0", "bps_rd": 0});
    for (name, value) in expected.as_object().into_iter().flatten() {
        assert_eq!(told.get(name), Some(value), "{name}");
    }
    assert_eq!(told.get("iops_wr_max_length"), None, "there are no bursts of writes");
    rig.set(json!({"id": "d0"}))?;
    let told = rig.inserted(0)?;
    assert_eq!((told.get("group"), &told["bps"]), (None, &json!(0)));
    Ok(())
}

#[test]
fn a_group_shares_its_limits_and_a_disk_stays_in_it() -> TestResult {
    let rig = Rig::new()?;
    rig.set(json!({"device": "d0", "iops": 100, "group": "both"}))?;
    rig.set(json!({"device": "d1", "iops": 200, "group": "both"}))?;
    assert_eq!(rig.inserted(0)?["iops"], 200, "the last word counts for all");
    rig.set(json!({"device": "d0", "iops": 300}))?;
    assert_eq!(
        (&rig.inserted(1)?["iops"], &rig.inserted(1)?["group"]),
        (&json!(300), &json!("both"))
    );
    rig.set(json!({"device": "d1"}))?;
    assert_eq!(rig.inserted(0)?["iops"], 300, "who leaves changes nothing for the others");
    rig.set(json!({"device": "d0", "iops": 400, "group": "other"}))?;
    assert_eq!(rig.inserted(0)?["group"], "other");
    Ok(())
}

#[test]
fn what_makes_no_sense_is_refused_in_the_words_of_qemu() -> TestResult {
    let rig = Rig::new()?;
    let cases = [
        (json!({}), "Need exactly one of 'device' and 'id'"),
        (json!({"device": "d0", "id": "d0"}), "Need exactly one of 'device' and 'id'"),
        (json!({"device": "nosuch"}), "Device 'nosuch' not found"),
        (json!({"id": "nosuch", "bps": -1}), "Device 'nosuch' not found"),
        (
            json!({"device": "d0", "bps": 1, "bps_rd": 1}),
            "bps/iops/max total values and read/write values cannot be used at the same time",
        ),
        (
            json!({"device": "d0", "iops": -1}),
            "bps/iops/max values must be within [0, 1000000000000000]",
        ),
        (
            json!({"device": "d0", "bps_max": 5}),
            "bps_max/iops_max require corresponding bps/iops values",
        ),
        (
            json!({"device": "d0", "bps": 9, "bps_max": 5}),
            "bps_max/iops_max cannot be lower than bps/iops",
        ),
        (json!({"device": "d0", "iops_size": 512}), "iops size requires an iops value to be set"),
        (
            json!({"device": "d0", "bps": 9, "bps_max_length": 2}),
            "burst length set without burst rate",
        ),
    ];
    for (arguments, text) in cases {
        let refused = rig.set(arguments.clone()).err().ok_or("was accepted")?;
        assert_eq!(refused.to_string(), text, "{arguments}");
    }
    assert_eq!(rig.inserted(0)?.get("group"), None);
    Ok(())
}
