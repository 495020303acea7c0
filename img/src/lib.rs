//! `ferry img`: makes, looks at, checks and copies disk images, with the arguments, output and exit
//! statuses that a `qemu-img` user expects.
//!
//! `location` reads what a user names an image by, `session` opens it in a block graph on this
//! thread; every subcommand is a file of its own.

mod amend;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compare;
mod convert;
mod create;
mod dd;
mod failure;
mod info;
mod keyval;
mod location;
mod map;
mod measure;
mod naming;
mod object;
mod option_help;
mod output;
mod progress;
mod qcow2;
mod rebase;
mod resize;
mod session;
mod size;
mod snapshot;

use std::process::ExitCode;

use clap::Subcommand;

pub use failure::Failure;

/// The subcommands of `ferry img`.
#[derive(Debug, Subcommand)]
pub enum ImgCommand {
    /// Change the options of an image that is there
    Amend(amend::Arguments),
    /// Measure requests to an image
    Bench(bench::Arguments),
    /// Change the dirty bitmaps in an image
    Bitmap(bitmap::Arguments),
    /// Look for contradictions in an image, and repair them
    Check(check::Arguments),
    /// Put what an image holds into the one below it
    Commit(commit::Arguments),
    /// Tell whether two images hold the same
    Compare(compare::Arguments),
    /// Copy images to a new one, in any format
    Convert(convert::Arguments),
    /// Make a new image
    Create(create::Arguments),
    /// Copy a part of an image, with the operands of dd
    Dd(dd::Arguments),
    /// Show what an image is
    Info(info::Arguments),
    /// Show where an image's bytes are
    Map(map::Arguments),
    /// Tell how long an image would get
    Measure(measure::Arguments),
    /// Put another image below
    Rebase(rebase::Arguments),
    /// Change the length of an image
    Resize(resize::Arguments),
    /// List, take, apply or delete the snapshots in an image
    Snapshot(snapshot::Arguments),
}

/// Runs a subcommand; what went wrong is said on standard error.
pub fn run(command: &ImgCommand) -> ExitCode {
    let status = match command {
        ImgCommand::Amend(arguments) => amend::run(arguments),
        ImgCommand::Bench(arguments) => bench::run(arguments),
        ImgCommand::Bitmap(arguments) => bitmap::run(arguments),
        ImgCommand::Check(arguments) => check::run(arguments),
        ImgCommand::Commit(arguments) => commit::run(arguments),
        ImgCommand::Compare(arguments) => compare::run(arguments),
        ImgCommand::Convert(arguments) => convert::run(arguments),
        ImgCommand::Create(arguments) => create::run(arguments),
        ImgCommand::Dd(arguments) => dd::run(arguments),
        ImgCommand::Info(arguments) => info::run(arguments),
        ImgCommand::Map(arguments) => map::run(arguments),
        ImgCommand::Measure(arguments) => measure::run(arguments),
        ImgCommand::Rebase(arguments) => rebase::run(arguments),
        ImgCommand::Resize(arguments) => resize::run(arguments),
        ImgCommand::Snapshot(arguments) => snapshot::run(arguments),
    };
    ExitCode::from(status.unwrap_or_else(|failure| {
        say(&failure);
        failure.status()
    }))
}

/// Ends for a command line that is not understood, or that asked for help. The status is that of other
/// failures: what clap would end with is a finding of `check`.
pub fn misused(error: &clap::Error) -> ExitCode {
    drop(error.print());
    if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// One line for the person who started us.
pub(crate) fn say(line: &dyn std::fmt::Display) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "ferry img: {line}"));
}

/// A finding, as it is.
pub(crate) fn say_plainly(line: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{line}"));
}

#[cfg(test)]
mod tests {
    use clap::{Command, Subcommand};

    #[test]
    fn the_command_line_is_consistent() {
        super::ImgCommand::augment_subcommands(Command::new("img")).debug_assert();
    }
}
