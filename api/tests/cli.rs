//! The subcommands against a server that pretends: what a person reads, and what is left behind.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod common;

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;
use common::{FakeServer, machine::DISK_BYTES};
use ferry_api::{
    cli::{CliError, ClientCommand, Console, Outcome, run_on},
    client::QmpClient,
};
use serde_json::json;

#[derive(Parser)]
struct Ferry {
    #[command(subcommand)]
    command: ClientCommand,
}

/// Runs `ferry ARGS --qmp SOCKET`; after `calm` looks, Ctrl-C counts as pressed.
fn ferry_until(
    server: &FakeServer,
    args: &[&str],
    calm: usize,
) -> (Result<Outcome, CliError>, String) {
    let socket = server.path().to_str().unwrap();
    let line = ["ferry"].into_iter().chain(args.iter().copied()).chain(["--qmp", socket]);
    let command = Ferry::try_parse_from(line).unwrap().command;
    let mut out = Vec::new();
    let looks = Cell::new(0);
    let interrupts = || {
        looks.set(looks.get() + 1);
        usize::from(looks.get() > calm)
    };
    let result = run_on(command, &mut Console::new(&mut out, &interrupts));
    (result, String::from_utf8(out).unwrap())
}

fn ferry(server: &FakeServer, args: &[&str]) -> (Result<Outcome, CliError>, String) {
    ferry_until(server, args, usize::MAX)
}

/// The text of the error, which must be there.
fn error(result: Result<Outcome, CliError>) -> String {
    result.unwrap_err().to_string()
}

fn nodes(server: &FakeServer) -> usize {
    let mut client = QmpClient::connect(server.path(), Duration::from_secs(10)).unwrap();
    client.execute("query-named-block-nodes", json!({})).unwrap().as_array().unwrap().len()
}

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Files { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.dir.path()).unwrap().join(name)
    }
}

fn mirror<'a>(target: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["mirror", "--device", "disk0", "--target", target.to_str().unwrap()];
    args.extend(more);
    args
}

#[test]
fn a_migration_ends_with_a_summary() {
    let server = FakeServer::start();
    let (result, text) = ferry(
        &server,
        &["migrate", "tcp:there:1", "--downtime-limit", "50", "--max-bandwidth", "1G"],
    );
    assert_eq!(result.unwrap(), Outcome::Done);
    assert!(text.starts_with("migrated: the guest runs at tcp:there:1\n"), "{text}");
    for line in ["  downtime      3 ms\n", "  guest memory  64.00 MiB\n", "  rounds        2\n"] {
        assert!(text.contains(line), "{line:?} not in {text}");
    }
    assert!(text.contains("end the process it left with: ferry quit --qmp "), "{text}");
    let mut client = QmpClient::connect(server.path(), Duration::from_secs(10)).unwrap();
    let parameters = client.execute("query-migrate-parameters", json!({})).unwrap();
    assert_eq!(parameters, json!({"max-bandwidth": 1_u64 << 30, "downtime-limit": 50}));
}

#[test]
fn a_failed_migration_says_why_and_where_the_guest_is() {
    let server = FakeServer::start();
    ferry(&server, &["cont"]).0.unwrap();
    let text = error(ferry(&server, &["migrate", "tcp:fail:1"]).0);
    assert!(
        text.starts_with("the migration to tcp:fail:1 failed: Unable to write to socket"),
        "{text}"
    );
    assert!(text.contains("the guest goes on running here"), "{text}");
}

#[test]
fn ctrl_c_cancels_a_migration() {
    let server = FakeServer::start();
    ferry(&server, &["cont"]).0.unwrap();
    let (result, text) = ferry_until(&server, &["migrate", "tcp:endless:1"], 2);
    assert_eq!(result.unwrap(), Outcome::Cancelled);
    assert!(text.ends_with("is off; the guest goes on running here\n"), "{text}");
}

#[test]
fn a_bad_migration_address_is_named() {
    let server = FakeServer::start();
    let text = error(ferry(&server, &["migrate", "nonsense"]).0);
    assert_eq!(text, "migrate: Parameter 'uri' expects a valid migration protocol");
}

#[test]
fn a_mirror_creates_its_target_and_pivots() {
    let (server, files) = (FakeServer::start(), Files::new());
    let target = files.path("copy.raw");
    let (result, text) = ferry(&server, &mirror(&target, &["--create"]));
    assert_eq!(result.unwrap(), Outcome::Done);
    let shown = target.display();
    assert!(text.contains(&format!("disk0 is on {shown} now (node mirror-target-0)")), "{text}");
    assert!(text.contains("no longer on /images/disk0-file"), "{text}");
    assert_eq!(fs::metadata(&target).unwrap().len(), u64::try_from(DISK_BYTES).unwrap());
    assert_eq!(nodes(&server), 1);
}

#[test]
fn a_kept_copy_is_closed() {
    let (server, files) = (FakeServer::start(), Files::new());
    let target = files.path("copy.raw");
    let args = ["--create", "--finish", "keep", "--copy-mode", "write-blocking", "--speed", "1G"];
    let (result, text) = ferry(&server, &mirror(&target, &args));
    assert_eq!(result.unwrap(), Outcome::Done);
    let shown = target.display();
    assert!(text.contains(&format!("{shown} is a consistent copy of disk0")), "{text}");
    assert_eq!(nodes(&server), 0);
    assert!(target.exists());
}

#[test]
fn a_manual_mirror_stays_and_can_be_seen_and_finished() {
    let (server, files) = (FakeServer::start(), Files::new());
    let target = files.path("copy.raw");
    let (result, text) = ferry(&server, &mirror(&target, &["--create", "--finish", "manual"]));
    assert_eq!(result.unwrap(), Outcome::Done);
    assert!(text.contains("kept equal by job mirror-disk0"), "{text}");
    let (result, text) = ferry(&server, &["jobs"]);
    result.unwrap();
    let rows: Vec<&str> = text.lines().collect();
    assert!(rows[0].starts_with("JOB           TYPE    STATUS  DONE"), "{text}");
    assert!(rows[1].starts_with("mirror-disk0  mirror  ready   64.00 MiB of 64.00 MiB"), "{text}");
    let complete = ["qmp", "block-job-complete", r#"{"device":"mirror-disk0"}"#];
    let (result, text) = ferry(&server, &complete);
    result.unwrap();
    assert_eq!(text, "{}\n");
    assert_eq!(ferry(&server, &["jobs"]).1, "no jobs\n");
}

#[test]
fn a_failed_mirror_leaves_nothing_behind() {
    let (server, files) = (FakeServer::start(), Files::new());
    let target = files.path("fail.raw");
    let text = error(ferry(&server, &mirror(&target, &["--create"])).0);
    let shown = target.display();
    assert!(
        text.contains(&format!("mirroring disk0 to {shown} failed: No space left on device"))
            && text.contains("the guest goes on with /images/disk0-file"),
        "{text}"
    );
    assert!(!target.exists());
    assert_eq!(nodes(&server), 0);
}

#[test]
fn ctrl_c_cancels_a_mirror_and_leaves_nothing_behind() {
    let (server, files) = (FakeServer::start(), Files::new());
    let target = files.path("copy.raw");
    let args = mirror(&target, &["--create", "--speed", "1M"]);
    let (result, text) = ferry_until(&server, &args, 1);
    assert_eq!(result.unwrap(), Outcome::Cancelled);
    assert!(text.contains("cancelled: disk0 stays on /images/disk0-file"), "{text}");
    assert!(!target.exists());
    assert_eq!((nodes(&server), ferry(&server, &["jobs"]).1.as_str()), (0, "no jobs\n"));
}

#[test]
fn a_mirror_says_what_is_wrong_with_its_target_or_disk() {
    let (server, files) = (FakeServer::start(), Files::new());
    let missing = files.path("missing.raw");
    let text = error(ferry(&server, &mirror(&missing, &[])).0);
    assert!(text.contains("missing.raw") && text.contains("--create makes a new one"), "{text}");

    let small = files.path("small.raw");
    fs::write(&small, "x").unwrap();
    let text = error(ferry(&server, &mirror(&small, &[])).0);
    assert!(text.contains("has 1 bytes but disk 'disk0' has 67108864"), "{text}");
    let text = error(ferry(&server, &mirror(&small, &["--create"])).0);
    assert!(text.contains("cannot create") && text.contains("leave out --create"), "{text}");
    assert_eq!(fs::read(&small).unwrap(), b"x");

    let args = ["mirror", "--device", "nosuch", "--target", "x"];
    let text = error(ferry(&server, &args).0);
    assert_eq!(text, "the guest has no disk 'nosuch'; it has: disk0");
    assert_eq!(nodes(&server), 0);
}

#[test]
fn status_tells_the_run_state_and_the_disks() {
    let server = FakeServer::start();
    ferry(&server, &["cont"]).0.unwrap();
    let (result, text) = ferry(&server, &["status"]);
    result.unwrap();
    assert!(text.lines().next().unwrap().ends_with(": running"), "{text}");
    assert!(text.contains("  migration  none\n"), "{text}");
    assert!(text.contains("disk0  64.00 MiB  read-write  ok   /images/disk0-file"), "{text}");
}

#[test]
fn simple_commands_reach_the_guest() {
    let server = FakeServer::start();
    let mut client = QmpClient::connect(server.path(), Duration::from_secs(10)).unwrap();
    for command in ["cont", "stop", "powerdown", "reset", "quit"] {
        ferry(&server, &[command]).0.unwrap();
    }
    let mut names = Vec::new();
    while let Some(event) = client.next_event(Duration::from_secs(10)).unwrap() {
        names.push(event.name.clone());
        if event.name == "SHUTDOWN" {
            break;
        }
    }
    assert_eq!(names, ["RESUME", "STOP", "POWERDOWN", "RESET", "SHUTDOWN"]);
}

#[test]
fn qmp_arguments_must_be_an_object() {
    let server = FakeServer::start();
    let text = error(ferry(&server, &["qmp", "stop", "[1]"]).0);
    assert_eq!(text, "the arguments [1] are no JSON object");
    let text = error(ferry(&server, &["qmp", "stop", "device=x"]).0);
    assert!(text.contains("write them like '{\"device\":\"disk0\"}'"), "{text}");
    let text = error(ferry(&server, &["qmp", "nosuch"]).0);
    assert_eq!(text, "nosuch: The command nosuch has not been found");
}

#[test]
fn a_missing_socket_is_named_with_what_to_do() {
    let mut out = Vec::new();
    let line = ["ferry", "status", "--qmp", "/nowhere/q.sock"];
    let command = Ferry::try_parse_from(line).unwrap().command;
    let text = error(run_on(command, &mut Console::new(&mut out, &|| 0)));
    assert_eq!(
        text,
        "cannot connect to the QMP socket /nowhere/q.sock: No such file or directory (os error 2); \
         is a guest running with `--qmp /nowhere/q.sock`?"
    );
}
