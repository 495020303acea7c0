//! Starts a guest under ferry, or under QEMU as its peer, with the same machine from the guest's view.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::console::Console;
use crate::qmp::Qmp;
use crate::{binary, command, time};

/// Which monitor runs the guest.
#[derive(Clone, Debug)]
pub enum Monitor {
    /// ferry; the path of its program.
    Ferry(PathBuf),
    /// QEMU under KVM, its disks on an I/O thread with io_uring. It has the small firmware, because a host that
    /// emulates kernel code needs seconds for the usual one.
    Qemu,
    /// QEMU's machine for fast starts; it has no PCI bus, so no disks.
    QemuMicro,
}

impl Monitor {
    /// The ferry that this tree builds.
    ///
    /// # Errors
    ///
    /// When it cannot be built.
    pub fn ferry() -> Result<Monitor> {
        binary::ferry().map(Monitor::Ferry)
    }
}

const MICRO: &str = "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on";

/// One disk of a guest.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The image file, raw; or where it is served.
    pub path: PathBuf,
    /// The device's name: `disk0` and so on where several tests count on it.
    pub id: String,
    /// Open with O_DIRECT.
    pub direct: bool,
    /// The guest may not write.
    pub read_only: bool,
    /// Not an image: vhost-user-blk is spoken at a socket, with so many queues. For QEMU only.
    pub vhost_user: Option<u32>,
    /// Further words for ferry's `--disk`.
    pub extra: String,
}

impl Disk {
    /// A writable disk.
    pub fn new(id: &str, path: &Path) -> Disk {
        let (id, extra) = (id.to_owned(), String::new());
        Disk { path: path.to_owned(), id, direct: false, read_only: false, vhost_user: None, extra }
    }

    /// A disk that a daemon serves to QEMU by vhost-user-blk.
    pub fn served(id: &str, socket: &Path, queues: u32) -> Disk {
        Disk { vhost_user: Some(queues), ..Disk::new(id, socket) }
    }
}

/// A machine to start.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its first file system, for Linux.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub cmdline: String,
    /// Its memory.
    pub memory_mib: u64,
    /// Its processors.
    pub cpus: u32,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Where to take the guest from, instead of booting it.
    pub incoming: Option<String>,
    /// Wait for `cont`.
    pub paused: bool,
}

impl Spec {
    /// A machine with one processor and no disk.
    pub fn new(kernel: &Path, cmdline: &str, memory_mib: u64) -> Spec {
        Spec {
            kernel: kernel.to_owned(),
            initrd: None,
            cmdline: cmdline.to_owned(),
            memory_mib,
            cpus: 1,
            disks: Vec::new(),
            incoming: None,
            paused: false,
        }
    }

    /// The same machine with one more disk.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Spec {
        self.disks.push(disk);
        self
    }

    /// The same machine as the destination of a migration.
    #[must_use]
    pub fn incoming(&self, uri: &str) -> Spec {
        Spec { incoming: Some(uri.to_owned()), ..self.clone() }
    }
}

/// A running monitor; killed when it goes out of scope.
pub struct Vm {
    child: Child,
    /// The guest's serial port.
    pub console: Console,
    /// When the program was started.
    pub started: Instant,
    complaints: Arc<Mutex<String>>,
    folder: TempDir,
}

impl Vm {
    /// Starts the machine.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn start(monitor: &Monitor, spec: &Spec) -> Result<Vm> {
        let folder = tempfile::Builder::new().prefix("ferry-vm").tempdir()?;
        let socket = folder.path().join("qmp.sock");
        let mut command = match monitor {
            Monitor::Ferry(program) => ferry_command(program, spec, &socket),
            Monitor::Qemu => qemu_command(spec, &socket, "pc")?,
            Monitor::QemuMicro => qemu_command(spec, &socket, MICRO)?,
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = time::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(output), Some(mut errors)) = pipes else {
            bail!("the standard streams were not piped");
        };
        let complaints = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&complaints);
        time::spawn("stderr", move || {
            let mut buffer = [0; 4096];
            while let Ok(len) = errors.read(&mut buffer) {
                if len == 0 {
                    return;
                }
                let text = String::from_utf8_lossy(&buffer[..len]);
                sink.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Ok(Vm { child, console: Console::new(output, input), started, complaints, folder })
    }

    /// The process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard error.
    pub fn complaints(&self) -> String {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The path of its QMP socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("qmp.sock")
    }

    /// A new QMP connection.
    ///
    /// # Errors
    ///
    /// When there is none within ten seconds; the message has what the monitor complained of.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.socket(), Duration::from_secs(10)).with_context(|| self.complaints())
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    ///
    /// When it does not within the limit.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        time::poll("the end of the monitor", limit, || Ok(self.child.try_wait()?))
            .with_context(|| format!("{}{}", self.console.text(), self.complaints()))
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let pid = self.pid().to_string();
        let mut kill = command::program("kill", "procps")?;
        command::output(kill.args([format!("-{signal}"), pid])).map(drop)
    }

    /// Ends the process at once and returns how it ended.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// What to add to a failure: how the process ended, its serial output, its complaints.
    pub fn describe(&mut self) -> String {
        let status = match self.child.try_wait() {
            Ok(Some(status)) => format!("ended: {status} (signal {:?})", status.signal()),
            Ok(None) => "running".to_owned(),
            Err(error) => error.to_string(),
        };
        format!(
            "monitor {status}\nserial:\n{}\nstderr:\n{}",
            self.console.text(),
            self.complaints()
        )
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended long ago, and then there is nothing to do.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn ferry_command(program: &Path, spec: &Spec, socket: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("run").arg("--kernel").arg(&spec.kernel);
    command.args(["--cmdline", &spec.cmdline, "--serial", "stdio", "--qmp"]).arg(socket);
    command.arg("--memory").arg(format!("{}M", spec.memory_mib));
    command.arg("--cpus").arg(spec.cpus.to_string());
    if let Some(initrd) = &spec.initrd {
        command.arg("--initrd").arg(initrd);
    }
    for disk in &spec.disks {
        let on = |flag| if flag { "on" } else { "off" };
        command.arg("--disk").arg(format!(
            "path={},format=raw,id={},readonly={},direct={}{}",
            disk.path.display(),
            disk.id,
            on(disk.read_only),
            on(disk.direct),
            disk.extra
        ));
    }
    if let Some(uri) = &spec.incoming {
        command.args(["--incoming", uri]);
    }
    if spec.paused {
        command.arg("--paused");
    }
    command
}

fn qemu_command(spec: &Spec, socket: &Path, machine: &str) -> Result<Command> {
    let mut command = command::program("qemu-system-x86_64", "qemu-system-x86")?;
    command.args(["-M", machine, "-bios", "qboot.rom"]);
    command.args(["-accel", "kvm", "-cpu", "host,-arch-capabilities", "-nodefaults", "-no-reboot"]);
    command.args(["-display", "none", "-serial", "stdio", "-object", "iothread,id=io0"]);
    command.args(["-m", &spec.memory_mib.to_string(), "-smp", &spec.cpus.to_string()]);
    command.arg("-kernel").arg(&spec.kernel).args(["-append", &spec.cmdline]);
    command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
    if let Some(initrd) = &spec.initrd {
        command.arg("-initrd").arg(initrd);
    }
    if spec.disks.iter().any(|disk| disk.vhost_user.is_some()) {
        let shared = format!("memory-backend-memfd,id=ram,size={}M,share=on", spec.memory_mib);
        command.args(["-object", &shared, "-machine", "memory-backend=ram"]);
    }
    for disk in &spec.disks {
        let on = |flag| if flag { "on" } else { "off" };
        if let Some(queues) = disk.vhost_user {
            let (id, socket) = (&disk.id, disk.path.display());
            command.arg("-chardev").arg(format!("socket,id={id}-socket,path={socket}"));
            let device = format!("vhost-user-blk-pci,chardev={id}-socket,id={id}-dev");
            command.arg("-device").arg(format!("{device},num-queues={queues}{}", disk.extra));
            continue;
        }
        command.arg("-blockdev").arg(format!(
            "driver=file,node-name={}-file,filename={},aio=io_uring,cache.direct={},read-only={}",
            disk.id,
            disk.path.display(),
            on(disk.direct),
            on(disk.read_only)
        ));
        command.arg("-blockdev").arg(format!(
            "driver=raw,node-name={0},file={0}-file,read-only={1}",
            disk.id,
            on(disk.read_only)
        ));
        command
            .arg("-device")
            .arg(format!("virtio-blk-pci,drive={0},id={0}-dev,iothread=io0", disk.id));
    }
    if let Some(uri) = &spec.incoming {
        command.args(["-incoming", uri]);
    }
    if spec.paused {
        command.arg("-S");
    }
    Ok(command)
}
