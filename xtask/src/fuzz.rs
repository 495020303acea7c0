//! `cargo xtask fuzz`: a libFuzzer target of `tests/fuzz`, with the compiler that builds ferry.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ferry_tests::artifact::{target, workspace};

/// What the target is given: where it puts what reaches new code, and two more places to begin with.
const INPUTS: [&str; 3] = ["corpus", "seeds", "regressions"];
/// Where it puts what does harm.
const FOUND: &str = "artifacts";
/// Harm beside crashes: seconds for one input, and memory in MiB.
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=1024"];

/// Runs `target` for so long.
///
/// # Errors
///
/// When it found something, or cannot be built.
pub(crate) fn run(target: &str, seconds: u64) -> Result<()> {
    let folder = workspace().join("tests/fuzz");
    lock()?;
    for kind in INPUTS.iter().chain([&FOUND]) {
        fs::create_dir_all(folder.join(kind).join(target))?;
    }
    let status = Command::new("cargo")
        .current_dir(&folder)
        .args(["run", "--release", "--bin", target, "--"])
        .args(INPUTS.map(|kind| format!("{kind}/{target}")))
        .args(LIMITS)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={FOUND}/{target}/"))
        .status()
        .context("cargo cannot be started")?;
    ensure!(status.success(), "what was found is in {}", folder.join(FOUND).join(target).display());
    Ok(())
}

/// What looks at the targets, which are no part of the workspace, without building them; none where what they
/// need besides cannot be had. It is started where the flags for coverage do not apply, so that what was checked
/// of the workspace need not be checked again.
///
/// # Errors
///
/// The versions that they are built with cannot be written down.
pub(crate) fn lints() -> Result<Option<Command>> {
    lock()?;
    let cargo = |word: &str| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace()).args([word, "--quiet"]);
        cargo.args(["--manifest-path", "tests/fuzz/Cargo.toml"]);
        cargo
    };
    let fetched = cargo("fetch").args(["--target", "host-tuple"]).status();
    if !fetched.is_ok_and(|status| status.success()) {
        return Ok(None);
    }
    let mut clippy = cargo("clippy");
    clippy
        .args(["--all-targets", "--", "-D", "warnings"])
        .env("CARGO_TARGET_DIR", target())
        // Nothing is linked, so libFuzzer itself need not be compiled.
        .env("CUSTOM_LIBFUZZER_PATH", "/nonexistent/libfuzzer.a");
    Ok(Some(clippy))
}

/// The targets are built with the versions that the workspace has.
fn lock() -> Result<()> {
    let copy = workspace().join("tests/fuzz/Cargo.lock");
    fs::copy(workspace().join("Cargo.lock"), &copy)
        .with_context(|| format!("cannot write {}", copy.display()))?;
    Ok(())
}
