//! Clients that we did not write drive ferry: the `qemu.qmp` package for Python does a whole mirror and a whole
//! migration, and works with the disks of `ferry storage`.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use ferry_tests::daemon::Daemon;
use ferry_tests::lab::{self, Lab};
use ferry_tests::need::{self, Need};
use ferry_tests::{artifact, command};

const PYTHON: Need = Need::Program("python3", "python3");
const NEEDS: &[Need] = &[Need::Kvm, PYTHON];

/// Installs the package once, into a folder of our own.
fn python_path() -> Result<std::path::PathBuf> {
    artifact::cached("qemu-qmp", "qemu.qmp", |folder| {
        let mut pip = command::program("python3", "python3")?;
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]);
        command::output(pip.arg(folder).arg("qemu.qmp")).map(drop)
    })
}

/// One of our scripts, to be given its arguments.
fn python(script: &str) -> Result<Command> {
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", python_path().context("the qemu.qmp package")?);
    python.arg(artifact::workspace().join("tests/python").join(script));
    Ok(python)
}

#[test]
fn qemus_python_client_mirrors_and_migrates() {
    need::test(NEEDS, || {
        let lab = Lab::new()?;
        let words = "workload=verify,dirty init=zero mem_mib=32 dirty_mib_s=50 disk_iops=500";
        let (spec, _) = lab.with_disk(words, 16)?;
        let copy = lab.image("copy.raw", 16)?;
        let source = lab.run(&spec)?;
        let mut moved = spec.clone();
        moved.disks[0].path.clone_from(&copy);
        let (target, uri) = lab.destination(&moved, "m.sock")?;

        let mut python = python("mirror_and_migrate.py")?;
        python.arg(source.socket()).arg(target.socket()).arg(&copy).arg(&uri);
        let said = command::output(&mut python)?;
        ensure!(said.contains("mirrored") && said.contains("migrated"), "{said}");

        lab::finish(&target)?;
        let verdict = lab::verdict(&target)?;
        drop((source, target));
        lab::holds(&copy, verdict, 4096)
    });
}

#[test]
fn qemus_python_client_works_with_disks_alone() {
    need::test(&[PYTHON], || {
        let mut daemon = Daemon::ferry(&[])?;
        let mut python = python("storage.py")?;
        python.arg(daemon.path("qmp")).arg(daemon.path("").trim_end_matches('/'));
        let said = command::output(&mut python)?;
        ensure!(said.contains("snapshots taken") && said.contains("mirrored"), "{said}");
        ensure!(daemon.ended()? == 0, "quit ends it in order");
        Ok(())
    });
}
