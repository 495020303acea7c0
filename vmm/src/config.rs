//! What a machine is made of, as plain validated data, and the command line that says so.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use ferry_block::keyval;
use ferry_migration::transport::Uri;

use crate::error::{Error, Result};

const MIB: u64 = 1 << 20;
/// Less than this holds neither the boot structures nor any kernel.
const MEMORY_MIN: u64 = 4 * MIB;
/// More than 1 TiB needs guest physical addresses that not every host has.
const MEMORY_MAX: u64 = 1 << 40;
/// Local APIC ids are 8 bits wide in the tables that we build; 255 is broadcast.
const CPUS_MAX: u32 = 254;
/// Virtqueues of one disk; each takes an MSI-X vector and an event descriptor.
const QUEUES_MAX: u16 = 64;

/// `ferry run`: boot a guest, or receive one.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_STATUS_HELP)]
pub struct RunArgs {
    /// Kernel to boot: a bzImage, or an ELF file with a PVH note
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0")]
    pub cmdline: String,
    /// Guest memory: a number with K, M, G or T; without a letter MiB
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: String,
    /// Number of virtual CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// A disk: `path=FILE[,format=raw|qcow2][,id=NAME][,readonly=on][,direct=on][,serial=TEXT][,queues=N]`;
    /// write a comma inside a value twice; may be given several times
    #[arg(long = "disk", value_name = "OPTIONS")]
    pub disks: Vec<String>,
    /// Serial port: stdio (leave with Ctrl-A x), file=PATH, socket=PATH or none
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    pub serial: String,
    /// Listen for QMP clients on this socket: unix:PATH or PATH
    #[arg(long, value_name = "SOCKET")]
    pub qmp: Option<String>,
    /// Wait for a migrating guest at tcp:HOST:PORT or unix:PATH, or `defer` until QMP says where
    #[arg(long, value_name = "URI")]
    pub incoming: Option<String>,
    /// Do not start the virtual CPUs until QMP's `cont`
    #[arg(long)]
    pub paused: bool,
    /// Name of the guest, for messages and `query-name`
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// What to do when the guest reboots
    #[arg(long, value_enum, default_value_t = OnReboot::Exit)]
    pub on_reboot: OnReboot,
}

/// Shown by `ferry run --help`; `exit` has the numbers.
const EXIT_STATUS_HELP: &str = "\
Exit status:
  0  the guest powered off, or QMP's quit
  1  the host or a file refused something (KVM, memory, a disk, a kernel)
  2  wrong command line
  3  the guest rebooted (with --on-reboot exit)
  4  the guest reported a panic
  5  triple fault: the guest's CPU could not go on
  6  KVM reported an internal error
  7  the terminal or a signal ended the guest (Ctrl-A x, SIGINT, SIGTERM, SIGHUP)";

/// What a reboot of the guest does to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnReboot {
    /// End with the exit status for a reboot.
    Exit,
    /// Reset the machine and boot again.
    Reset,
}

/// What the image of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// One virtio-blk disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Image file or block device.
    pub path: PathBuf,
    /// Image format, raw if it is not said: never guessed from the content.
    pub format: Option<DiskFormat>,
    /// Name of the device and its root in the block graph; `disk0`, `disk1`, ... by default.
    pub id: String,
    /// The guest may not write.
    pub readonly: bool,
    /// Bypass the host's page cache.
    pub direct: bool,
    /// What the guest reads as the disk's serial number (20 bytes at most).
    pub serial: Option<String>,
    /// Virtqueues; one per vCPU and at most four when not given.
    pub queues: Option<u16>,
}

/// Where the serial port goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialConfig {
    /// The terminal, or whatever standard input and output are.
    Stdio,
    /// Output is written to a file.
    File(PathBuf),
    /// A Unix socket that one client at a time may connect to.
    Socket(PathBuf),
    /// Output is dropped.
    None,
}

/// A machine, validated.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the guest.
    pub name: Option<String>,
    /// Kernel; absent only when a guest comes in by migration.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Disks in the order of their PCI slots.
    pub disks: Vec<DiskConfig>,
    /// The serial port.
    pub serial: SerialConfig,
    /// Path of the QMP socket.
    pub qmp: Option<PathBuf>,
    /// URI to receive a guest from, or `defer`.
    pub incoming: Option<String>,
    /// Wait for `cont`.
    pub paused: bool,
    /// What a reboot does.
    pub on_reboot: OnReboot,
}

impl TryFrom<RunArgs> for Config {
    type Error = Error;

    fn try_from(args: RunArgs) -> Result<Config> {
        if args.kernel.is_none() && args.incoming.is_none() {
            return Err(Error::usage(
                "no kernel: give --kernel FILE, or --incoming to receive a guest",
            ));
        }
        if args.initrd.is_some() && args.kernel.is_none() {
            return Err(Error::usage("--initrd needs --kernel"));
        }
        if args.cpus == 0 || args.cpus > CPUS_MAX {
            return Err(Error::usage(format!("--cpus {}: give 1 to {CPUS_MAX}", args.cpus)));
        }
        if args.cmdline.contains('\0') {
            return Err(Error::usage("--cmdline must not contain a NUL character"));
        }
        let mut disks = Vec::with_capacity(args.disks.len());
        for (index, text) in args.disks.iter().enumerate() {
            disks.push(parse_disk(text, index)?);
        }
        for (index, disk) in disks.iter().enumerate() {
            if disks[..index].iter().any(|other| other.id == disk.id) {
                return Err(Error::usage(format!("two disks have the id '{}'", disk.id)));
            }
        }
        Ok(Config {
            name: args.name,
            kernel: args.kernel,
            initrd: args.initrd,
            cmdline: args.cmdline,
            memory: parse_memory(&args.memory)?,
            cpus: args.cpus,
            disks,
            serial: args.serial.parse()?,
            qmp: args.qmp.as_deref().map(parse_qmp).transpose()?,
            incoming: args.incoming.map(parse_incoming).transpose()?,
            paused: args.paused,
            on_reboot: args.on_reboot,
        })
    }
}

fn parse_incoming(text: String) -> Result<String> {
    match Uri::parse(&text) {
        Err(error) if text != "defer" => Err(Error::usage(format!(
            "--incoming {text}: {error}; give tcp:HOST:PORT, unix:PATH or defer"
        ))),
        _ => Ok(text),
    }
}

impl FromStr for SerialConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<SerialConfig> {
        match text.split_once('=') {
            Some(("file", path)) if !path.is_empty() => Ok(SerialConfig::File(path.into())),
            Some(("socket", path)) if !path.is_empty() => Ok(SerialConfig::Socket(path.into())),
            None if text == "stdio" => Ok(SerialConfig::Stdio),
            None if text == "none" => Ok(SerialConfig::None),
            _ => Err(Error::usage(format!(
                "--serial {text}: give stdio, file=PATH, socket=PATH or none"
            ))),
        }
    }
}

fn parse_qmp(text: &str) -> Result<PathBuf> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    // QEMU's spelling has options after the path; a server that does not wait is all that we do.
    let path = path.split(',').next().unwrap_or_default();
    if path.is_empty() || text.starts_with("tcp:") {
        return Err(Error::usage(format!("--qmp {text}: give unix:PATH")));
    }
    Ok(path.into())
}

/// Parse a size: digits and an optional letter; MiB when there is none. At least 4 MiB, in whole MiB.
fn parse_memory(text: &str) -> Result<u64> {
    let bad = || Error::usage(format!("--memory {text}: give a size such as 512M or 2G"));
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "K" | "KIB" => 1 << 10,
        "" | "M" | "MIB" => MIB,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1 << 40,
        _ => return Err(bad()),
    };
    let number: u64 = digits.parse().map_err(|_not_a_number| bad())?;
    let bytes = number.checked_mul(unit).ok_or_else(bad)?;
    if bytes < MEMORY_MIN {
        return Err(Error::usage(format!(
            "--memory {text}: too little memory, give at least {}M",
            MEMORY_MIN / MIB
        )));
    }
    if bytes > MEMORY_MAX || bytes % MIB != 0 {
        return Err(Error::usage(format!(
            "--memory {text}: give whole MiB, at most {}G",
            MEMORY_MAX >> 30
        )));
    }
    Ok(bytes)
}

fn parse_switch(disk: &str, key: &str, value: &str) -> Result<bool> {
    match value {
        "on" | "yes" | "true" => Ok(true),
        "off" | "no" | "false" => Ok(false),
        _ => Err(Error::usage(format!("--disk {disk}: {key}={value}: give on or off"))),
    }
}

fn parse_disk(text: &str, index: usize) -> Result<DiskConfig> {
    let wrong = |what: String| Error::usage(format!("--disk {text}: {what}"));
    let mut disk = DiskConfig {
        path: PathBuf::new(),
        format: None,
        id: format!("disk{index}"),
        readonly: false,
        direct: false,
        serial: None,
        queues: None,
    };
    for option in keyval::split(text) {
        let (key, value) = match option.split_once('=') {
            Some(pair) => pair,
            None if matches!(option.as_str(), "readonly" | "direct") => (option.as_str(), "on"),
            None => return Err(wrong(format!("'{option}' is not of the form key=value"))),
        };
        match key {
            "path" => disk.path = value.into(),
            // Never guessed: the first sector of a raw disk is the guest's.
            "format" => {
                disk.format = match value {
                    "raw" => Some(DiskFormat::Raw),
                    "qcow2" => Some(DiskFormat::Qcow2),
                    _ => return Err(wrong(format!("format={value}: give raw or qcow2"))),
                }
            }
            "id" => value.clone_into(&mut disk.id),
            "readonly" => disk.readonly = parse_switch(text, key, value)?,
            "direct" => disk.direct = parse_switch(text, key, value)?,
            "serial" => disk.serial = Some(value.to_owned()),
            "queues" => {
                let queues = value.parse().ok().filter(|n| (1..=QUEUES_MAX).contains(n));
                let queues = queues
                    .ok_or_else(|| wrong(format!("queues={value}: give 1 to {QUEUES_MAX}")))?;
                disk.queues = Some(queues);
            }
            _ => {
                return Err(wrong(format!(
                    "unknown option '{key}'; there are path, format, id, readonly, direct, serial, queues"
                )));
            }
        }
    }
    check_disk(&disk).map_err(wrong)?;
    Ok(disk)
}

fn check_disk(disk: &DiskConfig) -> std::result::Result<(), String> {
    if disk.path.as_os_str().is_empty() {
        return Err("no path: give path=FILE".to_owned());
    }
    let id_start = disk.id.starts_with(|c: char| c.is_ascii_alphabetic());
    let id_rest = disk.id.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    if !id_start || !id_rest || disk.id.len() > 31 {
        return Err(format!(
            "id={}: give a letter, then letters, digits, '-', '.' or '_', 31 at most",
            disk.id
        ));
    }
    if disk.serial.as_ref().is_some_and(|serial| serial.len() > 20) {
        return Err("serial: 20 bytes at most".to_owned());
    }
    Ok(())
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
