//! The subcommands of `ferry` that talk to a running guest: each is a QMP client like any other.
//!
//! Long work shows a progress bar on standard error; results go to standard output. Ctrl-C cancels
//! what was started and waits until that is done; a second one leaves at once.

mod args;
mod console;
mod interrupt;
mod migrate;
mod mirror;
mod raw;
mod show;

use std::{io, path::PathBuf, process::ExitCode, time::Duration};

pub use self::{
    args::{
        CommandArgs, ConnectionArgs, ContArgs, Finish, ImageFormat, MigrateArgs, MirrorArgs,
        MirrorMode, QmpArgs,
    },
    console::Console,
};
use crate::client::{ClientError, QmpClient};

/// A subcommand that needs a running guest.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum ClientCommand {
    /// Move the running guest to another ferry process
    Migrate(MigrateArgs),
    /// Copy a disk to another file while the guest uses it, and switch over to the copy
    Mirror(MirrorArgs),
    /// List the jobs that run
    Jobs(CommandArgs),
    /// Say what the guest is doing and what disks it has
    Status(CommandArgs),
    /// Send one QMP command, or read commands line by line
    Qmp(QmpArgs),
    /// Stop the guest's CPUs
    Stop(CommandArgs),
    /// Let the guest's CPUs go on
    Cont(ContArgs),
    /// Press the guest's power button
    Powerdown(CommandArgs),
    /// Press the guest's reset button
    Reset(CommandArgs),
    /// End the guest's process at once
    Quit(CommandArgs),
}

/// Why a subcommand did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The guest's process could not be talked to, or refused a command.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file on this host could not be used.
    #[error("cannot {action} {path}: {source}{hint}")]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
        /// What to do about it, after "; ".
        hint: &'static str,
    },
    /// Standard output is closed.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    /// Anything else, in words.
    #[error("{0}")]
    Failed(String),
}

type Result<T> = std::result::Result<T, CliError>;

/// How a subcommand that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it was asked.
    Done,
    /// It was cancelled with Ctrl-C.
    Cancelled,
}

impl From<Outcome> for ExitCode {
    /// What shells expect: 0, or 128 plus the number of the signal.
    fn from(outcome: Outcome) -> ExitCode {
        match outcome {
            Outcome::Done => ExitCode::SUCCESS,
            Outcome::Cancelled => ExitCode::from(130),
        }
    }
}

/// Runs a subcommand on the terminal, with Ctrl-C caught.
///
/// # Errors
/// A message for a person: what failed, with which file, node or host, and what to do.
pub fn run(command: ClientCommand) -> Result<ExitCode> {
    interrupt::catch()?;
    let mut out = io::stdout();
    run_on(command, &mut Console::new(&mut out, &interrupt::count)).map(ExitCode::from)
}

/// Runs a subcommand on any console.
///
/// # Errors
/// As [`run`].
pub fn run_on(command: ClientCommand, console: &mut Console<'_>) -> Result<Outcome> {
    match command {
        ClientCommand::Migrate(args) => migrate::run(&args, console),
        ClientCommand::Mirror(args) => mirror::run(&args, console),
        ClientCommand::Jobs(args) => show::jobs(&args, console),
        ClientCommand::Status(args) => show::status(&args, console),
        ClientCommand::Qmp(args) => raw::run(&args, console),
        ClientCommand::Stop(args) => simple(&args.connection, "stop", "stopped", console),
        ClientCommand::Cont(args) => cont(&args, console),
        ClientCommand::Powerdown(args) => {
            simple(&args.connection, "system_powerdown", "power button pressed", console)
        }
        ClientCommand::Reset(args) => simple(&args.connection, "system_reset", "reset", console),
        ClientCommand::Quit(args) => simple(&args.connection, "quit", "ended", console),
    }
}

/// How long a guest's process may take to answer a command.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often long work is looked at.
const POLL: Duration = Duration::from_millis(100);

fn connect(connection: &ConnectionArgs) -> Result<QmpClient> {
    Ok(QmpClient::connect(&connection.qmp, ANSWER_TIMEOUT)?)
}

fn simple(
    connection: &ConnectionArgs,
    command: &str,
    done: &str,
    console: &mut Console<'_>,
) -> Result<Outcome> {
    connect(connection)?.execute(command, serde_json::json!({}))?;
    console.say(format_args!("guest at {}: {done}", connection.qmp.display()))?;
    Ok(Outcome::Done)
}

fn cont(args: &ContArgs, console: &mut Console<'_>) -> Result<Outcome> {
    let arguments = crate::command::Cont { force: args.force.then_some(true) };
    connect(&args.connection)?.call::<_, crate::schema::Empty>("cont", &arguments)?;
    console.say(format_args!("guest at {}: running", args.connection.qmp.display()))?;
    Ok(Outcome::Done)
}
