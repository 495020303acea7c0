//! `ferry storage` beside `qemu-storage-daemon`: the same command line, the same commands, the same answers.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferry_tests::daemon::Daemon;
use ferry_tests::need::{self, Need};
use ferry_tests::{binary, command, time};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);
const DAEMON: Need = Need::Program("qemu-storage-daemon", "qemu-system-common");

/// Leaves out what differs from run to run or is not told by both, and orders what has no order.
fn normal(value: Value, dir: &str) -> Value {
    const LEFT_OUT: [&str; 3] = ["timestamp", "file", "filename"];
    // How much an image takes up, and when something happened.
    const VARY: [&str; 5] =
        ["actual-size", "date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec"];
    match value {
        // Nodes that the user gave no name have any.
        Value::String(text) if text.starts_with("#block") => json!("#block"),
        Value::String(text) => json!(text.replace(dir, "DIR")),
        Value::Array(list) => {
            let mut list: Vec<Value> = list.into_iter().map(|value| normal(value, dir)).collect();
            list.sort_by_key(Value::to_string);
            Value::Array(list)
        }
        Value::Object(members) => {
            // How long the file of an image is depends on who wrote it.
            let is_file = members.get("format").is_some_and(|format| format == "file");
            let kept = members.into_iter().filter(|(name, _)| {
                !LEFT_OUT.contains(&name.as_str()) && (!is_file || name != "virtual-size")
            });
            let told = |name: &str, value| match value {
                Value::Number(_) if VARY.contains(&name) => json!("a number"),
                value => normal(value, dir),
            };
            kept.map(|(name, value)| (name.clone(), told(&name, value))).collect()
        }
        other => other,
    }
}

/// What a daemon answers to each line of the script, then its events.
fn transcript(daemon: &mut Daemon, script: &str) -> Result<Vec<String>> {
    let mut qmp = daemon.qmp()?;
    let dir = daemon.path("").trim_end_matches('/').to_owned();
    let mut said = Vec::new();
    for line in script.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (class_only, text) = match line.strip_prefix("~ ") {
            Some(text) => (true, text),
            None => (false, line),
        };
        let (name, arguments) = text.split_once(' ').context("a line without arguments")?;
        let arguments = serde_json::from_str(&arguments.replace("DIR", &dir))?;
        let executed = qmp.execute(name, arguments);
        let answer = match executed.with_context(|| format!("no answer to {text}"))? {
            Ok(answer) => normal(answer, &dir).to_string(),
            Err(refused) if class_only => refused.class,
            Err(refused) => format!("{}: {}", refused.class, refused.desc.replace(&dir, "DIR")),
        };
        said.push(format!("{line}\n    {answer}"));
        if name == "blockdev-create" {
            // It goes on by itself: what comes next needs its result.
            qmp.wait_event("the job's end", 0, LIMIT, |event| {
                let data = &event["data"];
                data["status"] == "concluded"
                    && line.contains(&format!("\"{}\"", data["id"].as_str().unwrap_or("?")))
            })?;
        }
    }
    let events = qmp.events().iter().map(|event| normal(event.clone(), &dir).to_string());
    said.extend(events);
    ensure!(daemon.ended()? == 0, "ended badly");
    Ok(said)
}

#[test]
fn the_same_script_gets_the_same_answers() {
    need::test(&[DAEMON], || {
        let script = include_str!("../scripts/storage.txt");
        let theirs = transcript(&mut Daemon::qemu(&[])?, script).context("QEMU")?;
        let ours = transcript(&mut Daemon::ferry(&[])?, script).context("ferry")?;
        let differences: Vec<String> = theirs
            .iter()
            .zip(&ours)
            .filter(|(theirs, ours)| theirs != ours)
            .map(|(theirs, ours)| format!("QEMU: {theirs}\nours: {ours}"))
            .collect();
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        ensure!(theirs.len() == ours.len(), "other events: {theirs:#?}\n{ours:#?}");
        Ok(())
    });
}

#[test]
fn what_the_command_line_names_is_served_until_a_signal() {
    need::test(&[Need::Program("qemu-io", "qemu-utils")], || {
        let mut daemon = Daemon::ferry(&[
            "--blockdev=driver=file,node-name=f0,filename=DIR/disk.raw",
            r#"--blockdev={"driver": "raw", "node-name": "d0", "file": "f0"}"#,
            "--nbd-server=addr.type=unix,addr.path=DIR/nbd",
            "--export=nbd,id=e0,node-name=d0,name=disk,writable=on",
            "--pidfile=DIR/pid",
        ])?;
        let mut qmp = daemon.qmp()?;
        let number = std::fs::read_to_string(daemon.path("pid"))?;
        ensure!(number.trim() == daemon.id().to_string(), "{number}");
        let uri = format!("nbd+unix:///disk?socket={}", daemon.path("nbd"));
        let mut io = command::program("qemu-io", "qemu-utils")?;
        command::output(io.args(["-f", "raw", "-c", "write -P 7 4096 4096"]).arg(&uri))?;
        let mut kill = Command::new("kill");
        command::output(kill.arg("-TERM").arg(daemon.id().to_string()))?;
        ensure!(daemon.ended()? == 0, "a signal ends it in order");
        ensure!(std::fs::read(daemon.path("disk.raw"))?[4096..8192] == [7; 4096]);
        ensure!(
            !Path::new(&daemon.path("pid")).exists() && !Path::new(&daemon.path("qmp")).exists()
        );
        let end = qmp.wait_event("BLOCK_EXPORT_DELETED", 0, LIMIT, |event| {
            event["event"] == "BLOCK_EXPORT_DELETED"
        });
        end.map(drop)
    });
}

#[test]
fn an_export_is_as_slow_as_it_is_told_to_be() {
    need::test(&[Need::Program("qemu-io", "qemu-utils")], || {
        let daemon = Daemon::ferry(&[
            "--blockdev=driver=file,node-name=f0,filename=DIR/disk.raw",
            "--nbd-server=addr.type=unix,addr.path=DIR/nbd",
            "--export=nbd,id=e0,node-name=f0,name=disk,writable=on",
        ])?;
        let mut qmp = daemon.qmp()?;
        let uri = format!("nbd+unix:///disk?socket={}", daemon.path("nbd"));
        // Four times 64 KiB: the last waits until the three before have gone.
        let write = || -> Result<Duration> {
            let mut io = command::program("qemu-io", "qemu-utils")?;
            io.args(["-f", "raw"]);
            for at in ["0", "64k", "128k", "192k"] {
                io.args(["-c", &format!("write {at} 64k")]);
            }
            let begun = time::now();
            command::output(io.arg(&uri))?;
            Ok(begun.elapsed())
        };
        let mut limit = |bps_wr: u64| {
            let limits = json!({"id": "e0", "bps": 0, "bps_rd": 0, "bps_wr": bps_wr, "iops": 0,
                "iops_rd": 0, "iops_wr": 0});
            qmp.call("block_set_io_throttle", limits)
        };
        limit(96 << 10)?;
        let slow = write()?;
        ensure!(slow > Duration::from_millis(1700), "192 KiB at 96 KiB/s took {slow:?}");
        limit(0)?;
        write().map(drop)
    });
}

#[test]
fn an_overlay_names_the_window_of_a_file_that_it_lies_over() {
    need::test(&[Need::Program("qemu-io", "qemu-utils")], || {
        let mut daemon = Daemon::ferry(&[
            "--blockdev=driver=file,node-name=f0,filename=DIR/disk.raw",
            "--blockdev=driver=raw,node-name=r0,file=f0,offset=65536,size=131072",
        ])?;
        let overlay = daemon.path("o.qcow2");
        let snapshot =
            json!({"node-name": "r0", "snapshot-file": overlay, "snapshot-node-name": "o"});
        let mut qmp = daemon.qmp()?;
        // Only now: while it is written, the file has another length.
        let bytes: Vec<u8> = (0..=u8::MAX).flat_map(|page| [page; 4096]).collect();
        std::fs::write(daemon.path("disk.raw"), bytes)?;
        qmp.call("blockdev-snapshot-sync", snapshot)?;
        qmp.call("quit", json!({}))?;
        ensure!(daemon.ended()? == 0);
        let mut io = command::program("qemu-io", "qemu-utils")?;
        io.args([
            "-f",
            "qcow2",
            "-c",
            "length",
            "-c",
            "read -P 16 0 4k",
            "-c",
            "read -P 47 124k 4k",
        ]);
        command::output(io.arg(&overlay)).map(drop)
    });
}

/// A job that waits to be finalized holds the requests to its disk up.
#[test]
fn quit_does_not_wait_for_a_client_that_a_job_holds_up() {
    need::test(&[Need::Program("qemu-io", "qemu-utils")], || {
        let mut daemon = Daemon::ferry(&[
            "--blockdev=driver=file,node-name=f0,filename=DIR/disk.raw",
            "--nbd-server=addr.type=unix,addr.path=DIR/nbd",
            "--export=nbd,id=e0,node-name=f0,name=disk,writable=on",
        ])?;
        let mut qmp = daemon.qmp()?;
        let size = std::fs::metadata(daemon.path("disk.raw"))?.len();
        qmp.call("blockdev-add", json!({"driver": "null-co", "node-name": "t1", "size": size}))?;
        let mirror = json!({"job-id": "j", "device": "f0", "target": "t1", "sync": "full",
            "auto-finalize": false});
        qmp.call("blockdev-mirror", mirror)?;
        let mut reached = |status: &str| {
            qmp.wait_event(status, 0, LIMIT, |event| event["data"]["status"] == status)
        };
        reached("ready")?;
        daemon.qmp()?.call("job-complete", json!({"id": "j"}))?;
        reached("pending")?;
        let mut io = command::program("qemu-io", "qemu-utils")?;
        io.args(["-f", "raw", "-c", "write 0 4k"]);
        io.arg(format!("nbd+unix:///disk?socket={}", daemon.path("nbd")));
        let mut io = io.spawn()?;
        std::thread::sleep(Duration::from_millis(500));
        ensure!(io.try_wait()?.is_none(), "nothing held the write up");
        daemon.qmp()?.call("quit", json!({}))?;
        ensure!(daemon.ended()? == 0);
        io.wait().map(drop).map_err(Into::into)
    });
}

#[test]
fn a_daemon_in_the_background_is_ready_when_its_starter_ends() {
    need::test(&[], || {
        let mut daemon = Daemon::ferry(&["--daemonize", "--pidfile=DIR/pid"])?;
        ensure!(daemon.ended()? == 0);
        let number = std::fs::read_to_string(daemon.path("pid"))?;
        ensure!(number.trim() != daemon.id().to_string());
        daemon.qmp()?.call("quit", json!({}))?;
        let path = daemon.path("pid");
        time::poll("the end", LIMIT, || Ok((!Path::new(&path).exists()).then_some(())))
    });
}

/// More requests than are queued at a time; each has its number as `id`.
fn many_requests() -> String {
    let ask = |id| json!({ "execute": "query-chardev", "id": id }).to_string();
    let asked: Vec<_> = (0..40).map(ask).collect();
    format!("{{'execute':'qmp_capabilities'}}{}", asked.join("\n"))
}

/// Checks that every one of [`many_requests`] was answered, in order, and that a device is `filename`.
fn all_answered(answers: &str, filename: &str) -> Result<()> {
    let answers: Vec<Value> =
        answers.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let ids: Vec<_> = answers.iter().filter_map(|answer| answer["id"].as_u64()).collect();
    ensure!(ids == (0..40).collect::<Vec<_>>(), "{answers:?}");
    let last = answers.last().context("no answer")?;
    let device = json!({ "label": "m", "filename": filename, "frontend-open": true });
    ensure!(last["return"].as_array().is_some_and(|list| list.contains(&device)), "{last}");
    Ok(())
}

#[test]
fn a_client_that_only_stopped_sending_gets_all_answers() {
    need::test(&[], || {
        let daemon = Daemon::ferry(&["--chardev=socket,id=m,path=DIR/m,server=on", "--monitor=m"])?;
        drop(daemon.qmp()?);
        let mut client = UnixStream::connect(daemon.path("m"))?;
        client.set_read_timeout(Some(LIMIT))?;
        client.write_all(many_requests().as_bytes())?;
        client.shutdown(Shutdown::Write)?;
        let mut answers = String::new();
        client.read_to_string(&mut answers)?;
        all_answered(&answers, &format!("unix:{},server=on", daemon.path("m")))
    });
}

#[test]
fn a_client_may_be_the_one_who_listens() {
    need::test(&[], || {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("m").display().to_string();
        let chardev = format!("--chardev=socket,id=m,path={path}");
        let refused =
            Command::new(binary::ferry()?).args(["storage", &chardev, "--monitor=m"]).output()?;
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1) && text.contains("Failed to connect"), "{text}");

        let listener = UnixListener::bind(&path)?;
        let daemon = Daemon::ferry(&[&chardev, "--monitor=m"])?;
        let (mut client, _) = listener.accept()?;
        client.set_read_timeout(Some(LIMIT))?;
        client.write_all(many_requests().as_bytes())?;
        client.shutdown(Shutdown::Write)?;
        let mut answers = String::new();
        client.read_to_string(&mut answers)?;
        // It goes on without the client.
        drop(daemon.qmp()?);
        all_answered(&answers, &format!("unix:{path}"))
    });
}

#[test]
fn the_client_may_be_whoever_started_the_daemon() {
    need::test(&[], || {
        let mut ferry = Command::new(binary::ferry()?);
        ferry.args(["storage", "--chardev=stdio,id=m", "--monitor=m"]);
        let mut child = ferry.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().context("standard input is piped")?;
        write!(input, "{}{{'execute':'quit'}}", many_requests())?;
        drop(input);
        let output = child.wait_with_output()?;
        ensure!(output.status.code() == Some(0), "{:?}", output.status);
        let answers = String::from_utf8(output.stdout)?;
        let (quit, others) = (answers.lines().last(), answers.lines().count() - 1);
        ensure!(quit == Some(r#"{"return": {}}"#), "{answers}");
        let others: Vec<_> = answers.lines().take(others).collect();
        all_answered(&others.join("\n"), "stdio")
    });
}

#[test]
fn what_cannot_be_served_is_said_in_one_line() {
    need::test(&[], || {
        let refused = |options: &[&str]| -> Result<(i32, String)> {
            let output = Command::new(binary::ferry()?).arg("storage").args(options).output()?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            if text.lines().count() != 1 {
                bail!("{text}");
            }
            Ok((output.status.code().unwrap_or(-1), text))
        };
        let (status, text) = refused(&["--blockdev", "driver=raw,node-name=x"])?;
        ensure!(status == 2 && text.contains("Parameter 'file' is missing"), "{status} {text}");
        let (status, text) = refused(&["--blockdev", "file,node-name=x,filename=/nosuch/x"])?;
        ensure!(status == 1 && text.contains("/nosuch/x"), "{status} {text}");
        let (status, text) = refused(&["--export", "nbd,id=e,node-name=x"])?;
        ensure!(status == 1 && text.contains("NBD server not running"), "{status} {text}");
        let (status, text) = refused(&["--daemonize", "--export", "nbd,id=e,node-name=x"])?;
        ensure!(status == 1, "{status} {text}");
        Ok(())
    });
}
