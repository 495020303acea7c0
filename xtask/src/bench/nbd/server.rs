//! A process that serves one image over NBD: ferry, or a peer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferry_tests::{command, time};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(10);
/// Clock ticks per second in `/proc`.
const TICKS: f64 = 100.0;

/// Who serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// `ferry storage` of this program.
    Ferry(PathBuf),
    /// QEMU's storage daemon.
    Qemu,
    /// nbdkit with its file plugin.
    Nbdkit,
}

impl Program {
    /// What it is called in the table and in messages.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Program::Ferry(_) => "ferry",
            Program::Qemu => "QEMU",
            Program::Nbdkit => "nbdkit",
        }
    }
}

/// What is served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image<'a> {
    /// The file.
    pub(super) path: &'a Path,
    /// `raw` or `qcow2`.
    pub(super) format: &'a str,
    /// Past the page cache.
    pub(super) direct: bool,
}

/// A running server; killed when it goes out of scope.
pub(super) struct Server {
    name: &'static str,
    child: Child,
    folder: TempDir,
}

impl Server {
    /// Starts to serve an image, writable.
    pub(super) fn start(program: &Program, image: Image<'_>) -> Result<Server> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("nbd");
        let mut command = match program {
            Program::Ferry(ferry) => {
                let mut command = Command::new(ferry);
                command.arg("storage");
                daemon(command, image, &socket, "io_uring")
            }
            Program::Qemu => {
                let command = command::program("qemu-storage-daemon", "qemu-system-common")?;
                daemon(command, image, &socket, "io_uring")
            }
            Program::Nbdkit => {
                ensure!(image.format == "raw" && !image.direct, "nbdkit serves raw files here");
                let mut command = command::program("nbdkit", "nbdkit")?;
                command.args(["--foreground", "--unix"]).arg(&socket).arg("file").arg(image.path);
                command
            }
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let child = child.spawn().with_context(|| format!("cannot start {program:?}"))?;
        let mut server = Server { name: program.name(), child, folder };
        time::poll("the NBD socket", LIMIT, || {
            if let Some(status) = server.child.try_wait()? {
                bail!("{program:?} ended with {status}");
            }
            Ok(socket.exists().then_some(()))
        })?;
        Ok(server)
    }

    /// What it is called in messages.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Where clients find the image.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd")
    }

    /// Processor time so far, seconds.
    pub(super) fn cpu(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = text.rsplit_once(')').context("no name in stat")?;
        // proc(5): utime and stime are the 14th and 15th field, the name is the second.
        let ticks = fields.split_ascii_whitespace().skip(11).take(2).map(str::parse::<f64>);
        Ok(ticks.sum::<Result<f64, _>>()? / TICKS)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already, and then there is nothing to do.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The command line that ferry and QEMU's daemon share.
fn daemon(mut command: Command, image: Image<'_>, socket: &Path, aio: &str) -> Command {
    let direct = if image.direct { "on" } else { "off" };
    command.arg("--blockdev").arg(format!(
        "driver=file,node-name=file,filename={},cache.direct={direct},aio={aio},discard=unmap",
        image.path.display()
    ));
    command.arg("--blockdev").arg(format!(
        "driver={},node-name=disk,file=file,cache.direct={direct},discard=unmap",
        image.format
    ));
    command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={}", socket.display()));
    command.args(["--export", "type=nbd,id=e0,node-name=disk,name=,writable=on"]);
    command
}
