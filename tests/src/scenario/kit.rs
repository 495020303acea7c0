//! What a scenario works with: the programs and images, a folder, and a voice.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::vm::{Disk, Monitor, Spec, Vm};
use crate::{image, time};

/// An emulated host is slow; nothing that works takes longer than this.
pub(super) const LONG: Duration = Duration::from_secs(150);

/// Programs and images, from the environment.
pub struct Kit {
    /// ferry.
    pub monitor: Monitor,
    /// The stock kernel as a bzImage.
    pub bzimage: PathBuf,
    /// The stock kernel as an ELF file.
    pub vmlinux: PathBuf,
    /// The guest's first file system.
    pub initrd: PathBuf,
    root: PathBuf,
    folder: TempDir,
    /// Where to speak.
    pub out: Out,
}

impl Kit {
    /// Takes everything from the `FERRY_SCENARIO_` variables.
    ///
    /// # Errors
    ///
    /// When one is missing.
    pub fn from_environment() -> Result<Kit> {
        let path = |name: &str| {
            let variable = format!("FERRY_SCENARIO_{name}");
            std::env::var_os(&variable).map(PathBuf::from).with_context(|| format!("no {variable}"))
        };
        Ok(Kit {
            monitor: Monitor::Ferry(path("FERRY")?),
            bzimage: path("BZIMAGE")?,
            vmlinux: path("VMLINUX")?,
            initrd: path("INITRD")?,
            root: path("ROOT")?,
            folder: tempfile::Builder::new().prefix("scenario").tempdir()?,
            out: Out,
        })
    }

    /// A path in the scenario's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A fresh root disk.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn root_disk(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        image::unpack(&self.root, &path)?;
        Ok(path)
    }

    /// A Linux machine.
    pub fn spec(&self, kernel: &Path, task: &str, cpus: u32) -> Spec {
        let cmdline = format!("console=ttyS0 quiet loglevel=3 panic=-1 ferry.do={task}");
        let mut spec = Spec::new(kernel, &cmdline, 384);
        spec.initrd = Some(self.initrd.clone());
        spec.cpus = cpus;
        spec
    }

    /// The machine with the root disk, up to its first acknowledged record.
    ///
    /// # Errors
    ///
    /// When it does not come up.
    pub fn boot_root(&self, disk: &Path) -> Result<(Spec, Vm)> {
        let spec = self.spec(&self.vmlinux, "root", 2).disk(Disk::new("disk0", disk));
        let vm = Vm::start(&self.monitor, &spec)?;
        wait_ack(&vm, 1).with_context(|| {
            format!("the guest wrote nothing; its monitor said {:?}", vm.complaints())
        })?;
        Ok((spec, vm))
    }
}

/// The number of the last record that the guest acknowledged.
pub(super) fn last_ack(vm: &Vm) -> u64 {
    vm.console.lines().iter().rev().find_map(|line| ack(&line.text)).unwrap_or(0)
}

/// The record that a line acknowledges.
pub(super) fn ack(text: &str) -> Option<u64> {
    text.strip_prefix("ACK ")?.parse().ok()
}

/// Waits until the guest has acknowledged a record with at least this number.
///
/// # Errors
///
/// When it does not in time.
pub(super) fn wait_ack(vm: &Vm, record: u64) -> Result<()> {
    vm.console.wait(&format!("record {record}"), 0, LONG, |line| {
        ack(&line.text).filter(|found| *found >= record).map(drop)
    })
}

/// The scenario's voice: lines on standard output.
#[derive(Clone, Copy)]
pub struct Out;

impl Out {
    fn line(self, text: &str) {
        let mut out = std::io::stdout().lock();
        // Whoever listens decides by the last line; there is nobody else to tell.
        writeln!(out, "{text}").and_then(|()| out.flush()).ok();
    }

    /// A step begins.
    pub fn step(self, text: &str) {
        self.line(&format!("STEP {text}"));
    }

    /// How far a long step is.
    pub fn progress(self, done: u64, total: u64, text: &str) {
        self.line(&format!("PROGRESS {done} {total} {text}"));
    }

    /// Something measured.
    pub fn fact(self, name: &str, value: impl std::fmt::Display) {
        self.line(&format!("FACT {name} {value}"));
    }

    /// The end.
    pub fn end(self, outcome: &Result<()>) {
        match outcome {
            Ok(()) => self.line("SCENARIO ok"),
            Err(error) => {
                let text = format!("{error:#}").replace('\n', " | ");
                self.line(&format!("SCENARIO failed: {text}"));
            }
        }
    }
}

/// Time since `start` in milliseconds.
pub(super) fn ms_since(start: std::time::Instant) -> u128 {
    (time::now() - start).as_millis()
}
