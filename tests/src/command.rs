//! Runs a program to its end and turns a failure into a message that says what it printed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The output of a program that succeeded.
///
/// # Errors
///
/// When it cannot be started or fails: with its command line and what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {shown}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    bail!("{shown} failed ({}): {}{}", output.status, text.trim_end(), complaint.trim_end())
}

/// Where a program lies: on the path, or where Debian keeps the administrator's.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administrator = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(administrator)
        .map(|folder| folder.join(program))
        .find(|file| Path::is_file(file))
}

/// A command for a program that must be there.
///
/// # Errors
///
/// When it is not; the message names the Debian package.
pub fn program(name: &str, package: &str) -> Result<Command> {
    let file = find(name).with_context(|| format!("{name} is missing: install {package}"))?;
    Ok(Command::new(file))
}
