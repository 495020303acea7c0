//! Exports that come and go while jobs work on their disks, and snapshots under a job: `ferry storage` and
//! `qemu-storage-daemon` do the same.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use ferry_tests::daemon::Daemon;
use ferry_tests::need::{self, Need};
use ferry_tests::qmp::Qmp;
use ferry_tests::{command, time};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);
const DAEMON: Need = Need::Program("qemu-storage-daemon", "qemu-system-common");
const UTILS: Need = Need::Program("qemu-io", "qemu-utils");

/// A disk with a writable export, `e0`, and room for what it is copied to.
const OPTIONS: [&str; 3] = [
    "--blockdev=driver=file,node-name=f0,filename=DIR/disk.raw",
    "--nbd-server=addr.type=unix,addr.path=DIR/nbd",
    "--export=nbd,id=e0,node-name=f0,name=disk,writable=on",
];

/// Runs `test` with a daemon of ours and with one of QEMU's.
fn both(test: impl Fn(&Daemon) -> Result<()>) {
    need::test(&[DAEMON, UTILS], || {
        test(&Daemon::qemu(&OPTIONS)?)?;
        test(&Daemon::ferry(&OPTIONS)?)
    });
}

fn client(daemon: &Daemon, export: &str, commands: &[&str]) -> Result<Command> {
    let mut io = command::program("qemu-io", "qemu-utils")?;
    io.args(["-f", "raw"]);
    io.args(commands.iter().flat_map(|command| ["-c", command]));
    io.arg(format!("nbd+unix:///{export}?socket={}", daemon.path("nbd")));
    Ok(io)
}

/// A client of `export` that does all of `commands`.
fn io(daemon: &Daemon, export: &str, commands: &[&str]) -> Result<()> {
    let said = command::output(&mut client(daemon, export, commands)?)?;
    ensure!(!said.contains("failed"), "{said}");
    Ok(())
}

/// Waits until a job has a status that it has only once.
fn reached(qmp: &mut Qmp, status: &str) -> Result<()> {
    qmp.wait_event(status, 0, LIMIT, |event| event["data"]["status"] == status).map(drop)
}

fn exports(qmp: &mut Qmp) -> Result<Value> {
    qmp.call("query-block-exports", json!({}))
}

fn raw_file(daemon: &Daemon, qmp: &mut Qmp, name: &str) -> Result<()> {
    let path = daemon.path(name);
    std::fs::copy(daemon.path("disk.raw"), &path)?;
    qmp.call("blockdev-add", json!({"driver": "file", "node-name": name, "filename": path}))?;
    Ok(())
}

fn overlay(daemon: &Daemon, qmp: &mut Qmp, backing: Option<&str>) -> Result<()> {
    let path = daemon.path("over.qcow2");
    let mut create = command::program("qemu-img", "qemu-utils")?;
    command::output(create.args(["create", "-q", "-f", "qcow2", &path, "1M"]))?;
    let file = json!({"driver": "file", "filename": path});
    let image = json!({"driver": "qcow2", "node-name": "over", "file": file, "backing": backing});
    qmp.call("blockdev-add", image).map(drop)
}

/// Starts a client whose write is held up by a mirror that waits to be finalized.
fn held_up(daemon: &Daemon, qmp: &mut Qmp) -> Result<Child> {
    raw_file(daemon, qmp, "t0")?;
    let mirror = json!({"job-id": "j", "device": "f0", "target": "t0", "sync": "full",
        "auto-finalize": false});
    qmp.call("blockdev-mirror", mirror)?;
    reached(qmp, "ready")?;
    qmp.call("job-complete", json!({"id": "j"}))?;
    reached(qmp, "pending")?;
    let mut held = client(daemon, "disk", &["write -P 7 0 4k"])?.spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(held.try_wait()?.is_none(), "nothing held the write up");
    Ok(held)
}

#[test]
fn nobody_waits_for_a_client_that_a_job_holds_up() {
    let cases =
        [("block-export-del", json!({"id": "e0", "mode": "hard"})), ("nbd-server-stop", json!({}))];
    need::test(&[UTILS], || {
        for (verb, arguments) in cases {
            let daemon = Daemon::ferry(&OPTIONS)?;
            let mut qmp = daemon.qmp()?;
            let mut held = held_up(&daemon, &mut qmp)?;
            let refused = qmp.execute("block-export-del", json!({"id": "e0"}))?;
            ensure!(refused.is_err_and(|error| error.desc == "export 'e0' still in use"));
            qmp.call(verb, arguments)?;
            ensure!(exports(&mut qmp)? == json!([]), "{verb} leaves the export");
            let status = time::poll("the client's end", LIMIT, || Ok(held.try_wait()?))?;
            ensure!(!status.success(), "its write was never done");
            qmp.call("job-finalize", json!({"id": "j"}))?;
            reached(&mut qmp, "null")?;
            for file in ["disk.raw", "t0"] {
                let bytes = std::fs::read(daemon.path(file))?;
                ensure!(bytes.iter().all(|byte| *byte == 0), "{verb}: {file} was written to");
            }
        }
        Ok(())
    });
}

#[test]
fn nobody_waits_for_storage_that_does_not_answer() {
    need::test(&[UTILS], || {
        let daemon = Daemon::ferry(&OPTIONS)?;
        let mut qmp = daemon.qmp()?;
        let slow = json!({"driver": "null-co", "node-name": "slow", "size": 1 << 20,
            "latency-ns": 8_000_000_000_u64});
        qmp.call("blockdev-add", slow)?;
        let export = json!({"type": "nbd", "id": "e1", "node-name": "slow", "name": "slow",
            "writable": true});
        qmp.call("block-export-add", export.clone())?;
        let mut reader = client(&daemon, "slow", &["read 0 4k"])?.spawn()?;
        // Long enough for the request to arrive, and short enough for it to be there still.
        std::thread::sleep(Duration::from_secs(2));
        qmp.call("block-export-del", json!({"id": "e1", "mode": "hard"}))?;
        let list = exports(&mut qmp)?;
        ensure!(list[1]["id"] == "e1" && list[1]["shutting-down"] == true, "{list}");
        ensure!(qmp.execute("block-export-del", json!({"id": "e1"}))?.is_err(), "it goes already");
        ensure!(qmp.execute("block-export-add", export)?.is_err(), "its id is free only then");
        qmp.wait_event("the end", 0, LIMIT, |event| event["event"] == "BLOCK_EXPORT_DELETED")?;
        ensure!(exports(&mut qmp)?[1].is_null());
        reader.wait().map(drop).map_err(Into::into)
    });
}

#[test]
fn who_comes_by_name_while_a_disk_is_mirrored_moves_with_it() {
    both(|daemon| {
        let mut qmp = daemon.qmp()?;
        raw_file(daemon, &mut qmp, "t0")?;
        let mirror = json!({"job-id": "j", "device": "f0", "target": "t0", "sync": "full"});
        qmp.call("blockdev-mirror", mirror)?;
        reached(&mut qmp, "ready")?;
        let late = json!({"type": "nbd", "id": "e1", "node-name": "f0", "name": "late",
            "writable": true});
        qmp.call("block-export-add", late)?;
        io(daemon, "late", &["write -P 7 0 64k"])?;
        qmp.call("job-complete", json!({"id": "j"}))?;
        reached(&mut qmp, "null")?;
        let list = exports(&mut qmp)?;
        for export in list.as_array().into_iter().flatten() {
            ensure!(export["node-name"] == "t0", "{list}");
        }
        io(daemon, "late", &["read -P 7 0 64k", "write -P 8 0 4k"])?;
        io(daemon, "disk", &["read -P 8 0 4k"])?;
        ensure!(std::fs::read(daemon.path("disk.raw"))?[0] == 7, "the old disk is left alone");
        Ok(())
    });
}

#[test]
fn a_mirror_of_the_topmost_layer_gets_the_layers_below_before_it_takes_over() {
    both(|daemon| {
        let mut qmp = daemon.qmp()?;
        io(daemon, "disk", &["write -P 1 0 1M"])?;
        raw_file(daemon, &mut qmp, "base")?;
        overlay(daemon, &mut qmp, None)?;
        let mirror = json!({"job-id": "j", "device": "f0", "target": "over", "sync": "none"});
        qmp.call("blockdev-mirror", mirror)?;
        reached(&mut qmp, "ready")?;
        // What the guest makes zero must not show what lies below later.
        io(daemon, "disk", &["write -P 7 0 64k", "write -z 64k 64k", "write -P 7 256k 4k"])?;
        qmp.call("blockdev-snapshot", json!({"node": "base", "overlay": "over"}))?;
        io(daemon, "disk", &["write -P 8 128k 4k"])?;
        qmp.call("job-complete", json!({"id": "j"}))?;
        reached(&mut qmp, "null")?;
        ensure!(exports(&mut qmp)?[0]["node-name"] == "over");
        let expected = [
            "read -P 7 0 64k",
            "read -P 0 64k 64k",
            "read -P 8 128k 4k",
            "read -P 1 132k 124k",
            "read -P 7 256k 4k",
            "read -P 1 260k 764k",
        ];
        io(daemon, "disk", &expected)?;
        let again = qmp.execute("blockdev-snapshot", json!({"node": "f0", "overlay": "over"}))?;
        ensure!(again.is_err_and(|error| error.desc == "The overlay is already in use"));
        Ok(())
    });
}

#[test]
fn a_layer_may_be_written_while_nobody_above_minds() {
    both(|daemon| {
        let mut qmp = daemon.qmp()?;
        raw_file(daemon, &mut qmp, "base")?;
        overlay(daemon, &mut qmp, Some("base"))?;
        let writer = json!({"type": "nbd", "id": "e1", "node-name": "base", "name": "base",
            "writable": true});
        qmp.call("block-export-add", writer)?;
        io(daemon, "base", &["write -P 5 0 64k"])?;
        let above = json!({"type": "nbd", "id": "e2", "node-name": "over", "name": "over",
            "writable": true});
        qmp.call("block-export-add", above)?;
        io(daemon, "over", &["read -P 5 0 64k", "write -P 6 0 4k", "read -P 5 4k 60k"])?;
        io(daemon, "base", &["read -P 5 0 64k"])
    });
}

/// The disk grows where it is kept, then here, below a filter; requests wait for it and go on.
#[test]
fn a_disk_that_grew_where_it_is_kept_grows_here() {
    need::test(&[DAEMON, UTILS], || {
        for (kept, must_go) in [(Daemon::ferry(&OPTIONS)?, false), (Daemon::qemu(&OPTIONS)?, true)]
        {
            // Whoever answers its monitor has bound the sockets of its command line.
            let mut far = kept.qmp()?;
            let there = format!("server.type=unix,server.path={},export=disk", kept.path("nbd"));
            let here = Daemon::ferry(&[
                &format!("--blockdev=driver=nbd,node-name=n0,reconnect-delay=20,{there}"),
                "--object=throttle-group,id=g0",
                "--blockdev=driver=throttle,node-name=t0,throttle-group=g0,file=n0",
                "--blockdev=driver=raw,node-name=f0,file=t0",
                "--nbd-server=addr.type=unix,addr.path=DIR/nbd",
                "--export=nbd,id=e0,node-name=f0,name=disk,writable=on",
            ])?;
            let mut near = here.qmp()?;
            let bigger = json!({"node-name": "f0", "size": 4 << 20});
            let early = near.execute("block_resize", bigger.clone())?;
            let text = format!("{early:?}");
            ensure!(text.contains("has 1048576 bytes, says its server"), "{text}");
            if must_go {
                // It refuses to resize what it exports.
                far.call("block-export-del", json!({"id": "e0", "mode": "hard"}))?;
                far.wait_event("the end", 0, LIMIT, |event| {
                    event["event"] == "BLOCK_EXPORT_DELETED"
                })?;
            }
            far.call("block_resize", bigger.clone())?;
            if must_go {
                let export = json!({"type": "nbd", "id": "e0", "node-name": "f0", "name": "disk",
                    "writable": true});
                far.call("block-export-add", export)?;
            }
            io(&here, "disk", &["write -P 1 0 64k"])?;
            near.call("block_resize", bigger)?;
            io(&here, "disk", &["write -P 2 3M 64k", "read -P 2 3M 64k", "read -P 1 0 64k"])?;
            io(&kept, "disk", &["read -P 2 3M 64k", "read -P 1 0 64k"])?;
        }
        Ok(())
    });
}

#[test]
fn who_connects_while_the_daemon_starts_finds_every_export() {
    need::test(&[], || {
        const EXPORTS: usize = 300;
        let mut options = OPTIONS[..2].to_vec();
        let exports: Vec<String> = (0..EXPORTS)
            .map(|number| format!("--export=nbd,id=e{number},node-name=f0,name={number:04}"))
            .collect();
        options.extend(exports.iter().map(String::as_str));
        let daemon = Daemon::ferry(&options)?;
        let mut client = time::poll("the NBD server", LIMIT, || {
            Ok(UnixStream::connect(daemon.path("nbd")).ok())
        })?;
        // NBD_FLAG_C_FIXED_NEWSTYLE, then NBD_OPT_GO for the last export, with no information requests.
        client.write_all(&1_u32.to_be_bytes())?;
        client.write_all(b"IHAVEOPT")?;
        client.write_all(&[7, 10, 4].map(u32::to_be_bytes).concat())?;
        client.write_all(format!("{:04}\0\0", EXPORTS - 1).as_bytes())?;
        let mut said = [0; 18 + 8 + 8];
        client.set_read_timeout(Some(LIMIT))?;
        client.read_exact(&mut said)?;
        // NBD_REP_INFO, not an error.
        ensure!(said[18 + 12..] == [0, 0, 0, 3], "{said:?}");
        Ok(())
    });
}

/// What `command` is refused with.
fn refused(qmp: &mut Qmp, command: &str, arguments: Value) -> Result<String> {
    match qmp.execute(command, arguments)? {
        Ok(_) => bail!("{command} was not refused"),
        Err(error) => Ok(format!("{}: {}", error.class, error.desc)),
    }
}

#[test]
fn who_is_connected_keeps_what_it_was_told() {
    both(|daemon| {
        let mut qmp = daemon.qmp()?;
        let conflict = |node| {
            format!(
                "GenericError: Permission conflict on node '{node}': permissions 'resize' are both required by"
            )
        };
        let shorter = json!({"node-name": "f0", "size": 65536});
        let said = refused(&mut qmp, "block_resize", shorter)?;
        ensure!(said.starts_with(&conflict("f0")), "{said}");
        io(daemon, "disk", &["write -P 7 1020k 4k"])?;

        overlay(daemon, &mut qmp, None)?;
        let name = qmp.call("query-named-block-nodes", json!({"flat": true}))?;
        let file = name.as_array().into_iter().flatten().find(|node| {
            node["drv"] == "file" && node["file"] == daemon.path("over.qcow2").as_str()
        });
        let file = file.and_then(|node| node["node-name"].as_str()).unwrap_or_default().to_owned();
        let torn = json!({"type": "nbd", "id": "e1", "node-name": file, "name": "torn"});
        let said = refused(&mut qmp, "block-export-add", torn)?;
        ensure!(said.starts_with(&conflict(&file)), "{said}");
        Ok(())
    });
}

#[test]
fn an_image_that_a_job_works_on_keeps_the_name_of_what_is_below() {
    both(|daemon| {
        let mut qmp = daemon.qmp()?;
        raw_file(daemon, &mut qmp, "base")?;
        raw_file(daemon, &mut qmp, "t0")?;
        overlay(daemon, &mut qmp, Some("base"))?;
        let change = json!({"device": "over", "image-node-name": "over", "backing-file": "base"});
        qmp.call("change-backing-file", change.clone())?;
        let mirror = json!({"job-id": "j", "device": "over", "target": "t0", "sync": "full"});
        qmp.call("blockdev-mirror", mirror)?;
        reached(&mut qmp, "ready")?;
        let said = refused(&mut qmp, "change-backing-file", change)?;
        ensure!(said == "GenericError: Need a root block node", "{said}");
        Ok(())
    });
}
