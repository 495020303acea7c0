//! Migrations that fail before the commit point: the source runs on as if nothing had happened, and the
//! next attempt succeeds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_tests::move_rig::{Moving, STEP};
use ferry_tests::need::{self, Need};
use ferry_tests::proxy::{Fault, Proxy};
use ferry_tests::time;
use serde_json::json;

/// Bytes into the stream: in the handshake, at the first pages, and in the middle of memory.
const MOMENTS: [u64; 4] = [5, 700, 300_000, 30 << 20];

/// Tries to migrate through a proxy with this fault; `query-migrate` afterwards.
fn attempt(moving: &mut Moving, fault: Fault, after: u64) -> Result<serde_json::Value> {
    let disk = moving.spec.disks[0].path.clone();
    let (mut target, socket) = moving.destination(&disk)?;
    let proxy = Proxy::start(&moving.fresh("proxy"), &socket, fault, after)?;
    let answer = moving.migrate(&proxy.uri())?;
    let status = target.wait(STEP).context("a destination without a guest must end")?;
    ensure!(!status.success(), "it ended with {status}");
    ensure!(!target.complaints().is_empty(), "it ended without a word");
    Ok(answer)
}

#[test]
fn a_flipped_bit() {
    need::test(&[Need::Kvm], || {
        let mut moving = Moving::start()?;
        // In the middle of a page nobody can see it: contents carry no checksum, frames do.
        for after in &MOMENTS[..2] {
            let answer = attempt(&mut moving, Fault::FlipBit, *after)?;
            ensure!(answer["status"] == "failed", "after {after}: {answer}");
            ensure!(answer["error-desc"].is_string(), "after {after}: {answer}");
            moving.still_here()?;
        }
        moving.arrive()
    });
}

#[test]
fn a_cut_connection() {
    need::test(&[Need::Kvm], || {
        let mut moving = Moving::start()?;
        for after in MOMENTS {
            let answer = attempt(&mut moving, Fault::Cut, after)?;
            ensure!(answer["status"] == "failed", "after {after}: {answer}");
            moving.still_here()?;
        }
        moving.arrive()
    });
}

#[test]
fn a_full_pipe_and_a_cancel() {
    need::test(&[Need::Kvm], || {
        let mut moving = Moving::start()?;
        for after in MOMENTS {
            let disk = moving.spec.disks[0].path.clone();
            let (mut target, socket) = moving.destination(&disk)?;
            let proxy = Proxy::start(&moving.fresh("proxy"), &socket, Fault::Stall, after)?;
            moving.qmp.call("migrate", json!({ "uri": proxy.uri() }))?;
            time::poll("a stuck pipe", STEP, || Ok((proxy.passed() == after).then_some(())))?;
            std::thread::sleep(Duration::from_millis(300));
            let asked = time::now();
            moving.qmp.call("migrate_cancel", json!({}))?;
            let answer = moving.ended()?;
            ensure!(answer["status"] == "cancelled", "after {after}: {answer}");
            ensure!(
                asked.elapsed() < Duration::from_secs(10),
                "a cancel took {:?}",
                asked.elapsed()
            );
            moving.still_here()?;
            target.kill()?;
        }
        moving.arrive()
    });
}

#[test]
fn a_killed_destination() {
    need::test(&[Need::Kvm], || {
        let mut moving = Moving::start()?;
        for after in MOMENTS {
            let disk = moving.spec.disks[0].path.clone();
            let (mut target, socket) = moving.destination(&disk)?;
            let proxy = Proxy::start(&moving.fresh("proxy"), &socket, Fault::None, 0)?;
            // Slow enough to be hit at the chosen moment.
            let slow = json!({ "max-bandwidth": 20 << 20 });
            moving.qmp.call("migrate-set-parameters", slow)?;
            moving.qmp.call("migrate", json!({ "uri": proxy.uri() }))?;
            time::poll("enough bytes", STEP, || Ok((proxy.passed() >= after).then_some(())))?;
            target.kill()?;
            let answer = moving.ended()?;
            ensure!(answer["status"] == "failed", "after {after}: {answer}");
            moving.still_here()?;
        }
        moving.qmp.call("migrate-set-parameters", json!({ "max-bandwidth": 0 }))?;
        moving.arrive()
    });
}

#[test]
fn cancels_at_any_moment_and_nobody_listening() {
    need::test(&[Need::Kvm], || {
        let mut moving = Moving::start()?;
        let nobody = moving.fresh("nobody");
        let answer = moving.migrate(&format!("unix:{}", nobody.display()))?;
        ensure!(answer["status"] == "failed", "{answer}");
        moving.still_here()?;
        for delay in [0, 3, 10, 40] {
            let disk = moving.spec.disks[0].path.clone();
            let (mut target, socket) = moving.destination(&disk)?;
            moving.qmp.call("migrate-set-parameters", json!({ "max-bandwidth": 200 << 20 }))?;
            let uri = format!("unix:{}", socket.display());
            moving.qmp.call("migrate", json!({ "uri": uri }))?;
            std::thread::sleep(Duration::from_millis(delay));
            moving.qmp.call("migrate_cancel", json!({}))?;
            let answer = moving.ended()?;
            ensure!(answer["status"] == "cancelled", "after {delay} ms: {answer}");
            moving.still_here()?;
            let status = target.wait(STEP)?;
            ensure!(!status.success(), "the destination ended with {status}");
        }
        moving.qmp.call("migrate-set-parameters", json!({ "max-bandwidth": 0 }))?;
        moving.arrive()
    });
}

#[test]
fn a_destination_that_does_not_fit_says_why() {
    need::test(&[Need::Kvm], || {
        let mut moving = Moving::start()?;
        let disk = moving.spec.disks[0].path.clone();
        let right = moving.spec.clone();
        moving.spec.memory_mib = 192;
        let (mut target, socket) = moving.destination(&disk)?;
        moving.spec = right;
        let answer = moving.migrate(&format!("unix:{}", socket.display()))?;
        ensure!(answer["status"] == "failed", "{answer}");
        let why = answer["error-desc"].as_str().unwrap_or_default().to_owned();
        ensure!(why.contains("memory"), "{why}");
        ensure!(!target.wait(STEP)?.success(), "{}", target.describe());
        moving.still_here()?;
        moving.arrive()
    });
}
