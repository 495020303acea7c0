//! What an emulated host does when it says nothing any more: where its processors are, and what its kernel
//! tells of them. A guest that hangs, a monitor that hangs and an emulator that hangs look the same from the
//! outside; this tells them apart.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::console::Console;
use crate::qmp::Qmp;
use crate::time;

/// How often the processors are looked at, a second apart: one that moves is not hanging.
const LOOKS: usize = 3;
/// What the kernel is asked for, by its "magic system request" keys: all messages on the console, what each
/// processor runs, which tasks are blocked, all tasks.
const REQUESTS: [u8; 4] = *b"9lwt";

/// The registers of an emulated host's processors, and what its kernel answers on its console. `socket` is the
/// emulator's QMP, `device` the character device of the console.
pub fn of(socket: &Path, device: &str, console: &Console) -> String {
    let registers = registers(socket, device, console);
    let said = console.lines();
    let said: Vec<&str> = said.iter().map(|line| line.text.as_str()).collect();
    match registers {
        Ok(registers) => format!("its console:\n{}\n{registers}", said.join("\n")),
        Err(error) => format!("the emulator does not answer: {error:#}"),
    }
}

fn registers(socket: &Path, device: &str, console: &Console) -> Result<String> {
    let mut qmp = Qmp::connect(socket, Duration::from_secs(5))?;
    let mut human = |line: &str| {
        let answer = qmp.call("human-monitor-command", json!({ "command-line": line }))?;
        Ok::<_, anyhow::Error>(answer.as_str().unwrap_or_default().to_owned())
    };
    let mut text = String::new();
    for _ in 0..LOOKS {
        let registers = human("info registers -a")?;
        let telling = |line: &&str| !line.starts_with("YMM") && !line.starts_with("FPR");
        text.extend(registers.lines().filter(telling).map(|line| format!("{}\n", line.trim_end())));
        time::pause(Duration::from_secs(1));
    }
    for request in REQUESTS {
        human(&format!("chardev-send-break {device}"))?;
        console.send(&[request])?;
        time::pause(Duration::from_secs(1));
    }
    Ok(text)
}
