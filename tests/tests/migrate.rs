//! Live migration of the bare-metal guest between two processes, disk and memory checked at the end.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Result, ensure};
use ferry_tests::lab::{self, LIMIT, Lab, Verdict};
use ferry_tests::need::{self, Need};
use ferry_tests::qmp::Qmp;
use ferry_tests::time;
use ferry_tests::vm::{Spec, Vm};
use serde_json::{Value, json};

const KVM: &[Need] = &[Need::Kvm];
const WORDS: &str = "workload=verify,dirty init=zero mem_mib=64 disk_iops=2000";

fn busy(lab: &Lab, words: &str) -> Result<(Spec, std::path::PathBuf)> {
    lab.with_disk(&format!("{WORDS} {words}"), 16)
}

#[test]
fn there_and_back_again() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let (spec, disk) = busy(&lab, "dirty_mib_s=100")?;
        let (vm, verdict) = moved(&lab, &spec, 5)?;
        drop(vm);
        lab::holds(&disk, verdict, 4096)
    });
}

/// Both sides have the image open the whole time: what the destination read before it owns it must not count.
#[test]
fn on_a_qcow2_image_that_both_sides_see() {
    need::test(&[Need::Kvm, need::QEMU_IMG], || {
        let lab = Lab::new()?;
        let (spec, disk) = lab.with_qcow2(&format!("{WORDS} dirty_mib_s=50"), 16)?;
        let (mut vm, verdict) = moved(&lab, &spec, 3)?;
        vm.wait(LIMIT)?;
        lab::qcow2_holds(&disk, verdict, 4096)
    });
}

/// Moves a guest from process to process, and lets it check everything in the last one.
fn moved(lab: &Lab, spec: &Spec, rounds: u32) -> Result<(Vm, Verdict)> {
    let mut vm = lab.run(spec)?;
    for round in 0..rounds {
        let (target, uri) = lab.destination(spec, &format!("m{round}.sock"))?;
        let mut qmp = vm.qmp()?;
        qmp.call("migrate", json!({ "uri": uri }))?;
        let answer = lab::migrated(&mut qmp)?;
        ensure!(answer["status"] == "completed", "round {round}: {answer}");
        ensure!(lab::state(&mut qmp)? == "postmigrate");
        target.console.wait_dot(LIMIT)?;
        ensure!(lab::state(&mut target.qmp()?)? == "running");
        vm = target;
    }
    lab::finish(&vm)?;
    let verdict = lab::verdict(&vm)?;
    Ok((vm, verdict))
}

#[test]
fn over_tcp_with_a_destination_told_by_qmp() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let (spec, disk) = busy(&lab, "dirty_mib_s=50 queues=2 indirect=1")?;
        let vm = lab.run(&spec)?;
        let target = lab.start(&spec.incoming("defer"))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let uri = format!("tcp:127.0.0.1:{port}");
        let mut waiting = target.qmp()?;
        ensure!(lab::state(&mut waiting)? == "inmigrate");
        waiting.call("migrate-incoming", json!({ "uri": uri }))?;
        let mut qmp = vm.qmp()?;
        qmp.call("migrate", json!({ "uri": uri }))?;
        let answer = lab::migrated(&mut qmp)?;
        ensure!(answer["status"] == "completed", "{answer}");
        for name in ["total-time", "downtime", "setup-time"] {
            ensure!(answer[name].is_u64(), "no {name}: {answer}");
        }
        // All that is in use travels, as often as it is written to; an empty page costs next to nothing.
        let ram = |name: &str| answer["ram"][name].as_u64().unwrap_or(0);
        let pages = ram("normal") * 4096;
        ensure!(ram("duplicate") > 0 && pages > 64 << 20, "{answer}");
        ensure!((pages..pages + (4 << 20)).contains(&ram("transferred")), "{answer}");
        ensure!(ram("remaining") == 0, "{answer}");
        waiting.wait_event("RESUME", 0, LIMIT, |event| event["event"] == "RESUME")?;
        lab::finish(&target)?;
        let verdict = lab::verdict(&target)?;
        drop((vm, target));
        lab::holds(&disk, verdict, 4096)
    });
}

/// The order in which QEMU tells of a migration, at both ends.
#[test]
fn events_tell_how_far_it_is() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let (spec, _) = busy(&lab, "dirty_mib_s=50")?;
        let vm = lab.run(&spec)?;
        let (target, uri) = lab.destination(&spec, "m.sock")?;
        let (mut qmp, mut waiting) = (vm.qmp()?, target.qmp()?);
        let capability = json!({ "capability": "events", "state": true });
        for client in [&mut qmp, &mut waiting] {
            client.call("migrate-set-capabilities", json!({ "capabilities": [capability] }))?;
        }
        let refused = waiting.execute("migrate", json!({ "uri": "unix:/nowhere" }))?;
        ensure!(refused.is_err_and(|refused| refused.desc.contains("waiting for an incoming")));
        // Slow enough to be found in its first round.
        qmp.call("migrate-set-parameters", json!({ "max-bandwidth": 1 << 20 }))?;
        qmp.call("migrate", json!({ "uri": uri }))?;
        let is = |state| move |event: &Value| event["data"]["status"] == state;
        qmp.wait_event("active", 0, LIMIT, is("active"))?;
        ensure!(qmp.call("query-migrate", json!({}))?["status"] == "active");
        qmp.call("migrate-set-parameters", json!({ "max-bandwidth": 0 }))?;
        qmp.wait_event("completed", 0, LIMIT, is("completed"))?;
        waiting.wait_event("completed", 0, LIMIT, is("completed"))?;
        let told = |client: &Qmp| -> Vec<String> {
            let word = |event: &Value| event["data"]["status"].as_str().map(str::to_owned);
            let name = |event: &Value| event["event"].as_str().unwrap_or_default().to_owned();
            client.events().iter().map(|event| word(event).unwrap_or_else(|| name(event))).collect()
        };
        let source = told(&qmp);
        ensure!(source.starts_with(&["setup", "MIGRATION_PASS", "active"].map(str::to_owned)));
        let end = ["STOP", "MIGRATION_PASS", "completed"].map(str::to_owned);
        ensure!(source.ends_with(&end), "{source:?}");
        ensure!(told(&waiting) == ["active", "RESUME", "completed"], "{:?}", told(&waiting));
        Ok(())
    });
}

#[test]
fn a_stopped_guest_arrives_stopped() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let (spec, _) = busy(&lab, "dirty_mib_s=50")?;
        let vm = lab.run(&spec)?;
        let (target, uri) = lab.destination(&spec, "m.sock")?;
        let mut qmp = vm.qmp()?;
        qmp.call("stop", json!({}))?;
        qmp.call("migrate", json!({ "uri": uri }))?;
        ensure!(lab::migrated(&mut qmp)?["status"] == "completed");
        let mut arrived = target.qmp()?;
        ensure!(lab::state(&mut arrived)? == "paused", "{}", lab::state(&mut arrived)?);
        ensure!(target.console.dots().is_empty(), "it ran");
        arrived.call("cont", json!({}))?;
        lab::finish(&target)
    });
}

#[test]
fn bandwidth_is_kept_and_raised_while_it_runs() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let vm = lab.run(&lab.spec("disk=none workload=dirty mem_mib=64"))?;
        let (target, uri) =
            lab.destination(&lab.spec("disk=none workload=dirty mem_mib=64"), "m.sock")?;
        let mut qmp = vm.qmp()?;
        qmp.call("migrate-set-parameters", json!({ "max-bandwidth": 4 << 20 }))?;
        let started = time::now();
        qmp.call("migrate", json!({ "uri": uri }))?;
        time::pause(Duration::from_secs(1));
        let answer = qmp.call("query-migrate", json!({}))?;
        let seconds = started.elapsed().as_secs() + 1;
        ensure!(answer["status"] == "active", "{answer}");
        let sent = answer["ram"]["transferred"].as_u64().unwrap_or(u64::MAX);
        ensure!(sent < (4 * seconds + 4) << 20, "{sent} bytes in {seconds} s at 4 MiB/s");
        qmp.call("migrate-set-parameters", json!({ "max-bandwidth": 10_u64 << 30 }))?;
        ensure!(lab::migrated(&mut qmp)?["status"] == "completed");
        lab::finish(&target)
    });
}

#[test]
fn a_guest_that_outruns_the_link_keeps_running() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let spec = lab.spec("disk=none workload=dirty mem_mib=64 dirty_mib_s=400");
        let vm = lab.run(&spec)?;
        let (_target, uri) = lab.destination(&spec, "m.sock")?;
        let mut qmp = vm.qmp()?;
        let slow = json!({ "max-bandwidth": 8 << 20, "downtime-limit": 1 });
        qmp.call("migrate-set-parameters", slow)?;
        qmp.call("migrate", json!({ "uri": uri }))?;
        std::thread::sleep(Duration::from_secs(2));
        ensure!(qmp.call("query-migrate", json!({}))?["status"] == "active");
        qmp.call("migrate_cancel", json!({}))?;
        ensure!(lab::migrated(&mut qmp)?["status"] == "cancelled");
        lab::finish(&vm)
    });
}
