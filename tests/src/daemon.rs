//! A process that has disks and no guest: ours, or QEMU's to compare with.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::qmp::Qmp;
use crate::{binary, command, time};

const LIMIT: Duration = Duration::from_secs(20);

/// A daemon with a folder of its own, ended when it is dropped.
pub struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    /// `ferry storage` with these options more.
    ///
    /// # Errors
    ///
    /// When it cannot be built or started.
    pub fn ferry(options: &[&str]) -> Result<Daemon> {
        let mut program = Command::new(binary::ferry()?);
        program.arg("storage");
        Daemon::start(program, options)
    }

    /// `qemu-storage-daemon` with these options more.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn qemu(options: &[&str]) -> Result<Daemon> {
        let program = command::program("qemu-storage-daemon", "qemu-system-common")?;
        let mut daemon = Daemon::start(program, &[options, &["--pidfile=DIR/pid"]].concat())?;
        // It listens before its monitor is there: who comes then is greeted twice, or not answered at all.
        let started = Path::new(&daemon.path("pid")).to_owned();
        time::poll("QEMU's daemon", LIMIT, || {
            Ok((started.exists() || daemon.child.try_wait()?.is_some()).then_some(()))
        })?;
        Ok(daemon)
    }

    /// Starts it with a monitor; `DIR` in `options` is its folder, in which there is a `disk.raw`.
    fn start(mut program: Command, options: &[&str]) -> Result<Daemon> {
        let folder = tempfile::tempdir()?;
        std::fs::File::create(folder.path().join("disk.raw"))?.set_len(1 << 20)?;
        let dir = folder.path().to_str().context("a folder with an odd name")?;
        program.args(["--chardev", &format!("socket,path={dir}/qmp,server=on,wait=off,id=c")]);
        program.args(["--monitor", "chardev=c"]);
        program.args(options.iter().map(|option| option.replace("DIR", dir)));
        let child = program.stdin(Stdio::null()).spawn()?;
        Ok(Daemon { child, folder })
    }

    /// A file of its folder.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The number of its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A client of its monitor.
    ///
    /// # Errors
    ///
    /// When it does not listen.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(Path::new(&self.path("qmp")), LIMIT)
    }

    /// Waits for the end; the exit status.
    ///
    /// # Errors
    ///
    /// When it does not end in time, or by a signal.
    pub fn ended(&mut self) -> Result<i32> {
        let status = time::poll("the daemon's end", LIMIT, || Ok(self.child.try_wait()?))?;
        status.code().context("ended by a signal")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}
