//! What can be said on the command line.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::command::MirrorCopyMode;

/// Which guest.
#[derive(Debug, Clone, Args)]
pub struct ConnectionArgs {
    /// The QMP socket the guest was started with (`ferry run --qmp SOCKET`): unix:PATH or PATH
    #[arg(long, value_name = "SOCKET", value_parser = parse_socket)]
    pub qmp: PathBuf,
}

/// A command without further options.
#[derive(Debug, Clone, Args)]
pub struct CommandArgs {
    /// Which guest.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// Options of `cont`.
#[derive(Debug, Clone, Args)]
pub struct ContArgs {
    /// Which guest.
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// Start a guest that was migrated away. Its disk is destroyed if it still runs elsewhere
    #[arg(long)]
    pub force: bool,
}

/// Options of `migrate`.
#[derive(Debug, Clone, Args)]
pub struct MigrateArgs {
    /// Which guest.
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// Where a ferry started with `--incoming` listens: tcp:HOST:PORT or unix:PATH
    pub uri: String,
    /// Longest time the guest may stand still, in milliseconds
    #[arg(long, value_name = "MS")]
    pub downtime_limit: Option<u64>,
    /// Most bytes per second on the network; K, M, G for powers of 1024; 0 for no limit
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub max_bandwidth: Option<u64>,
}

/// Options of `mirror`.
#[derive(Debug, Clone, Args)]
pub struct MirrorArgs {
    /// Which guest.
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// The disk to copy: the id it was given with `--disk id=…`
    #[arg(long, value_name = "ID")]
    pub device: String,
    /// The file or block device to copy to
    #[arg(long, value_name = "PATH")]
    pub target: PathBuf,
    /// Format of the target
    #[arg(long, value_enum, default_value_t = ImageFormat::Raw)]
    pub format: ImageFormat,
    /// Create the target, as large as the disk; it must not exist yet
    #[arg(long)]
    pub create: bool,
    /// Whether guest writes go to both at once, or to the target later
    #[arg(long, value_enum, default_value_t = MirrorMode::Background)]
    pub copy_mode: MirrorMode,
    /// Most bytes per second; K, M, G for powers of 1024; 0 for no limit
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "0")]
    pub speed: u64,
    /// What to do when the copy is complete
    #[arg(long, value_enum, default_value_t = Finish::Pivot)]
    pub finish: Finish,
    /// Bypass the host's page cache when writing the target
    #[arg(long)]
    pub direct: bool,
}

/// Options of `qmp`.
#[derive(Debug, Clone, Args)]
pub struct QmpArgs {
    /// Which guest.
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// The command; without it, commands are read from standard input, one per line
    pub command: Option<String>,
    /// The command's arguments as a JSON object
    #[arg(value_name = "JSON")]
    pub arguments: Option<String>,
}

/// Image formats that a mirror can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImageFormat {
    /// The disk's bytes and nothing else
    Raw,
}

/// How guest writes reach the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MirrorMode {
    /// Later: the guest never waits for the target
    Background,
    /// At once: the guest waits for both, and the copy is sure to catch up
    WriteBlocking,
}

impl From<MirrorMode> for MirrorCopyMode {
    fn from(mode: MirrorMode) -> Self {
        match mode {
            MirrorMode::Background => MirrorCopyMode::Background,
            MirrorMode::WriteBlocking => MirrorCopyMode::WriteBlocking,
        }
    }
}

/// What a mirror does when it is READY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Finish {
    /// The guest goes on with the target
    Pivot,
    /// The guest stays where it is; the target is a consistent copy of this moment
    Keep,
    /// Both are kept equal until somebody decides
    Manual,
}

/// A socket's path, written as `ferry run` takes it.
fn parse_socket(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix:").unwrap_or(text) {
        "" => Err("the path of the socket is empty".to_owned()),
        path => Ok(PathBuf::from(path)),
    }
}

/// A number of bytes: `64M`.
fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (text.get(..at), 10),
        Some((at, 'm' | 'M')) => (text.get(..at), 20),
        Some((at, 'g' | 'G')) => (text.get(..at), 30),
        Some((at, 't' | 'T')) => (text.get(..at), 40),
        _ => (Some(text), 0),
    };
    digits
        .and_then(|digits| digits.parse::<u64>().ok())
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("'{text}' is no size; write bytes, or 512K, 64M, 10G"))
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
