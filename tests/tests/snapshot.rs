//! Snapshots of a disk while a client of an export writes to it.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Result, ensure};
use ferry_tests::daemon::Daemon;
use ferry_tests::need::{self, Need};
use ferry_tests::{command, time};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const NEEDS: &[Need] =
    &[Need::Program("nbdcopy", "libnbd-bin"), Need::Program("qemu-img", "qemu-utils")];
/// Bytes of the disk.
const SIZE: u64 = 48 << 20;
/// Bytes a second that the client may write, so that everything happens while it does.
const RATE: u64 = 8 << 20;

/// A program that runs meanwhile, ended when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Blocks that are all different, so that none can stand for another.
fn fill(path: &str) -> Result<()> {
    let blocks = (0..SIZE / 8)
        .flat_map(|number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    Ok(std::fs::write(path, blocks.collect::<Vec<u8>>())?)
}

fn qemu_img(arguments: &[&str]) -> Result<String> {
    let mut program = command::program("qemu-img", "qemu-utils")?;
    command::output(program.args(arguments))
}

/// It is closed in order then: its bitmaps are in the image.
#[test]
fn an_overlay_goes_with_the_export_that_used_it_last() {
    need::test(&[Need::Program("qemu-img", "qemu-utils")], || {
        let mut daemon = Daemon::ferry(&[
            "--blockdev=driver=raw,node-name=disk,file.driver=file,file.filename=DIR/disk.raw",
            "--nbd-server=addr.type=unix,addr.path=DIR/nbd",
            "--export=nbd,id=e0,node-name=disk,writable=on",
        ])?;
        let mut qmp = daemon.qmp()?;
        let file = daemon.path("o.qcow2");
        let overlay =
            json!({"node-name": "disk", "snapshot-file": file, "snapshot-node-name": "o"});
        qmp.call("blockdev-snapshot-sync", overlay)?;
        let bitmap = json!({"node": "o", "name": "since", "persistent": true});
        qmp.call("block-dirty-bitmap-add", bitmap)?;
        ensure!(qmp.call("blockdev-del", json!({"node-name": "o"})).is_err());
        qmp.call("block-export-del", json!({"id": "e0"}))?;
        let nodes = qmp.call("query-named-block-nodes", json!({"flat": true}))?;
        let named =
            |name| nodes.as_array().into_iter().flatten().any(|node| node["node-name"] == name);
        ensure!(named("disk") && !named("o"), "{nodes}");
        let info: Value = serde_json::from_str(&qemu_img(&["info", "--output=json", &file])?)?;
        let bitmap = &info["format-specific"]["data"]["bitmaps"][0];
        ensure!(bitmap["name"] == "since" && bitmap["flags"] == json!(["auto"]), "{info}");
        qmp.call("blockdev-del", json!({"node-name": "disk"}))?;
        qmp.call("quit", json!({}))?;
        ensure!(daemon.ended()? == 0);
        Ok(())
    });
}

/// Between the making of an overlay and its moving in, too.
#[test]
fn the_file_of_an_image_grows_while_it_gets_overlays() {
    need::test(NEEDS, || {
        let daemon = Daemon::ferry(&["--nbd-server=addr.type=unix,addr.path=DIR/nbd"])?;
        let mut qmp = daemon.qmp()?;
        let image = daemon.path("image");
        qemu_img(&["create", "-q", "-f", "qcow2", &image, &SIZE.to_string()])?;
        let file = json!({"driver": "file", "node-name": "f0", "filename": image});
        qmp.call("blockdev-add", file)?;
        let disk = json!({"driver": "qcow2", "node-name": "disk", "file": "f0"});
        qmp.call("blockdev-add", disk)?;
        let export = json!({"type": "nbd", "id": "e0", "node-name": "disk", "writable": true});
        qmp.call("block-export-add", export)?;
        let limits = json!({"id": "e0", "bps": 0, "bps_rd": 0, "bps_wr": 8 * RATE, "iops": 0,
            "iops_rd": 0, "iops_wr": 0});
        qmp.call("block_set_io_throttle", limits)?;
        fill(&daemon.path("source"))?;
        let served = format!("nbd+unix:///disk?socket={}", daemon.path("nbd"));
        let mut copy = Command::new("nbdcopy");
        copy.args(["--connections=1", "--requests=4", &daemon.path("source"), &served]);
        let mut client = Running(copy.spawn()?);
        let mut below = "f0".to_owned();
        for number in 1..=8 {
            std::thread::sleep(Duration::from_millis(50));
            let name = format!("s{number}");
            let overlay = json!({"node-name": below, "snapshot-file": daemon.path(&name),
                "snapshot-node-name": name});
            qmp.call("blockdev-snapshot-sync", overlay)?;
            below = name;
        }
        let status = time::poll("the copy", LIMIT, || Ok(client.0.try_wait()?))?;
        ensure!(status.success(), "the client was refused something");
        command::output(Command::new("nbdcopy").args([&served, &daemon.path("copied")]))?;
        let same = std::fs::read(daemon.path("copied"))? == std::fs::read(daemon.path("source"))?;
        ensure!(same, "something that was written is lost");
        Ok(())
    });
}

/// Another client cannot come in between what is done and what is taken back.
#[test]
fn a_transaction_that_is_taken_back_leaves_nothing() {
    need::test(&[Need::Program("qemu-img", "qemu-utils")], || {
        let mut daemon = Daemon::ferry(&[])?;
        let (mut qmp, mut other) = (daemon.qmp()?, daemon.qmp()?);
        let image = daemon.path("image");
        qemu_img(&["create", "-q", "-f", "qcow2", &image, "1M"])?;
        let file = json!({"driver": "file", "filename": image});
        let disk = json!({"driver": "qcow2", "node-name": "disk", "file": file});
        qmp.call("blockdev-add", disk)?;
        let meanwhile = time::spawn("another client", move || -> Result<()> {
            for active in [false, true].repeat(20) {
                let set = json!({"node-name": "disk", "active": active});
                other.call("blockdev-set-active", set)?;
            }
            Ok(())
        });
        let inside = json!({"device": "disk", "name": "inside"});
        let actions = json!([
            {"type": "blockdev-snapshot-internal-sync", "data": inside},
            {"type": "abort", "data": {}}
        ]);
        while !meanwhile.is_finished() {
            ensure!(qmp.call("transaction", json!({"actions": &actions})).is_err());
        }
        meanwhile.join().expect("the other client")?;
        qmp.call("quit", json!({}))?;
        ensure!(daemon.ended()? == 0);
        let info: Value = serde_json::from_str(&qemu_img(&["info", "--output=json", &image])?)?;
        ensure!(info["snapshots"].is_null(), "{info}");
        Ok(())
    });
}

#[test]
fn snapshots_are_taken_while_a_client_writes() {
    need::test(NEEDS, || {
        let mut daemon = Daemon::ferry(&[
            "--blockdev=driver=file,node-name=f0,filename=DIR/disk.raw",
            "--blockdev=driver=raw,node-name=disk,file=f0",
            "--nbd-server=addr.type=unix,addr.path=DIR/nbd",
        ])?;
        let mut qmp = daemon.qmp()?;
        qmp.call("block_resize", json!({"node-name": "disk", "size": SIZE}))?;
        let export = json!({"type": "nbd", "id": "e0", "node-name": "disk", "name": "disk",
            "writable": true});
        qmp.call("block-export-add", export)?;
        let limits = json!({"id": "e0", "bps": 0, "bps_rd": 0, "bps_wr": RATE, "iops": 0,
            "iops_rd": 0, "iops_wr": 0});
        qmp.call("block_set_io_throttle", limits)?;
        fill(&daemon.path("source"))?;
        let mut copy = Command::new("nbdcopy");
        // A drain lets go of what waits for the limit, so little may wait.
        copy.args(["--connections=1", "--requests=4"]).arg(daemon.path("source"));
        copy.arg(format!("nbd+unix:///disk?socket={}", daemon.path("nbd")));
        let mut client = Running(copy.spawn()?);

        let mut below = "disk".to_owned();
        let mut sealed = Vec::new();
        for number in 1..=4 {
            std::thread::sleep(Duration::from_millis(500));
            let (name, file) = (format!("s{number}"), daemon.path(&format!("s{number}")));
            let bitmap = json!({"node": &name, "name": "since", "persistent": true});
            let overlay = json!({"node-name": below, "snapshot-file": file,
                "snapshot-node-name": &name});
            let actions = json!([{"type": "blockdev-snapshot-sync", "data": overlay},
                {"type": "block-dirty-bitmap-add", "data": bitmap}]);
            qmp.call("transaction", json!({"actions": actions}))?;
            let inside = json!({"device": &name, "name": "inside"});
            qmp.call("blockdev-snapshot-internal-sync", inside)?;
            let path = if number == 1 { "disk.raw".to_owned() } else { below };
            // Nothing more comes to what is below: it may be copied away.
            sealed.push((path.clone(), std::fs::read(daemon.path(&path))?));
            below = name;
        }
        ensure!(client.0.try_wait()?.is_none(), "the client was done before the snapshots were");
        let status = time::poll("the copy", LIMIT, || Ok(client.0.try_wait()?))?;
        ensure!(status.success(), "the client was refused something");
        qmp.call("block-export-del", json!({"id": "e0", "mode": "hard"}))?;
        qmp.call("quit", json!({}))?;
        ensure!(daemon.ended()? == 0);

        for (name, content) in &sealed {
            ensure!(std::fs::read(daemon.path(name))? == *content, "{name} was written to");
        }
        let info = qemu_img(&["info", "--backing-chain", "--output=json", &daemon.path("s4")])?;
        let chain: Vec<Value> = serde_json::from_str(&info)?;
        ensure!(chain.len() == 5 && chain[4]["format"] == "raw", "{info}");
        for image in &chain[..4] {
            let path = image["filename"].as_str().unwrap_or_default();
            ensure!(Path::new(path).is_absolute() && image["snapshots"][0]["name"] == "inside");
            let bitmap = &image["format-specific"]["data"]["bitmaps"][0];
            ensure!(bitmap["name"] == "since" && bitmap["flags"] == json!(["auto"]), "{image}");
            qemu_img(&["check", path])?;
        }
        let formats = ["compare", "-f", "raw", "-F", "qcow2"];
        let files = [daemon.path("source"), daemon.path("s4")];
        let arguments: Vec<&str> =
            formats.into_iter().chain(files.iter().map(String::as_str)).collect();
        qemu_img(&arguments).map(drop)
    });
}

/// What the command line of `qemu-img` says of the bitmaps of `file`: their names and flags.
fn bitmaps(file: &str) -> Result<Vec<(Value, Value)>> {
    let info: Value = serde_json::from_str(&qemu_img(&["info", "-U", "--output=json", file])?)?;
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned();
    let named = |bitmap: Value| (bitmap["name"].clone(), bitmap["flags"].clone());
    Ok(bitmaps.unwrap_or_default().into_iter().map(named).collect())
}

#[test]
fn a_stored_bitmap_that_was_changed_alone_is_not_whole_after_a_crash() {
    need::test(&[Need::Program("qemu-img", "qemu-utils")], || {
        let mut daemon = Daemon::ferry(&[])?;
        let (mut qmp, file) = (daemon.qmp()?, daemon.path("b.qcow2"));
        qemu_img(&["create", "-f", "qcow2", &file, "1M"])?;
        qemu_img(&["bitmap", "--add", "--disable", &file, "still"])?;
        let node = json!({"driver": "qcow2", "node-name": "b",
            "file": {"driver": "file", "filename": file}});
        qmp.call("blockdev-add", node)?;
        ensure!(bitmaps(&file)? == [(json!("still"), json!([]))], "it is only looked at");
        qmp.call("block-dirty-bitmap-enable", json!({"node": "b", "name": "still"}))?;
        let mut kill = Command::new("kill");
        command::output(kill.arg("-KILL").arg(daemon.id().to_string()))?;
        ensure!(daemon.ended().is_err(), "it was killed");
        let found = bitmaps(&file)?;
        ensure!(found == [(json!("still"), json!(["in-use"]))], "{found:?}");
        qemu_img(&["check", &file]).map(drop)
    });
}

#[test]
fn a_bitmap_that_is_removed_with_a_snapshot_does_not_stay_below_it() {
    need::test(&[Need::Program("qemu-img", "qemu-utils")], || {
        let daemon = Daemon::ferry(&[])?;
        let (mut qmp, file) = (daemon.qmp()?, daemon.path("b.qcow2"));
        qemu_img(&["create", "-f", "qcow2", &file, "1M"])?;
        for name in ["gone", "kept"] {
            qemu_img(&["bitmap", "--add", &file, name])?;
        }
        let node = json!({"driver": "qcow2", "node-name": "b",
            "file": {"driver": "file", "filename": file}});
        qmp.call("blockdev-add", node)?;
        let overlay = json!({"node-name": "b", "snapshot-file": daemon.path("o.qcow2"),
            "snapshot-node-name": "o"});
        let actions = json!([{"type": "blockdev-snapshot-sync", "data": overlay},
            {"type": "block-dirty-bitmap-remove", "data": {"node": "b", "name": "gone"}}]);
        qmp.call("transaction", json!({"actions": actions}))?;
        let found = bitmaps(&file)?;
        ensure!(found == [(json!("kept"), json!(["auto"]))], "{found:?}");
        Ok(())
    });
}
