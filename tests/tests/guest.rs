//! The bare-metal guest itself, under QEMU: what it says about ferry is worth as much as this.

use std::time::Duration;

use anyhow::ensure;
use ferry_tests::console::{longest_gap, number};
use ferry_tests::need::{self, Need, QEMU};
use ferry_tests::vm::{Disk, Monitor, Spec, Vm};
use ferry_tests::{guest, image, time};
use serde_json::json;

const SHORT: Duration = Duration::from_secs(20);

#[test]
fn checks_a_disk_and_memory() {
    need::test(&[Need::Kvm, QEMU], || {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("disk.raw");
        image::sparse(&path, 16 << 20)?;
        let cmdline =
            "workload=verify,dirty init=zero zeroes=1 mem_mib=32 dirty_mib_s=100 seconds=1";
        let spec = Spec::new(&guest::bare_metal()?, cmdline, 128).disk(Disk::new("d0", &path));
        let mut vm = Vm::start(&Monitor::Qemu, &spec)?;
        let done = vm.console.wait_word("DONE", SHORT)?;
        ensure!(done.text == "DONE status=0", "{}", vm.describe());
        let disk = vm.console.wait_word("DISK", SHORT)?;
        vm.wait(SHORT)?;
        let examined = image::examine(&path, 4096)?;
        ensure!(examined.written == number(&disk.text, "written")?, "{disk:?} {examined:?}");
        ensure!(examined.digest == number(&disk.text, "digest")?, "{disk:?} {examined:?}");
        Ok(())
    });
}

#[test]
fn notices_a_lost_write() {
    need::test(&[Need::Kvm, QEMU], || {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("disk.raw");
        image::sparse(&path, 1 << 20)?;
        let cmdline = "workload=verify init=zero write_percent=100";
        let spec = Spec::new(&guest::bare_metal()?, cmdline, 64).disk(Disk::new("d0", &path));
        let vm = Vm::start(&Monitor::Qemu, &spec)?;
        vm.console.wait_word("READY", SHORT)?;
        let mut qmp = vm.qmp()?;
        qmp.call("stop", json!({}))?;
        let old = std::fs::read(&path)?;
        qmp.call("cont", json!({}))?;
        time::poll("a write", SHORT, || Ok((std::fs::read(&path)? != old).then_some(())))?;
        // And many more, so that one of them is not written again before the end.
        time::pause(Duration::from_millis(300));
        qmp.call("stop", json!({}))?;
        std::fs::write(&path, old)?;
        qmp.call("cont", json!({}))?;
        vm.console.send(b"q")?;
        let done = vm.console.wait_word("DONE", SHORT)?;
        ensure!(done.text == "DONE status=1", "{}", vm.console.text());
        Ok(())
    });
}

#[test]
fn survives_a_migration_and_shows_its_pause() {
    need::test(&[Need::Kvm, QEMU], || {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("disk.raw");
        image::sparse(&path, 16 << 20)?;
        let socket = folder.path().join("migration.sock");
        let uri = format!("unix:{}", socket.display());
        let cmdline = "workload=verify,dirty init=zero mem_mib=64 dirty_mib_s=50 disk_iops=500";
        let spec = Spec::new(&guest::bare_metal()?, cmdline, 128).disk(Disk::new("d0", &path));
        let source = Vm::start(&Monitor::Qemu, &spec)?;
        let target = Vm::start(&Monitor::Qemu, &spec.incoming(&uri))?;
        source.console.wait_word("READY", SHORT)?;
        let mut qmp = source.qmp()?;
        target.qmp()?;
        time::poll("the listening destination", SHORT, || Ok(socket.exists().then_some(())))?;
        qmp.call("migrate", json!({ "uri": uri }))?;
        qmp.poll("query-migrate", SHORT, |status| {
            Ok((status["status"] == "completed").then_some(()))
        })?;
        target.console.wait_dot(SHORT)?;
        target.console.send(b"q")?;
        let done = target.console.wait_word("DONE", SHORT)?;
        ensure!(done.text == "DONE status=0", "{}", target.console.text());
        let gap = longest_gap(source.console.dots().into_iter().chain(target.console.dots()));
        ensure!(gap > Duration::from_millis(1), "no pause seen: {gap:?}");
        Ok(())
    });
}
