//! The `qemu.qmp` Python client, unchanged, drives our server: a whole mirror and a whole migration.
//!
//! Where python3 or its `qemu.qmp` package is missing the test says so and passes.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod common;

use std::process::Command;

use common::FakeServer;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/drive.py");

#[test]
fn the_python_client_drives_a_mirror_and_a_migration() {
    let package = Command::new("python3").args(["-c", "import qemu.qmp"]).output();
    if !package.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: python3 with its package qemu.qmp is not installed");
        return;
    }
    let server = FakeServer::start();
    let run = Command::new("python3").arg(SCRIPT).arg(server.path()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{out}\n{err}");
    let expected = "greeted\nrefused CommandNotFound\nmirror created running ready waiting pending \
                    concluded null\nmigrated setup active completed\nquit\n";
    assert_eq!(out, expected, "{err}");
}
