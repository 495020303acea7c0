//! Debian packages that a task needs: installed when we are root, named otherwise.

use std::process::Command;

use anyhow::{Result, bail};
use ferry_tests::command;

/// Programs and the packages that have them.
pub(crate) const LINUX: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("mke2fs", "e2fsprogs"),
    ("xz", "xz-utils"),
];
/// What else the tests use.
pub(crate) const PEERS: [(&str, &str); 4] = [
    ("qemu-img", "qemu-utils"),
    ("nbdkit", "nbdkit"),
    ("nbdcopy", "libnbd-bin"),
    ("python3", "python3"),
];
/// What else the measurements use.
pub(crate) const MEASURE: [(&str, &str); 5] = [
    ("fio", "fio"),
    ("qemu-img", "qemu-utils"),
    ("qemu-storage-daemon", "qemu-system-x86"),
    ("nbdkit", "nbdkit"),
    ("nbdcopy", "libnbd-bin"),
];

/// Sees to it that the programs are there.
///
/// # Errors
///
/// When one is missing and cannot be installed; the message is the command to run.
pub(crate) fn ensure(programs: &[(&str, &'static str)]) -> Result<()> {
    let missing: Vec<_> = programs
        .iter()
        .filter(|(program, _)| command::find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if command::output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!(
            "missing: {}; install with: sudo sh -c 'apt-get update && {}'",
            missing.join(" "),
            shell(&missing)
        );
    }
    println!("installing {} ...", missing.join(" "));
    apt(&["update"])?;
    let mut words = vec!["install".to_owned(), "-y".into(), "--no-install-recommends".into()];
    words.push("--allow-downgrades".into());
    words.extend(with_versions(&missing)?);
    apt(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The same, where a task can go on without: says what will be left out.
pub(crate) fn try_ensure(programs: &[(&str, &'static str)]) {
    if let Err(error) = ensure(programs) {
        println!("warning: {error:#}");
    }
}

fn apt(words: &[&str]) -> Result<()> {
    let mut apt = command::program("apt-get", "apt")?;
    command::output(apt.args(words).env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
}

/// QEMU's packages must be of one version; an already installed newer tool package would have its
/// system package refused, so both are named with the version that can be had.
fn with_versions(missing: &[&str]) -> Result<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    for package in missing {
        if package.starts_with("qemu-") {
            continue;
        }
        words.push((*package).to_owned());
    }
    if missing.iter().any(|package| package.starts_with("qemu-")) {
        let policy = command::program("apt-cache", "apt")?
            .args(["policy", "qemu-system-x86"])
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())?;
        let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
        match version.filter(|version| *version != "(none)") {
            Some(version) => {
                for package in ["qemu-system-x86", "qemu-utils"] {
                    words.push(format!("{package}={version}"));
                }
            }
            None => bail!("apt has no qemu-system-x86 to install"),
        }
    }
    Ok(words)
}

/// The command for a person, who has a shell.
fn shell(missing: &[&str]) -> String {
    let plain = missing.iter().filter(|package| !package.starts_with("qemu-"));
    let mut words: Vec<String> = plain.map(|package| (*package).to_owned()).collect();
    let mut prefix = String::new();
    if words.len() < missing.len() {
        prefix = "V=$(apt-cache policy qemu-system-x86 | sed -n \"s/ *Candidate: //p\") && ".into();
        words.extend(["qemu-system-x86=$V".into(), "qemu-utils=$V".into()]);
    }
    format!(
        "{prefix}apt-get install -y --no-install-recommends --allow-downgrades {}",
        words.join(" ")
    )
}
