//! How the process ends: one status and one line for each reason. `ferry run --help` lists them.

use std::fmt;

use crate::error::{Error, ErrorKind};

/// Why a machine ended.
#[derive(Debug)]
pub enum Ending {
    /// The guest switched itself off.
    PowerOff,
    /// QMP's `quit`.
    Quit,
    /// The guest rebooted and `--on-reboot exit` holds.
    Reboot,
    /// The guest reported a panic.
    Panic,
    /// This vCPU triple-faulted.
    TripleFault(u32),
    /// KVM could not go on with a vCPU: its number and why.
    Internal(u32, String),
    /// The person at the terminal typed Ctrl-A x.
    Terminal,
    /// A signal came; its name.
    Signal(&'static str),
    /// Nothing could be started, or something of the host failed.
    Failed(Error),
}

impl Ending {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Ending::PowerOff | Ending::Quit => 0,
            // clap ends with the same status for what it refuses itself.
            Ending::Failed(error) if error.kind() == ErrorKind::Usage => 2,
            Ending::Failed(_) => 1,
            Ending::Reboot => 3,
            Ending::Panic => 4,
            Ending::TripleFault(_) => 5,
            Ending::Internal(..) => 6,
            Ending::Terminal | Ending::Signal(_) => 7,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::PowerOff => f.write_str("the guest powered off"),
            Ending::Quit => f.write_str("ended by QMP's quit"),
            Ending::Reboot => f.write_str("the guest rebooted (--on-reboot reset lets it)"),
            Ending::Panic => f.write_str("the guest's kernel panicked"),
            Ending::TripleFault(cpu) => {
                write!(f, "triple fault: vCPU {cpu} could not handle an exception")
            }
            Ending::Internal(cpu, why) => write!(f, "KVM gave up on vCPU {cpu}: {why}"),
            Ending::Terminal => f.write_str("ended at the terminal"),
            Ending::Signal(name) => write!(f, "ended by {name}"),
            Ending::Failed(error) => f.write_str(&error.line()),
        }
    }
}
