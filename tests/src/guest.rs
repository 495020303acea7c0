//! The bare-metal guest: built on first use with the project's own toolchain.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Result, anyhow};

use crate::{artifact, command};

/// The guest's program, built when it is not up to date.
///
/// # Errors
///
/// When it cannot be built.
pub fn bare_metal() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:?}")));
    built.clone().map_err(|text| anyhow!(text))
}

fn build() -> Result<PathBuf> {
    let target = artifact::target().join("bare-metal");
    let folder = artifact::workspace().join("resources/bare-metal");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(folder).args(["build", "--release", "--locked", "--target-dir"]).arg(&target);
    // Flags meant for the workspace would land in a program that has no operating system.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command::output(&mut cargo)?;
    Ok(target.join("release/ferry-guest"))
}
