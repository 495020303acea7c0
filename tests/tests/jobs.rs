//! Mirroring a disk under a guest that keeps writing to it, driven by QMP.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_tests::lab::{self, LIMIT, Lab};
use ferry_tests::need::{self, Need};
use ferry_tests::qmp::Qmp;
use ferry_tests::vm::{Disk, Vm};
use ferry_tests::{binary, image, time};
use serde_json::{Value, json};

const KVM: &[Need] = &[Need::Kvm];
const MIB: u64 = 32;
const WORDS: &str = "workload=verify init=zero disk_iops=2000";

/// A guest that writes, an empty target that is a node `target`, and QMP.
struct Mirrored {
    lab: Lab,
    vm: Vm,
    qmp: Qmp,
    source: PathBuf,
    target: PathBuf,
}

impl Mirrored {
    fn new(words: &str) -> Result<Mirrored> {
        let lab = Lab::new()?;
        let (spec, source) = lab.with_disk(&format!("{WORDS} {words}"), MIB)?;
        let target = lab.image("target.raw", MIB)?;
        let vm = lab.run(&spec)?;
        let mut qmp = vm.qmp()?;
        let file = json!({ "driver": "file", "filename": &target });
        qmp.call("blockdev-add", json!({ "driver": "raw", "node-name": "target", "file": file }))?;
        Ok(Mirrored { lab, vm, qmp, source, target })
    }

    fn mirror(&mut self, more: Value) -> Result<()> {
        let mut job =
            json!({ "job-id": "m0", "device": "disk0", "target": "target", "sync": "full" });
        if let (Some(job), Some(more)) = (job.as_object_mut(), more.as_object()) {
            job.extend(more.clone());
        }
        self.qmp.call("blockdev-mirror", job).map(drop)
    }

    fn ready(&mut self) -> Result<()> {
        self.event("BLOCK_JOB_READY").map(drop)
    }

    fn event(&mut self, name: &str) -> Result<Value> {
        let found = self.qmp.wait_event(name, 0, LIMIT, |event| event["event"] == name)?;
        Ok(self.qmp.events()[found]["data"].clone())
    }

    fn job(&mut self) -> Result<Value> {
        let jobs = self.qmp.call("query-block-jobs", json!({}))?;
        jobs.get(0).cloned().context("there is no job")
    }

    fn command(&mut self, name: &str) -> Result<()> {
        self.qmp.call(name, json!({ "device": "m0" })).map(drop)
    }

    /// Ends the guest and checks the disk that it wrote to last.
    fn finish(self, image: &Path) -> Result<()> {
        lab::finish(&self.vm)?;
        let verdict = lab::verdict(&self.vm)?;
        drop(self.vm);
        lab::holds(image, verdict, 4096)
    }
}

fn pivots(words: &str, options: Value) -> Result<()> {
    let mut mirrored = Mirrored::new(words)?;
    mirrored.mirror(options)?;
    mirrored.ready()?;
    std::thread::sleep(Duration::from_millis(300));
    mirrored.command("block-job-complete")?;
    let completed = mirrored.event("BLOCK_JOB_COMPLETED")?;
    ensure!(completed.get("error").is_none(), "{completed}");
    ensure!(completed["len"] == completed["offset"], "{completed}");
    let left_behind = image::examine(&mirrored.source, 4096);
    std::thread::sleep(Duration::from_millis(300));
    let blocks = mirrored.qmp.call("query-block", json!({}))?;
    let node = &blocks[0]["inserted"]["node-name"];
    ensure!(node == "target", "the disk is on {node} after the pivot");
    ensure!(image::examine(&mirrored.source, 4096)? == left_behind?, "the source was written");
    let target = mirrored.target.clone();
    mirrored.finish(&target)
}

#[test]
fn pivots_in_the_background() {
    need::test(KVM, || pivots("", json!({})));
}

#[test]
fn pivots_with_write_through() {
    need::test(KVM, || pivots("", json!({ "copy-mode": "write-blocking" })));
}

#[test]
fn pivots_with_small_granules_and_buffers() {
    need::test(KVM, || pivots("zeroes=1", json!({ "granularity": 4096, "buf-size": 65536 })));
}

#[test]
fn pivots_under_full_load() {
    need::test(KVM, || pivots("disk_iops=0 depth=16", json!({ "copy-mode": "write-blocking" })));
}

#[test]
fn cancel_after_ready_leaves_a_copy_of_one_moment() {
    need::test(KVM, || {
        let mut mirrored = Mirrored::new("")?;
        mirrored.mirror(json!({}))?;
        mirrored.ready()?;
        std::thread::sleep(Duration::from_millis(200));
        mirrored.command("block-job-cancel")?;
        mirrored.event("BLOCK_JOB_COMPLETED")?;
        ensure!(image::examine(&mirrored.target, 4096)?.written > 0, "nothing was copied");
        let source = mirrored.source.clone();
        mirrored.finish(&source)
    });
}

#[test]
fn cancel_before_ready_leaves_the_guest_alone() {
    need::test(KVM, || {
        let mut mirrored = Mirrored::new("")?;
        std::thread::sleep(Duration::from_millis(200));
        mirrored.mirror(json!({ "speed": 65536 }))?;
        std::thread::sleep(Duration::from_millis(200));
        mirrored.command("block-job-cancel")?;
        let cancelled = mirrored.event("BLOCK_JOB_CANCELLED")?;
        ensure!(cancelled["type"] == "mirror", "{cancelled}");
        let source = mirrored.source.clone();
        mirrored.finish(&source)
    });
}

#[test]
fn pause_resume_and_speed() {
    need::test(KVM, || {
        let mut mirrored = Mirrored::new("disk_iops=200")?;
        std::thread::sleep(Duration::from_millis(500));
        mirrored.mirror(json!({ "speed": 1 << 16 }))?;
        mirrored.command("block-job-pause")?;
        let paused = |job: &Value| job["paused"] == true && job["busy"] == false;
        time::poll("the pause", LIMIT, || Ok(paused(&mirrored.job()?).then_some(())))?;
        let before = mirrored.job()?["offset"].clone();
        std::thread::sleep(Duration::from_millis(200));
        ensure!(mirrored.job()?["offset"] == before, "it went on while paused");
        mirrored.command("block-job-resume")?;
        mirrored.qmp.call("block-job-set-speed", json!({ "device": "m0", "speed": 0 }))?;
        mirrored.ready()?;
        mirrored.command("block-job-complete")?;
        mirrored.event("BLOCK_JOB_COMPLETED")?;
        let target = mirrored.target.clone();
        mirrored.finish(&target)
    });
}

#[test]
fn a_target_of_another_size_fails_the_job_and_not_the_guest() {
    need::test(KVM, || {
        let mut mirrored = Mirrored::new("")?;
        let small = mirrored.lab.image("small.raw", MIB / 2)?;
        let file = json!({ "driver": "file", "filename": &small });
        let node = json!({ "driver": "raw", "node-name": "small", "file": file });
        mirrored.qmp.call("blockdev-add", node)?;
        mirrored.mirror(json!({ "target": "small" }))?;
        let completed = mirrored.event("BLOCK_JOB_COMPLETED")?;
        let why = completed["error"].as_str().unwrap_or_default();
        ensure!(why.contains("different sizes"), "{completed}");
        std::thread::sleep(Duration::from_millis(300));
        let source = mirrored.source.clone();
        mirrored.finish(&source)
    });
}

#[test]
fn quit_ends_a_running_job_first() {
    need::test(KVM, || {
        let mut mirrored = Mirrored::new("")?;
        mirrored.mirror(json!({ "speed": 65536 }))?;
        mirrored.qmp.call("quit", json!({}))?;
        ensure!(mirrored.vm.wait(LIMIT)?.code() == Some(0), "{}", mirrored.vm.describe());
        let names: Vec<_> = mirrored.qmp.events().iter().map(|event| &event["event"]).collect();
        ensure!(names.iter().any(|name| **name == "BLOCK_JOB_CANCELLED"), "{names:?}");
        Ok(())
    });
}

#[test]
fn mirrors_that_start_together_do_not_get_in_each_others_way() {
    need::test(KVM, || {
        const DISKS: usize = 4;
        let lab = Lab::new()?;
        let mut spec = lab.spec(WORDS);
        for number in 0..DISKS {
            let path = lab.image(&format!("disk{number}.raw"), MIB)?;
            spec = spec.disk(Disk::new(&format!("disk{number}"), &path));
        }
        let vm = lab.run(&spec)?;
        let mut clients = Vec::new();
        for number in 0..DISKS {
            let mut ferry = Command::new(binary::ferry()?);
            ferry.args(["mirror", "--create", "--finish", "pivot", "--qmp"]).arg(vm.socket());
            ferry.args(["--device", &format!("disk{number}"), "--target"]);
            ferry.arg(lab.path(&format!("copy{number}.raw")));
            clients.push(ferry.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?);
        }
        for client in clients {
            let output = client.wait_with_output()?;
            let text = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{text}");
        }
        lab::finish(&vm)?;
        lab::holds(&lab.path("copy0.raw"), lab::verdict(&vm)?, 4096)
    });
}
