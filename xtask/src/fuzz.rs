//! `cargo xtask fuzz`: a libFuzzer target of `tests/fuzz`, with the compiler that builds ferry.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ferry_tests::artifact::workspace;

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
