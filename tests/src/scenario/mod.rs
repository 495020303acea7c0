//! What is done with a stock Linux guest. A scenario runs as a process of its own, on this host where Linux
//! guests run directly and otherwise in an emulated host, and speaks in lines:
//! `STEP text`, `PROGRESS done total text`, `FACT name value`, and last `SCENARIO ok` or `SCENARIO why not`.

mod endings;
mod journey;
mod kit;

use std::time::Duration;

use anyhow::{Result, bail};

pub use kit::{Kit, Out};

use crate::console::Line;
use crate::{emulated, host};

/// Runs a scenario where it can run.
///
/// # Errors
///
/// When it fails; the message has all that it said.
pub fn run(words: &[&str], limit: Duration, hear: &mut dyn FnMut(&Line)) -> Result<()> {
    match host::kind() {
        host::Kind::Hardware => emulated::run_here(words, limit, hear),
        host::Kind::PageTables | host::Kind::None => emulated::run(words, limit, hear),
    }
}

/// Carries a scenario out, inside the process that was made for it.
///
/// # Errors
///
/// When something is not as it must be.
pub fn perform(words: &[String]) -> Result<()> {
    let kit = Kit::from_environment()?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["boots"] => endings::boots(&kit),
        ["endings"] => endings::endings(&kit),
        ["journey", records] => journey::journey(&kit, records.parse()?),
        ["moves", rounds] => journey::moves(&kit, rounds.parse()?),
        _ => bail!("no scenario {words:?}"),
    }
}
