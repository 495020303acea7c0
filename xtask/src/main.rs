//! ferry's tasks: `cargo xtask demo`, `test`, `bench` and `fuzz`.
#![expect(clippy::print_stdout, reason = "what a task prints is what it is for")]

mod bench;
mod demo;
mod fuzz;
mod packages;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Shows, tests and measures ferry.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Boot Debian's kernel, mirror its running disk, migrate it live, and check every record it wrote.
    Demo {
        /// Records that the guest writes in each step at least.
        #[arg(long, default_value_t = 200)]
        records: u64,
    },
    /// Run every check and test, from formatting to Linux guests.
    Test {
        /// Leave out the tests that boot Linux in an emulated host.
        #[arg(long)]
        no_linux: bool,
    },
    /// Measure ferry beside QEMU on the same guest, and print one table.
    Bench {
        /// Only rows whose name contains this.
        #[arg(long)]
        only: Option<String>,
        /// Seconds for each disk measurement.
        #[arg(long, default_value_t = 2)]
        seconds: u64,
        /// A folder on a disk, for the rows that are not on tmpfs.
        #[arg(long)]
        disk: Option<std::path::PathBuf>,
    },
    /// Look for input that does harm, led by coverage.
    Fuzz {
        /// A file of `tests/fuzz/fuzz_targets`, such as qcow2 or `nbd_server`.
        target: String,
        /// How long.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Demo { records } => demo::run(records),
        Task::Test { no_linux } => test::run(!no_linux),
        Task::Bench { only, seconds, disk } => bench::run(&bench::Wanted { only, seconds, disk }),
        Task::Fuzz { target, seconds } => fuzz::run(&target, seconds),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
