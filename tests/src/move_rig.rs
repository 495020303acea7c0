//! A guest that works its disk and its memory, and everything to move it with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::console::number;
use crate::qmp::Qmp;
use crate::vm::{Disk, Monitor, Spec, Vm};
use crate::{guest, image, time};

/// Long for a single step, on a busy machine.
pub const STEP: Duration = Duration::from_secs(60);
/// The guest's work: self-checking blocks on the disk, self-checking pages in memory.
const WORK: &str =
    "workload=verify,dirty init=zero mem_mib=64 dirty_mib_s=50 disk_iops=2000 seed=7";

/// A running source, and where to start destinations.
pub struct Moving {
    /// Where the disk and the sockets are.
    pub folder: TempDir,
    /// What is started on either side.
    pub spec: Spec,
    /// The machine that the guest runs in at first.
    pub source: Vm,
    /// Its QMP connection.
    pub qmp: Qmp,
    monitor: Monitor,
    next: u32,
}

impl Moving {
    /// Boots the guest on a fresh disk and waits until it works.
    ///
    /// # Errors
    ///
    /// When anything cannot be built or started.
    pub fn start() -> Result<Moving> {
        let folder = tempfile::Builder::new().prefix("ferry-move").tempdir()?;
        let path = folder.path().join("disk.raw");
        image::sparse(&path, 32 << 20)?;
        let spec = Spec::new(&guest::bare_metal()?, WORK, 128).disk(Disk::new("d0", &path));
        let monitor = Monitor::ferry()?;
        let source = Vm::start(&monitor, &spec)?;
        source.console.wait_word("READY", STEP).with_context(|| source.complaints())?;
        let mut qmp = source.qmp()?;
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        qmp.call("migrate-set-capabilities", events)?;
        Ok(Moving { folder, spec, source, qmp, monitor, next: 0 })
    }

    /// A path in the folder that was not used before.
    pub fn fresh(&mut self, what: &str) -> PathBuf {
        self.next += 1;
        self.folder.path().join(format!("{what}{}", self.next))
    }

    /// Starts a destination over `disk` that listens; the machine and its socket.
    ///
    /// # Errors
    ///
    /// When it does not start to listen.
    pub fn destination(&mut self, disk: &Path) -> Result<(Vm, PathBuf)> {
        let socket = self.fresh("in");
        let mut spec = self.spec.incoming(&format!("unix:{}", socket.display()));
        disk.clone_into(&mut spec.disks[0].path);
        let mut target = Vm::start(&self.monitor, &spec)?;
        let up = time::poll("the destination's socket", STEP, || Ok(socket.exists().then_some(())));
        up.with_context(|| target.describe())?;
        Ok((target, socket))
    }

    /// Migrates to whatever listens at `uri` and waits for the end, well or not; `query-migrate` then.
    ///
    /// # Errors
    ///
    /// When the command is refused, or there is no end.
    pub fn migrate(&mut self, uri: &str) -> Result<Value> {
        self.qmp.call("migrate", json!({ "uri": uri }))?;
        self.ended()
    }

    /// Waits for the end of the migration that runs.
    ///
    /// # Errors
    ///
    /// When there is no end.
    pub fn ended(&mut self) -> Result<Value> {
        self.qmp.poll("query-migrate", STEP, |answer| {
            let over =
                ["completed", "failed", "cancelled"].iter().any(|end| answer["status"] == *end);
            Ok(over.then(|| answer.clone()))
        })
    }

    /// The guest is where it was, runs, and its disk and memory are whole so far.
    ///
    /// # Errors
    ///
    /// When it is not so.
    pub fn still_here(&mut self) -> Result<()> {
        let status = self.qmp.call("query-status", json!({}))?;
        ensure!(status["status"] == "running", "the source is {status}");
        let dots = self.source.console.dots().len();
        time::poll("a heartbeat", STEP, || {
            Ok((self.source.console.dots().len() > dots).then_some(()))
        })?;
        ensure!(!self.source.console.text().contains("FAIL"), "{}", self.source.describe());
        Ok(())
    }

    /// Moves the guest to a new destination, lets it check everything there and end.
    ///
    /// # Errors
    ///
    /// When it does not arrive, or finds anything wrong.
    pub fn arrive(mut self) -> Result<()> {
        let disk = self.spec.disks[0].path.clone();
        let (target, socket) = self.destination(&disk)?;
        let answer = self.migrate(&format!("unix:{}", socket.display()))?;
        ensure!(answer["status"] == "completed", "{answer} {}", target.complaints());
        check_arrived(&target, &disk)
    }
}

/// Has the guest in `target` check all it wrote, and compares its disk with what it says.
///
/// # Errors
///
/// When a page or block is not what the guest wrote.
pub fn check_arrived(target: &Vm, disk: &Path) -> Result<()> {
    target.console.wait_dot(STEP)?;
    std::thread::sleep(Duration::from_millis(200));
    target.console.send(b"q")?;
    let done = target.console.wait_word("DONE", STEP)?;
    ensure!(done.text == "DONE status=0", "{}", target.console.text());
    let said = target.console.wait_word("DISK", STEP)?;
    let examined = image::examine(disk, 4096)?;
    ensure!(examined.digest == number(&said.text, "digest")?, "{said:?} {examined:?}");
    Ok(())
}
