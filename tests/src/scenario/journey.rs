//! The whole path: a guest writes records while its disk is mirrored and it moves to another process.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::kit::{Kit, LONG, ack, last_ack, ms_since, wait_ack};
use crate::console::{Line, number};
use crate::qmp::Qmp;
use crate::vm::{Disk, Spec, Vm};
use crate::{image, journal, time};

/// Boots, mirrors and pivots, migrates, powers off, and checks every acknowledged record. `records` is how
/// many to write in each step at least.
pub(super) fn journey(kit: &Kit, records: u64) -> Result<()> {
    let (first, second) = (kit.root_disk("first.raw")?, kit.path("second.raw"));
    image::sparse(&second, fs::metadata(&first)?.len())?;

    kit.out.step("boot");
    let (mut spec, source) = kit.boot_root(&first)?;
    kit.out.fact("boot_ms", ms_since(source.started));
    phase(&source, "before", records)?;

    kit.out.step("mirror the running disk and pivot");
    source.console.send(b"phase mirror\n")?;
    mirror(kit, &source, &second)?;
    let left_behind = fs::metadata(&first)?.modified()?;
    wait_more(&source, records)?;

    kit.out.step("migrate to a second process");
    source.console.send(b"phase migrate\n")?;
    wait_more(&source, 2)?;
    spec.disks = vec![Disk::new("disk0", &second)];
    let mut target = migrate(kit, &source, &spec)?;
    wait_ack(&target, last_ack(&source) + records)?;

    kit.out.step("power off");
    target.console.send(b"stop\n")?;
    target.console.wait_word("OFF", LONG)?;
    let status = target.wait(LONG)?;
    ensure!(status.code() == Some(0), "power-off ended with {status}: {}", target.complaints());
    stalls(kit, &source, &target)?;

    kit.out.step("check the surviving disk");
    check(kit, &second, last_ack(&target))?;
    let touched = fs::metadata(&first)?.modified()? != left_behind;
    ensure!(!touched, "the first disk went on being written after the pivot");
    Ok(())
}

/// Migrates there and back again, several times, on a disk that both ends see.
pub(super) fn moves(kit: &Kit, rounds: u32) -> Result<()> {
    let disk = kit.root_disk("root.raw")?;
    kit.out.step("boot");
    let (spec, mut vm) = kit.boot_root(&disk)?;
    for round in 1..=rounds {
        kit.out.step(&format!("migration {round}"));
        let next = migrate(kit, &vm, &spec)?;
        wait_ack(&next, last_ack(&vm) + 5)?;
        vm = next;
    }
    vm.console.send(b"stop\n")?;
    vm.console.wait_word("OFF", LONG)?;
    let status = vm.wait(LONG)?;
    ensure!(status.code() == Some(0), "power-off ended with {status}: {}", vm.complaints());
    check(kit, &disk, last_ack(&vm))
}

fn phase(vm: &Vm, name: &str, records: u64) -> Result<()> {
    vm.console.send(format!("phase {name}\n").as_bytes())?;
    wait_more(vm, records)
}

fn wait_more(vm: &Vm, records: u64) -> Result<()> {
    wait_ack(vm, last_ack(vm) + records)
}

fn mirror(kit: &Kit, vm: &Vm, target: &Path) -> Result<()> {
    let mut qmp = vm.qmp()?;
    let file = json!({ "driver": "file", "filename": target });
    qmp.call("blockdev-add", json!({ "driver": "raw", "node-name": "second", "file": file }))?;
    let start = time::now();
    let job = json!({ "job-id": "mirror0", "device": "disk0", "target": "second", "sync": "full" });
    qmp.call("blockdev-mirror", job)?;
    let len = qmp.poll("query-block-jobs", LONG, |jobs| {
        let job = jobs.get(0).context("the job is gone")?;
        let field = |name: &str| job[name].as_u64().unwrap_or(0);
        kit.out.progress(field("offset"), field("len"), "mirror");
        Ok((job["ready"] == true).then(|| field("len")))
    })?;
    let ms = ms_since(start).max(1);
    kit.out.fact("mirror_ms", ms);
    kit.out.fact("mirror_mib_s", u128::from(len) * 1000 / ms / (1 << 20));
    let from = qmp.events().len();
    qmp.call("block-job-complete", json!({ "device": "mirror0" }))?;
    let event = qmp.wait_event("BLOCK_JOB_COMPLETED", from, LONG, |event| {
        event["event"] == "BLOCK_JOB_COMPLETED"
    })?;
    let event = &qmp.events()[event]["data"];
    ensure!(event.get("error").is_none(), "the mirror failed: {event}");
    Ok(())
}

fn migrate(kit: &Kit, source: &Vm, spec: &Spec) -> Result<Vm> {
    let socket = kit.path("migration.sock");
    // Left over from the last migration, if there was one.
    fs::remove_file(&socket).ok();
    let uri = format!("unix:{}", socket.display());
    let target = Vm::start(&kit.monitor, &spec.incoming(&uri))?;
    time::poll("the listening destination", LONG, || Ok(socket.exists().then_some(())))
        .with_context(|| target.complaints())?;
    let mut qmp = source.qmp()?;
    qmp.call("migrate", json!({ "uri": uri }))?;
    let status = wait_migrated(kit, &mut qmp).with_context(|| {
        format!("source: {}; destination: {}", source.complaints(), target.complaints())
    })?;
    kit.out.fact("migrate_ms", &status["total-time"]);
    kit.out.fact("downtime_ms", &status["downtime"]);
    Ok(target)
}

fn wait_migrated(kit: &Kit, qmp: &mut Qmp) -> Result<Value> {
    qmp.poll("query-migrate", LONG, |status| {
        let ram = |name: &str| status["ram"][name].as_u64().unwrap_or(0);
        kit.out.progress(ram("total").saturating_sub(ram("remaining")), ram("total"), "migrate");
        let state = status["status"].as_str().unwrap_or_default();
        ensure!(!["failed", "cancelled"].contains(&state), "the migration {state}: {status}");
        Ok((state == "completed").then(|| status.clone()))
    })
}

/// The longest pauses between acknowledgements: by the guest's clock, and by ours.
fn stalls(kit: &Kit, source: &Vm, target: &Vm) -> Result<()> {
    let mut lines: Vec<Line> = source.console.lines();
    lines.extend(target.console.lines());
    lines.sort_by_key(|line| line.at);
    let mut last: Option<Instant> = None;
    let mut longest = Duration::ZERO;
    for line in &lines {
        if ack(&line.text).is_some() {
            longest = longest.max(last.map_or(Duration::ZERO, |last| line.at - last));
            last = Some(line.at);
        } else if line.text.starts_with("STALL ") {
            let name =
                line.text.split_ascii_whitespace().find_map(|word| word.strip_prefix("phase="));
            let name = name.context("a STALL line without phase")?;
            kit.out.fact(&format!("stall_{name}_guest_ms"), number(&line.text, "max_us")? / 1000);
            kit.out.fact(&format!("stall_{name}_seen_ms"), longest.as_millis());
            longest = Duration::ZERO;
        }
    }
    Ok(())
}

fn check(kit: &Kit, disk: &Path, acknowledged: u64) -> Result<()> {
    image::check_ext4(disk)?;
    let whole = records_in(kit, disk)?;
    ensure!(whole >= acknowledged, "{whole} records on disk, {acknowledged} acknowledged");
    kit.out.fact("acknowledged", acknowledged);
    kit.out.fact("verified", whole);
    kit.out.fact("e2fsck", "clean");
    Ok(())
}

fn records_in(kit: &Kit, disk: &Path) -> Result<u64> {
    let copy = kit.path("journal");
    fs::remove_file(&copy).ok();
    image::extract(disk, "/data/journal", &copy)?;
    journal::verify(&fs::read(&copy)?, 0)
}
