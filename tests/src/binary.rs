//! The programs under test: one release build, linked statically, so that the same file runs here and
//! in an emulated host that has no libraries.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

use crate::{artifact, command};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where the programs lie.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `ferry` itself.
    pub ferry: PathBuf,
    /// Runs a scenario inside an emulated host.
    pub scenario: PathBuf,
    /// Writes checksummed records inside a Linux guest.
    pub journal_writer: PathBuf,
}

/// The programs, built when they are not up to date. `FERRY_PROGRAMS` names a folder that has them ready.
///
/// # Errors
///
/// When they cannot be built.
pub fn programs() -> Result<Programs> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| match std::env::var_os("FERRY_PROGRAMS") {
        Some(folder) => Ok(PathBuf::from(folder)),
        None => build().map_err(|error| format!("{error:?}")),
    });
    let folder = built.clone().map_err(|text| anyhow!(text))?;
    let named = |name: &str| {
        let file = folder.join(name);
        if !file.is_file() {
            bail!("{} is missing", file.display());
        }
        Ok(file)
    };
    Ok(Programs {
        ferry: named("ferry")?,
        scenario: named("ferry-scenario")?,
        journal_writer: named("ferry-journal-writer")?,
    })
}

/// `ferry` itself.
///
/// # Errors
///
/// As [`programs`].
pub fn ferry() -> Result<PathBuf> {
    Ok(programs()?.ferry)
}

/// Builds the programs and returns their folder.
///
/// # Errors
///
/// When the compiler or the linker fails; the message has their words.
pub fn build() -> Result<PathBuf> {
    let target = artifact::target().join("static");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(artifact::workspace())
        .args(["build", "--release", "--bins", "--target", TARGET])
        .args(["-p", "ferry-vmm", "-p", "ferry-tests", "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // It travels into emulated hosts, where every byte of it is memory.
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    command::output(&mut cargo).context("building the programs under test")?;
    Ok(target.join(TARGET).join("release"))
}
