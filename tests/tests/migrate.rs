//! Live migration between two ferry processes, with a guest that checks its disk and memory.

use std::time::Duration;

use anyhow::ensure;
use ferry_tests::move_rig::{Moving, STEP, check_arrived};
use ferry_tests::need::{self, Need};
use serde_json::{Value, json};

fn names(events: &[Value]) -> Vec<String> {
    let name = |event: &Value| {
        let status = event["data"]["status"].as_str().map(|s| format!(" {s}"));
        format!("{}{}", event["event"].as_str().unwrap_or("?"), status.unwrap_or_default())
    };
    events.iter().map(name).filter(|name| !name.starts_with("MIGRATION_PASS")).collect()
}

#[test]
fn a_guest_moves_while_it_works() {
    need::test(&[Need::Kvm], || {
        let mut moving = Moving::start()?;
        let disk = moving.spec.disks[0].path.clone();
        let (target, socket) = moving.destination(&disk)?;
        let mut there = target.qmp()?;
        let answer = moving.migrate(&format!("unix:{}", socket.display()))?;
        ensure!(answer["status"] == "completed", "{answer}");
        ensure!(answer["ram"]["duplicate"].as_u64() > Some(0), "no zero pages: {answer}");
        let expected = ["MIGRATION setup", "MIGRATION active", "STOP", "MIGRATION completed"];
        ensure!(names(moving.qmp.events()) == expected, "{:?}", moving.qmp.events());
        let status = moving.qmp.call("query-status", json!({}))?;
        ensure!(status["status"] == "postmigrate", "{status}");
        let refused = moving.qmp.execute("cont", json!({}))?;
        ensure!(refused.is_err(), "the guest runs on both sides");
        let status = there.call("query-status", json!({}))?;
        ensure!(status["status"] == "running", "{status}");
        check_arrived(&target, &disk)
    });
}

#[test]
fn over_tcp_to_a_destination_that_is_told_later_where_to_listen() {
    need::test(&[Need::Kvm], || {
        let mut moving = Moving::start()?;
        let disk = moving.spec.disks[0].path.clone();
        let monitor = ferry_tests::vm::Monitor::ferry()?;
        let target = ferry_tests::vm::Vm::start(&monitor, &moving.spec.incoming("defer"))?;
        let mut there = target.qmp()?;
        there.call("migrate-incoming", json!({ "uri": "tcp:127.0.0.1:0" }))?;
        let answer = there.call("query-migrate", json!({}))?;
        let port = answer["socket-address"][0]["port"].as_str().unwrap_or("none").to_owned();
        let answer = moving.migrate(&format!("tcp:127.0.0.1:{port}"))?;
        ensure!(answer["status"] == "completed", "{answer} {}", target.complaints());
        check_arrived(&target, &disk)
    });
}

#[test]
fn a_paused_guest_arrives_paused() {
    need::test(&[Need::Kvm], || {
        let mut moving = Moving::start()?;
        let disk = moving.spec.disks[0].path.clone();
        let (target, socket) = moving.destination(&disk)?;
        let mut there = target.qmp()?;
        moving.qmp.call("stop", json!({}))?;
        let answer = moving.migrate(&format!("unix:{}", socket.display()))?;
        ensure!(answer["status"] == "completed", "{answer}");
        let status = there.poll("query-status", STEP, |status| {
            Ok((status["status"] != "inmigrate").then(|| status.clone()))
        })?;
        ensure!(status["status"] == "paused", "{status}");
        there.call("cont", json!({}))?;
        check_arrived(&target, &disk)
    });
}

#[test]
fn a_disk_is_mirrored_and_then_the_guest_moves_with_the_copy() {
    need::test(&[Need::Kvm], || {
        let mut moving = Moving::start()?;
        let copy = moving.fresh("copy");
        ferry_tests::image::sparse(&copy, 32 << 20)?;
        let options = json!({ "driver": "raw", "node-name": "copy",
            "file": { "driver": "file", "filename": copy } });
        moving.qmp.call("blockdev-add", options)?;
        let mirror = json!({ "job-id": "m0", "device": "d0", "target": "copy", "sync": "full" });
        moving.qmp.call("blockdev-mirror", mirror)?;
        let name = |wanted: &'static str| move |event: &Value| event["event"] == wanted;
        let ready = moving.qmp.wait_event("ready", 0, STEP, name("BLOCK_JOB_READY"))?;
        moving.qmp.call("block-job-complete", json!({ "device": "m0" }))?;
        let over = moving.qmp.wait_event("completed", ready, STEP, name("BLOCK_JOB_COMPLETED"))?;
        ensure!(moving.qmp.events()[over]["data"]["error"].is_null(), "{:?}", moving.qmp.events());
        std::fs::remove_file(&moving.spec.disks[0].path)?;
        moving.spec.disks[0].path.clone_from(&copy);
        moving.arrive()
    });
}

#[test]
fn back_and_forth_and_back_again() {
    need::test(&[Need::Kvm], || {
        let mut moving = Moving::start()?;
        let disk = moving.spec.disks[0].path.clone();
        for _ in 0..3 {
            let (target, socket) = moving.destination(&disk)?;
            let answer = moving.migrate(&format!("unix:{}", socket.display()))?;
            ensure!(answer["status"] == "completed", "{answer} {}", target.complaints());
            moving.qmp = target.qmp()?;
            moving.source = target;
            moving.source.console.wait_dot(STEP)?;
            std::thread::sleep(Duration::from_millis(100));
        }
        check_arrived(&moving.source, &disk)
    });
}
