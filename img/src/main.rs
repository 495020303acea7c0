//! `ferry img` as a program of its own, for hosts that have images and no guests.

use std::process::ExitCode;

use clap::Parser;
use ferry_img::ImgCommand;

/// Make, look at, check and copy disk images
#[derive(Parser)]
#[command(name = "ferry-img", version, max_term_width = 100, args_override_self = true)]
struct Arguments {
    #[command(subcommand)]
    command: ImgCommand,
}

fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => ferry_img::run(&arguments.command),
        Err(error) => ferry_img::misused(&error),
    }
}
