//! Disks of `ferry storage` under guests of QEMU, by vhost-user-blk; `qemu-storage-daemon` as the judge.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use ferry_tests::console::number;
use ferry_tests::daemon::Daemon;
use ferry_tests::lab::{self, LIMIT, Lab, Verdict};
use ferry_tests::need::{self, Need};
use ferry_tests::qmp::Qmp;
use ferry_tests::vm::{Disk, Monitor, Spec, Vm};
use ferry_tests::{image, time};
use serde_json::{Value, json};

const NEEDS: &[Need] = &[Need::Kvm, Need::Program("qemu-system-x86_64", "qemu-system-x86")];
const DAEMON: Need = Need::Program("qemu-storage-daemon", "qemu-system-common");

/// A disk image, and where it is served.
struct Place {
    lab: Lab,
    image: PathBuf,
}

impl Place {
    fn new(mib: u64) -> Result<Place> {
        let lab = Lab::new()?;
        let image = lab.image("disk.raw", mib)?;
        Ok(Place { lab, image })
    }

    fn socket(&self, id: &str) -> PathBuf {
        self.lab.path(id)
    }

    /// What either daemon is told: the image as node `d0`, and an export of it.
    fn options(&self, export: &str) -> Vec<String> {
        vec![
            format!("--blockdev=driver=file,node-name=d0,filename={}", self.image.display()),
            self.export("e0", export),
        ]
    }

    fn export(&self, id: &str, more: &str) -> String {
        let socket = self.socket(id);
        let socket = socket.display();
        format!(
            "--export=type=vhost-user-blk,id={id},node-name=d0,addr.type=unix,addr.path={socket}{more}"
        )
    }

    fn serve(&self, export: &str) -> Result<Daemon> {
        let options = self.options(export);
        Daemon::ferry(&options.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn spec(&self, words: &str, queues: u32) -> Spec {
        self.lab.spec(words).disk(Disk::served("disk0", &self.socket("e0"), queues))
    }

    /// Starts QEMU and waits until the guest works.
    fn run(&self, words: &str, queues: u32) -> Result<Vm> {
        started(&self.spec(words, queues), &self.socket("e0"))
    }
}

fn started(spec: &Spec, socket: &Path) -> Result<Vm> {
    time::poll("the export's socket", LIMIT, || Ok(socket.exists().then_some(())))?;
    let mut vm = Vm::start(&Monitor::Qemu, spec)?;
    match vm.console.wait_word("READY", LIMIT) {
        Ok(_) => Ok(vm),
        Err(error) => Err(error.context(vm.describe())),
    }
}

fn exports(qmp: &mut Qmp) -> Result<Value> {
    qmp.call("query-block-exports", json!({}))
}

fn deleted(event: &Value) -> bool {
    event["event"] == "BLOCK_EXPORT_DELETED" && event["data"]["id"] == "e0"
}

/// The guest's run of a second with these words; it and the image must agree.
fn verified(words: &str, queues: u32, export: &str) -> Result<()> {
    let place = Place::new(16)?;
    let _daemon = place.serve(export)?;
    let words = format!("workload=verify init=zero seconds=1 {words}");
    let mut vm = place.run(&words, queues)?;
    lab::finished(&vm)?;
    let verdict = lab::verdict(&vm)?;
    ensure!(verdict.ops > 100, "hardly anything was done: {verdict:?}");
    vm.wait(LIMIT)?;
    lab::holds(&place.image, verdict, 4096)
}

#[test]
fn plain_requests() {
    need::test(NEEDS, || verified("", 1, ",writable=on"));
}

#[test]
fn zeroes_and_flushes_on_several_queues() {
    need::test(NEEDS, || {
        let words = "zeroes=1 flush_every=8 queues=4 depth=64 indirect=1 segs=5";
        verified(words, 4, ",writable=on,num-queues=4")
    });
}

#[test]
fn no_event_index_and_every_write_durable() {
    need::test(NEEDS, || verified("event_idx=0 depth=16", 1, ",writable=on,writethrough=on"));
}

#[test]
fn discards() {
    need::test(NEEDS, || {
        let place = Place::new(16)?;
        let _daemon = place.serve(",writable=on")?;
        let words = "workload=verify init=zero seconds=1 discards=1 zeroes=1 write_percent=80";
        let vm = place.run(words, 1)?;
        lab::finished(&vm)?;
        let verdict = lab::verdict(&vm)?;
        ensure!(verdict.ops > 100, "hardly anything was done: {verdict:?}");
        Ok(())
    });
}

/// What the guest sees of its disk. It does nothing with it: QEMU's daemon gives up on guests that poll.
fn seen(place: &Place, queues: u32) -> Result<String> {
    let vm = place.run("disk_mib=8", queues)?;
    Ok(vm.console.wait_word("DISKINFO", LIMIT)?.text)
}

#[test]
fn a_guest_sees_the_same_disk_as_from_qemu() {
    let needs = [NEEDS, &[DAEMON]].concat();
    need::test(&needs, || {
        let place = Place::new(16)?;
        let export = ",writable=on,num-queues=2";
        let ours = {
            let _daemon = place.serve(export)?;
            seen(&place, 2)?
        };
        let options = place.options(export);
        let _daemon = Daemon::qemu(&options.iter().map(String::as_str).collect::<Vec<_>>())?;
        let theirs = seen(&place, 2)?;
        ensure!(ours == theirs, "ours: {ours}\nQEMU: {theirs}");
        Ok(())
    });
}

#[test]
fn a_read_only_export_is_read() {
    need::test(NEEDS, || {
        let place = Place::new(16)?;
        let _daemon = place.serve("")?;
        let vm = place.run("bench=randread/4096/8 milliseconds=200", 1)?;
        let line = vm.console.wait_word("DISKINFO", LIMIT)?.text;
        ensure!(line.contains("read_only=1"), "{line}");
        let line = vm.console.wait_word("IOPS", LIMIT)?.text;
        ensure!(number(&line, "failed")? == 0 && number(&line, "ops")? > 100, "{line}");
        lab::finished(&vm)
    });
}

#[test]
fn a_guest_is_killed_and_the_next_one_goes_on() {
    need::test(NEEDS, || {
        let place = Place::new(16)?;
        let daemon = place.serve(",writable=on,num-queues=2")?;
        for round in 0..5_u64 {
            let mut vm = place.run("workload=verify init=zero depth=64 queues=2", 2)?;
            vm.console.wait_dot(LIMIT)?;
            std::thread::sleep(std::time::Duration::from_millis(100 + 37 * round));
            vm.kill()?;
            // No request was cut in two.
            time::poll("the export's client to leave", LIMIT, || {
                Ok(image::examine(&place.image, 4096).ok())
            })?;
            image::sparse(&place.image, 0)?;
            image::sparse(&place.image, 16 << 20)?;
        }
        let vm = place.run("workload=verify init=zero seconds=1", 2)?;
        lab::finished(&vm)?;
        ensure!(exports(&mut daemon.qmp()?)?[0]["id"] == "e0", "the export is gone");
        Ok(())
    });
}

#[test]
fn an_export_in_use_is_taken_away_only_by_force() {
    need::test(NEEDS, || {
        let place = Place::new(16)?;
        let daemon = place.serve(",writable=on")?;
        let mut qmp = daemon.qmp()?;
        let mut vm = place.run("workload=verify depth=16", 1)?;
        let expected = json!([{
            "id": "e0", "type": "vhost-user-blk", "node-name": "d0", "shutting-down": false,
        }]);
        let found = exports(&mut qmp)?;
        ensure!(found == expected, "{found}");
        let refused = qmp.execute("block-export-del", json!({"id": "e0"}))?;
        let refused = refused.err().map(|refused| refused.desc);
        ensure!(refused.as_deref() == Some("export 'e0' still in use"), "{refused:?}");
        qmp.call("block-export-del", json!({"id": "e0", "mode": "hard"}))?;
        qmp.wait_event("BLOCK_EXPORT_DELETED", 0, LIMIT, deleted)?;
        ensure!(exports(&mut qmp)? == json!([]) && !place.socket("e0").exists());
        vm.kill()?;
        // The node is free, and the next export may have the same name and place.
        let add = json!({
            "type": "vhost-user-blk", "id": "e0", "node-name": "d0", "writable": true,
            "addr": {"type": "unix", "path": place.socket("e0")},
        });
        qmp.call("block-export-add", add.clone())?;
        let taken = qmp.execute("block-export-add", add)?.err().map(|refused| refused.desc);
        let expected = "Block export id 'e0' is already in use";
        ensure!(taken.as_deref() == Some(expected), "{taken:?}");
        let before = qmp.events().len();
        qmp.call("block-export-del", json!({"id": "e0"}))?;
        qmp.wait_event("BLOCK_EXPORT_DELETED", before, LIMIT, deleted)?;
        qmp.call("blockdev-del", json!({"node-name": "d0"}))?;
        Ok(())
    });
}

#[test]
fn a_guest_hears_of_another_length() {
    need::test(NEEDS, || {
        let place = Place::new(16)?;
        let daemon = place.serve(",writable=on")?;
        let vm = place.run("workload=verify depth=4 disk_mib=8", 1)?;
        let size = 32_u64 << 20;
        daemon.qmp()?.call("block_resize", json!({"node-name": "d0", "size": size}))?;
        time::poll("the new length", LIMIT, || {
            vm.console.send(b"c")?;
            let lines = vm.console.lines();
            let told = lines.iter().filter(|line| line.text.starts_with("CAPACITY"));
            let new = |text: &str| number(text, "sectors").ok() == Some(size / 512);
            Ok(told.map(|line| line.text.clone()).find(|text| new(text)).map(drop))
        })?;
        lab::finish(&vm)
    });
}

#[test]
fn a_mirror_of_a_disk_in_use_holds_the_same() {
    need::test(NEEDS, || {
        let place = Place::new(16)?;
        let daemon = place.serve(",writable=on")?;
        let mut qmp = daemon.qmp()?;
        let vm = place.run("workload=verify init=zero depth=16", 1)?;
        let copy = place.lab.image("copy.raw", 16)?;
        qmp.call("blockdev-add", json!({"driver": "file", "node-name": "t0", "filename": copy}))?;
        qmp.call(
            "blockdev-mirror",
            json!({"job-id": "j0", "device": "d0", "target": "t0", "sync": "full"}),
        )?;
        qmp.wait_event("BLOCK_JOB_READY", 0, LIMIT, |event| event["event"] == "BLOCK_JOB_READY")?;
        qmp.call("block-job-complete", json!({"device": "j0"}))?;
        qmp.wait_event("BLOCK_JOB_COMPLETED", 0, LIMIT, |event| {
            event["event"] == "BLOCK_JOB_COMPLETED"
        })?;
        ensure!(exports(&mut qmp)?[0]["node-name"] == "t0", "no pivot");
        vm.console.wait_dot(LIMIT)?;
        lab::finish(&vm)?;
        let verdict = lab::verdict(&vm)?;
        drop(vm);
        qmp.call("quit", json!({}))?;
        lab::holds(&copy, verdict, 4096)
    });
}

/// The end of a migration, of QEMU's both sides.
fn migrate(source: &Vm, uri: &str) -> Result<()> {
    let mut qmp = source.qmp()?;
    qmp.call("migrate", json!({"uri": uri}))?;
    let answer = lab::migrated(&mut qmp)?;
    ensure!(answer["status"] == "completed", "{answer}");
    Ok(())
}

#[test]
fn a_guest_moves_to_another_qemu_with_its_disk() {
    need::test(NEEDS, || {
        let place = Place::new(16)?;
        let mut options = place.options(",writable=on,num-queues=2");
        options.push(place.export("e1", ",writable=on,num-queues=2"));
        let daemon = Daemon::ferry(&options.iter().map(String::as_str).collect::<Vec<_>>())?;
        let words = "workload=verify,dirty init=zero depth=32 queues=2 mem_mib=32 dirty_mib_s=50";
        let source = place.run(words, 2)?;
        let uri = format!("unix:{}", place.socket("m").display());
        let spec = place.lab.spec(words).disk(Disk::served("disk0", &place.socket("e1"), 2));
        let destination = Vm::start(&Monitor::Qemu, &spec.incoming(&uri))?;
        time::poll("the destination", LIMIT, || Ok(place.socket("m").exists().then_some(())))?;
        migrate(&source, &uri)?;
        drop(source);
        let mut qmp = destination.qmp()?;
        qmp.poll(
            "query-status",
            LIMIT,
            |answer| Ok((answer["status"] == "running").then_some(())),
        )?;
        destination.console.wait_dot(LIMIT)?;
        std::thread::sleep(std::time::Duration::from_millis(300));
        lab::finish(&destination)?;
        let verdict: Verdict = lab::verdict(&destination)?;
        drop(destination);
        ensure!(exports(&mut daemon.qmp()?)?.as_array().is_some_and(|list| list.len() == 2));
        lab::holds(&place.image, verdict, 4096)
    });
}
