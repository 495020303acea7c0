//! The `ferry` command: `run` boots a guest, `storage` serves disks without one, `img` works on images, and
//! all others talk to a process that runs.

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ferry_api::cli::{self, ClientCommand};
use ferry_img::ImgCommand;
use ferry_storage::StorageArgs;
use ferry_vmm::config::RunArgs;
use ferry_vmm::exports;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Run a virtual machine, and move its disks and itself while it runs
#[derive(Parser)]
#[command(name = "ferry", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a guest, or wait for one that migrates here
    Run(Box<RunArgs>),
    /// Make, look at, check and copy disk images
    // As for qemu-img, the last of an option that is given twice counts.
    #[command(subcommand, args_override_self = true)]
    Img(Box<ImgCommand>),
    /// Serve disks without a guest: nodes, jobs and exports, controlled by QMP
    Storage(Box<StorageArgs>),
    #[command(flatten)]
    Client(ClientCommand),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if std::env::args_os().nth(1).is_some_and(|word| word == "img") => {
            return ferry_img::misused(&error);
        }
        Err(error) => error.exit(),
    };
    start_log();
    match arguments.command {
        Command::Run(arguments) => {
            let ending = ferry_vmm::run(*arguments);
            say(&ending);
            ExitCode::from(ending.status())
        }
        Command::Img(command) => ferry_img::run(&command),
        Command::Storage(arguments) => match ferry_storage::serve(*arguments, exports::KINDS) {
            Ok(ending) => ExitCode::from(ending.status()),
            Err(error) => {
                say(&error);
                ExitCode::from(error.status())
            }
        },
        Command::Client(command) => cli::run(command).unwrap_or_else(|error| {
            say(&error);
            ExitCode::FAILURE
        }),
    }
}

/// One line for the person who started us. Where standard error is closed, nobody wants it.
fn say(line: &dyn std::fmt::Display) {
    use io::Write;
    drop(writeln!(io::stderr(), "ferry: {line}"));
}

/// Warnings on standard error; `FERRY_LOG=debug`, or a module's name with a level, shows more.
fn start_log() {
    // Nothing at all would be read as a wish for errors only.
    let wanted = std::env::var("FERRY_LOG").ok().filter(|wanted| !wanted.is_empty());
    let filter = wanted.map_or(Ok(Targets::new()), |wanted| wanted.parse());
    let mut filter = filter.unwrap_or_else(|error| {
        say(&format!("FERRY_LOG is not understood: {error}"));
        Targets::new()
    });
    if filter.default_level().is_none() {
        filter = filter.with_default(LevelFilter::WARN);
    }
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    tracing_subscriber::registry().with(lines).with(filter).init();
}
