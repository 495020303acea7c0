//! `ferry qmp`: commands as they are.

use std::{
    io::{self, BufRead},
    sync::mpsc::{self, Receiver, TryRecvError},
    thread,
};

use serde::Serialize;
use serde_json::{Value, json};

use super::{CliError, Console, Outcome, POLL, QmpArgs, Result, connect};
use crate::client::{ClientError, QmpClient};

pub(super) fn run(args: &QmpArgs, console: &mut Console<'_>) -> Result<Outcome> {
    let mut client = connect(&args.connection)?;
    match &args.command {
        Some(command) => {
            let arguments = parse_arguments(args.arguments.as_deref())?;
            let returned = client.execute(command, arguments)?;
            print(&returned, console)?;
            Ok(Outcome::Done)
        }
        None => interactive(&mut client, console, read_lines()?),
    }
}

fn parse_arguments(text: Option<&str>) -> Result<Value> {
    let text = text.unwrap_or("{}");
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(CliError::Failed(format!("the arguments {text} are no JSON object"))),
        Err(error) => Err(CliError::Failed(format!(
            "the arguments {text} are not JSON: {error}; write them like '{{\"device\":\"disk0\"}}'"
        ))),
    }
}

/// Standard input, line by line, without blocking whoever waits for events as well.
fn read_lines() -> Result<Receiver<String>> {
    let (send, receive) = mpsc::channel();
    let reader = move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if send.send(line).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("stdin".to_owned()).spawn(reader)?;
    Ok(receive)
}

/// Each line is `command {arguments}` or a whole request; events are shown as they come.
fn interactive(
    client: &mut QmpClient,
    console: &mut Console<'_>,
    lines: Receiver<String>,
) -> Result<Outcome> {
    loop {
        match lines.try_recv() {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => show_reply(client, console, line.trim())?,
            Err(TryRecvError::Disconnected) => return Ok(Outcome::Done),
            Err(TryRecvError::Empty) if console.interrupts() > 0 => return Ok(Outcome::Cancelled),
            Err(TryRecvError::Empty) => {
                if let Some(event) = client.next_event(POLL)? {
                    print(&event, console)?;
                }
            }
        }
        for event in client.take_events() {
            print(&event, console)?;
        }
    }
}

/// Sends one line. What the server refuses is shown and is no reason to leave.
fn show_reply(client: &mut QmpClient, console: &mut Console<'_>, line: &str) -> Result<()> {
    let result = if line.starts_with('{') {
        client.raw(line)?
    } else {
        let (command, arguments) = line.split_once(' ').unwrap_or((line, "{}"));
        let arguments = match parse_arguments(Some(arguments)) {
            Ok(arguments) => arguments,
            Err(error) => return Ok(console.say(format_args!("{error}"))?),
        };
        match client.execute(command, arguments) {
            Ok(returned) => Ok(returned),
            Err(ClientError::Command { error, .. }) => Err(error),
            Err(other) => return Err(other.into()),
        }
    };
    match result {
        Ok(returned) => print(&returned, console),
        Err(error) => print(&json!({ "error": error }), console),
    }
}

fn print<T: Serialize>(value: &T, console: &mut Console<'_>) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::Failed(format!("the answer cannot be shown: {error}")))?;
    Ok(console.say(format_args!("{text}"))?)
}
