//! A host that can run Linux guests, on a machine that cannot: QEMU emulates an AMD processor with
//! virtualisation, Debian's kernel in it brings real KVM, and a scenario runs there with ferry's own program.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::console::{Console, Line};
use crate::linux::{self, Kernel};
use crate::{artifact, autopsy, binary, command, cpio, need, time};

/// Modules of the emulated host itself.
const MODULES: [&str; 1] = ["kvm_amd"];
/// Translated code that QEMU keeps; the default throws it away again and again.
const ACCELERATOR: &str = "tcg,thread=multi,tb-size=1024";
/// Without nested paging, so that KVM keeps shadow page tables. With it, QEMU 7.2 now and then walks the
/// host's page tables as if they were a guest's, right after a guest was left: a second exit then saves the
/// host's registers as the guest's, and about one verbose boot in eight hangs or ends in a triple fault. Shadow
/// page tables cost no measurable time here.
const PROCESSOR: &str = "max,+svm,-npt";

const CMDLINE: &str =
    "console=ttyS0 panic=-1 quiet loglevel=3 mitigations=off sysrq_always_enabled=1";

/// A host says that it is alive every few seconds, whatever becomes of the scenario (`host-init.sh`). One that
/// has not for so long is dead, whatever else it says: a processor of it stands still, and nothing that runs in
/// it can be judged. That happens once in a hundred or more; why is not known, which is what the look at its
/// processors is for.
const SILENCE: Duration = Duration::from_secs(60);
/// What it says.
const ALIVE: &str = "HOST alive";

/// Runs a scenario in an emulated host, in a second one if the first dies; every line that it prints goes to
/// `hear`.
///
/// # Errors
///
/// When the host cannot be made, the scenario fails, or the limit passes.
pub fn run(words: &[&str], limit: Duration, hear: &mut dyn FnMut(&Line)) -> Result<()> {
    let deadline = time::now() + limit;
    let end = match attempt(words, deadline, hear)? {
        End::Died(how) => {
            need::note(&format!("an emulated host died and {words:?} ran in a second one"));
            eprintln!("the emulated host is dead:\n{how}\ntrying another");
            attempt(words, deadline, hear)?
        }
        over @ End::Over(_) => over,
    };
    match end {
        End::Over(Ok(())) => Ok(()),
        End::Over(Err(why)) => bail!("{why}"),
        End::Died(how) => bail!("the emulated host is dead:\n{how}"),
    }
}

/// How an emulated host ended.
enum End {
    /// The scenario was over: whether it went well, or what it said.
    Over(Result<(), String>),
    /// It fell silent: what it did then.
    Died(String),
}

fn attempt(words: &[&str], deadline: Instant, hear: &mut dyn FnMut(&Line)) -> Result<End> {
    let folder = tempfile::Builder::new().prefix("ferry-host").tempdir()?;
    let socket = folder.path().join("qmp.sock");
    let mut qemu = start(words, folder.path(), &socket)?;
    qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = qemu.spawn().with_context(|| format!("cannot start {qemu:?}"))?;
    let (Some(output), Some(input)) = (child.stdout.take(), child.stdin.take()) else {
        bail!("the standard streams were not piped");
    };
    let console = Console::new(output, input);
    let outcome = watch(&console, deadline, hear);
    let silent = outcome.is_err() && child.try_wait()?.is_none();
    let found = silent.then(|| autopsy::of(&socket, "console", &console));
    // It powers itself off; it has nothing to lose when it does not.
    if !silent {
        time::poll("power-off", Duration::from_secs(10), || Ok(child.try_wait()?)).ok();
    }
    child.kill().ok();
    child.wait()?;
    match (outcome, found) {
        (Ok(Ok(())), _) => Ok(End::Over(Ok(()))),
        (Ok(Err(why)), _) => Ok(End::Over(Err(account(&why, &console)))),
        (Err(_), Some(found)) if time::now() < deadline => Ok(End::Died(found)),
        (Err(error), found) => Err(error.context(found.unwrap_or_default())),
    }
}

/// The emulator, ready to be started with its parts in `folder`.
fn start(words: &[&str], folder: &Path, socket: &Path) -> Result<Command> {
    let kernel = Kernel::fetch()?;
    let initrd = folder.join("host.cpio");
    let mut file = File::create(&initrd)?;
    file.write_all(&fs::read(base(&kernel)?)?)?;
    file.write_all(&overlay(words)?)?;

    let mut qemu = command::program("qemu-system-x86_64", "qemu-system-x86")?;
    qemu.args(["-M", "q35", "-accel", ACCELERATOR, "-cpu", PROCESSOR, "-smp", "2"]);
    qemu.args(["-m", "4096", "-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
    qemu.args(["-chardev", "stdio,id=console", "-serial", "chardev:console"]);
    qemu.arg("-kernel").arg(&kernel.bzimage).arg("-initrd").arg(&initrd);
    qemu.args(["-append", CMDLINE]);
    Ok(qemu)
}

/// Passes on what the scenario says until its last line, which tells the outcome.
fn watch(
    console: &Console,
    deadline: Instant,
    hear: &mut dyn FnMut(&Line),
) -> Result<Result<(), String>> {
    let mut next = 0;
    let mut dead = time::now() + SILENCE;
    loop {
        let patience = deadline.min(dead).saturating_duration_since(time::now());
        let what = "the end of the scenario";
        let line = console.wait(what, next, patience, |line| Some(line.clone()))?;
        next += 1;
        if line.text == ALIVE {
            dead = time::now() + SILENCE;
            continue;
        }
        hear(&line);
        if let Some(outcome) = outcome_of(&line.text) {
            return Ok(outcome);
        }
    }
}

/// Why a scenario failed, and what it said on the way; how far it was at each moment is for those who
/// watch it, and would bury the rest.
fn account(why: &str, console: &Console) -> String {
    let lines = console.lines();
    let told = lines.iter().map(|line| line.text.as_str());
    let told = told.filter(|line| !line.starts_with("PROGRESS ") && *line != ALIVE);
    let told: Vec<&str> = told.collect();
    format!("it said:\n{}\n{why}", told.join("\n"))
}

/// What the last line of a scenario says about it.
pub fn outcome_of(line: &str) -> Option<Result<(), String>> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("SCENARIO", "ok") => Some(Ok(())),
        ("SCENARIO", why) => Some(Err(why.to_owned())),
        _ => None,
    }
}

/// The part of the host that does not change with ferry: made once.
fn base(kernel: &Kernel) -> Result<PathBuf> {
    let recipe = artifact::workspace().join("resources/linux/host-init.sh");
    let (busybox, guest_initrd) = (linux::busybox()?, linux::initrd(kernel)?);
    let own_source = artifact::workspace().join("tests/src/emulated.rs");
    let key =
        artifact::fingerprint(&[&recipe, &busybox, &guest_initrd, &kernel.bzimage, &own_source])?;
    let folder = artifact::cached("emulated-host", &key, |folder| {
        let mut archive = cpio::Archive::new();
        archive.console();
        for place in ["proc", "sys", "tmp", "etc"] {
            archive.folder(place);
        }
        archive.link("etc/mtab", "/proc/mounts");
        archive.copy(&busybox, "bin/busybox")?;
        archive.copy(&recipe, "init")?;
        linux::add_modules(&mut archive, kernel, &MODULES)?;
        for name in ["e2fsck", "debugfs"] {
            archive.program(name, "e2fsprogs")?;
        }
        archive.copy(&kernel.bzimage, "guest/bzImage")?;
        archive.copy(&kernel.vmlinux, "guest/vmlinux")?;
        archive.copy(&guest_initrd, "guest/initrd.cpio")?;
        Ok(fs::write(folder.join("base.cpio"), archive.finish())?)
    })?;
    Ok(folder.join("base.cpio"))
}

/// What is under test, and what to do with it.
fn overlay(words: &[&str]) -> Result<Vec<u8>> {
    let programs = binary::programs()?;
    let mut archive = cpio::Archive::new();
    archive.copy(&programs.ferry, "bin/ferry")?;
    archive.copy(&programs.scenario, "bin/ferry-scenario")?;
    archive.copy(&linux::packed_root()?, "guest/root.packed")?;
    archive.copy(&crate::guest::bare_metal()?, "guest/bare-metal")?;
    archive.file("scenario", words.join("\n").as_bytes());
    Ok(archive.finish())
}

/// Runs a scenario on this very host, as a process of its own.
///
/// # Errors
///
/// When it cannot be started or fails.
pub fn run_here(words: &[&str], limit: Duration, hear: &mut dyn FnMut(&Line)) -> Result<()> {
    let (programs, kernel) = (binary::programs()?, Kernel::fetch()?);
    let mut command = Command::new(&programs.scenario);
    command
        .args(words)
        .env("FERRY_SCENARIO_FERRY", &programs.ferry)
        .env("FERRY_SCENARIO_BZIMAGE", &kernel.bzimage)
        .env("FERRY_SCENARIO_VMLINUX", &kernel.vmlinux)
        .env("FERRY_SCENARIO_INITRD", linux::initrd(&kernel)?)
        .env("FERRY_SCENARIO_ROOT", linux::packed_root()?)
        .env("FERRY_SCENARIO_BARE_METAL", crate::guest::bare_metal()?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let (Some(output), Some(input)) = (child.stdout.take(), child.stdin.take()) else {
        bail!("the standard streams were not piped");
    };
    let console = Console::new(output, input);
    let outcome = console.wait("the end of the scenario", 0, limit, |line| {
        hear(line);
        outcome_of(&line.text)
    });
    child.kill().ok();
    child.wait()?;
    outcome?.map_err(|why| anyhow!("{}", account(&why, &console)))
}
