//! The disk path under the bare-metal guest: every block that it wrote is checked, by it and in the image.

use anyhow::{Result, ensure};
use ferry_tests::console::number;
use ferry_tests::lab::{self, LIMIT, Lab, Verdict};
use ferry_tests::need::{self, Need};
use ferry_tests::vm::{Disk, Spec, Vm};
use serde_json::json;

const KVM: &[Need] = &[Need::Kvm];

/// Runs the guest with these words for a second; guest and image must agree.
fn verified(words: &str, block_bytes: u64, change: impl FnOnce(&mut Disk)) -> Result<()> {
    let lab = Lab::new()?;
    let words = format!("workload=verify init=zero seconds=1 bs={block_bytes} {words}");
    let (mut spec, path) = lab.with_disk(&words, 16)?;
    change(&mut spec.disks[0]);
    let vm = lab.run(&spec)?;
    lab::finished(&vm)?;
    let verdict = lab::verdict(&vm)?;
    ensure!(verdict.ops > 100, "hardly anything was done: {verdict:?}");
    drop(vm);
    lab::holds(&path, verdict, block_bytes)
}

#[test]
fn plain_requests() {
    need::test(KVM, || verified("", 4096, |_| {}));
}

#[test]
fn one_sector_at_a_time() {
    need::test(KVM, || verified("depth=1", 512, |_| {}));
}

#[test]
fn large_scattered_requests() {
    need::test(KVM, || verified("segs=17 depth=8", 65536, |_| {}));
}

#[test]
fn indirect_descriptors_on_several_queues() {
    need::test(KVM, || {
        verified("indirect=1 queues=2 segs=3 depth=64", 8192, |disk| {
            disk.extra = ",queues=2".into();
        })
    });
}

#[test]
fn a_qcow2_image() {
    need::test(&[Need::Kvm, need::QEMU_IMG], || {
        let lab = Lab::new()?;
        let words = "workload=verify init=zero seconds=1 bs=4096 depth=16 flush_every=8";
        let (spec, path) = lab.with_qcow2(words, 16)?;
        let mut vm = lab.run(&spec)?;
        lab::finished(&vm)?;
        let verdict = lab::verdict(&vm)?;
        vm.wait(LIMIT)?;
        lab::qcow2_holds(&path, verdict, 4096)
    });
}

#[test]
fn no_event_index() {
    need::test(KVM, || verified("event_idx=0 depth=16", 4096, |_| {}));
}

#[test]
fn zeroes_and_flushes() {
    need::test(KVM, || verified("zeroes=1 flush_every=8", 4096, |_| {}));
}

#[test]
fn direct_access() {
    need::test(KVM, || verified("zeroes=1", 4096, |disk| disk.direct = true));
}

#[test]
fn direct_access_with_single_sectors() {
    need::test(KVM, || verified("depth=4", 512, |disk| disk.direct = true));
}

#[test]
fn discarded_blocks_may_hold_anything() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let words = "workload=verify init=zero discards=1 zeroes=1 seconds=1";
        let (spec, _) = lab.with_disk(words, 16)?;
        let vm = lab.run(&spec)?;
        lab::finished(&vm)
    });
}

#[test]
fn content_survives_a_restart() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let (spec, path) = lab.with_disk("workload=verify init=zero seconds=1 bs=4096", 4)?;
        let vm = lab.run(&spec)?;
        lab::finished(&vm)?;
        let verdict = lab::verdict(&vm)?;
        drop(vm);
        // The second guest knows nothing and only looks: whatever it finds must be whole and in its place.
        let mut again = lab.spec("workload=verify write_percent=0 seconds=1");
        again.disks = spec.disks;
        let vm = lab.run(&again)?;
        lab::finished(&vm)?;
        drop(vm);
        lab::holds(&path, verdict, 4096)
    });
}

#[test]
fn a_read_only_disk_is_not_written() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let (mut spec, path) = lab.with_disk("workload=verify seconds=1", 4)?;
        let before = std::fs::metadata(&path)?.modified()?;
        spec.disks[0].read_only = true;
        let vm = lab.run(&spec)?;
        lab::finished(&vm)?;
        let facts = vm.console.wait_word("DISKINFO", LIMIT)?.text;
        ensure!(number(&facts, "read_only")? == 1, "{facts}");
        ensure!(std::fs::metadata(&path)?.modified()? == before, "the image was touched");
        Ok(())
    });
}

#[test]
fn the_second_disk_is_a_disk_of_its_own() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let words = "workload=verify init=zero seconds=1 disk=1";
        let (spec, first) = lab.with_disk(words, 4)?;
        let second = lab.image("disk1.raw", 8)?;
        let vm = lab.run(&spec.disk(Disk::new("disk1", &second)))?;
        lab::finished(&vm)?;
        let facts = vm.console.wait_word("DISKINFO", LIMIT)?.text;
        ensure!(number(&facts, "sectors")? == (8 << 20) / 512, "{facts}");
        let verdict = lab::verdict(&vm)?;
        drop(vm);
        lab::holds(&second, verdict, 4096)?;
        ensure!(std::fs::read(&first)?.iter().all(|&byte| byte == 0), "the first was written");
        Ok(())
    });
}

/// Sectors, generation and interrupt, as the guest sees them.
fn capacity(vm: &Vm) -> Result<[u64; 3]> {
    let before = vm.console.lines().len();
    vm.console.send(b"c")?;
    let line = vm.console.wait("CAPACITY", before, LIMIT, |line| {
        line.text.starts_with("CAPACITY ").then(|| line.text.clone())
    })?;
    let [sectors, generation, raised] =
        ["sectors", "generation", "raised"].map(|name| number(&line, name));
    Ok([sectors?, generation?, raised?])
}

/// Lets the disk of a running guest grow while its destination has the image open, and moves it there.
fn grown_and_moved(lab: &Lab, spec: &Spec) -> Result<(Vm, Verdict)> {
    let vm = lab.run(spec)?;
    ensure!(capacity(&vm)? == [(4 << 20) / 512, 0, 0]);
    let (target, uri) = lab.destination(spec, "m.sock")?;
    let mut qmp = vm.qmp()?;
    // The same length again is no news.
    for _ in 0..2 {
        qmp.call("block_resize", json!({"device": "disk0", "size": 8 << 20}))?;
    }
    ensure!(capacity(&vm)? == [(8 << 20) / 512, 1, 1]);
    qmp.call("migrate", json!({ "uri": uri }))?;
    let answer = lab::migrated(&mut qmp)?;
    ensure!(answer["status"] == "completed", "{answer}");
    target.console.wait_dot(LIMIT)?;
    let [sectors, generation, raised] = capacity(&target)?;
    ensure!(sectors == (8 << 20) / 512 && generation >= 1 && raised == 1);
    lab::finish(&target)?;
    let verdict = lab::verdict(&target)?;
    Ok((target, verdict))
}

#[test]
fn a_running_guest_sees_its_disk_grow_and_takes_that_along() {
    need::test(&[Need::Kvm, need::QEMU_IMG], || {
        let words = "workload=verify init=zero disk_iops=500";
        let lab = Lab::new()?;
        let (spec, path) = lab.with_disk(words, 4)?;
        let (vm, verdict) = grown_and_moved(&lab, &spec)?;
        drop(vm);
        lab::holds(&path, verdict, 4096)?;

        let lab = Lab::new()?;
        let (spec, path) = lab.with_qcow2(words, 4)?;
        let (mut vm, verdict) = grown_and_moved(&lab, &spec)?;
        vm.wait(LIMIT)?;
        lab::qcow2_holds(&path, verdict, 4096)
    });
}
