//! What most tests begin with: a folder for images and sockets, ferry, and the bare-metal guest.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::console::number;
use crate::image;
use crate::qmp::Qmp;
use crate::vm::{Disk, Monitor, Spec, Vm};
use crate::{guest, time};

/// Nothing here takes longer, unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A folder, ferry, and the guest.
pub struct Lab {
    folder: TempDir,
    monitor: Monitor,
    guest: PathBuf,
}

/// What the guest said of its disk at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Blocks written.
    pub written: u64,
    /// The digest over them.
    pub digest: u64,
    /// Requests completed.
    pub ops: u64,
}

impl Lab {
    /// Builds what is not built yet. The folder is on a disk, not in memory, so that O_DIRECT works in it.
    ///
    /// # Errors
    ///
    /// When ferry or the guest cannot be built.
    pub fn new() -> Result<Lab> {
        let place = crate::artifact::target().join("artifacts");
        std::fs::create_dir_all(&place)?;
        // A socket's path must be short; so the folder's name is.
        let folder = tempfile::Builder::new().prefix("lab").tempdir_in(place)?;
        Ok(Lab { folder, monitor: Monitor::ferry()?, guest: guest::bare_metal()? })
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An empty image.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn image(&self, name: &str, mib: u64) -> Result<PathBuf> {
        let path = self.path(name);
        image::sparse(&path, mib << 20)?;
        Ok(path)
    }

    /// The guest with 128 MiB and these words; no disk yet.
    pub fn spec(&self, words: &str) -> Spec {
        Spec::new(&self.guest, words, 128)
    }

    /// The guest with one empty disk `disk0` and these words.
    ///
    /// # Errors
    ///
    /// When the image cannot be made.
    pub fn with_disk(&self, words: &str, mib: u64) -> Result<(Spec, PathBuf)> {
        let path = self.image("disk0.raw", mib)?;
        Ok((self.spec(words).disk(Disk::new("disk0", &path)), path))
    }

    /// The same in a qcow2 image.
    ///
    /// # Errors
    ///
    /// When the image cannot be made.
    pub fn with_qcow2(&self, words: &str, mib: u64) -> Result<(Spec, PathBuf)> {
        let path = self.path("disk0.qcow2");
        image::create_qcow2(&path, mib << 20)?;
        let mut disk = Disk::new("disk0", &path);
        disk.extra = ",format=qcow2".into();
        Ok((self.spec(words).disk(disk), path))
    }

    /// Starts ferry.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(&self, spec: &Spec) -> Result<Vm> {
        Vm::start(&self.monitor, spec)
    }

    /// Starts ferry and waits until the guest works.
    ///
    /// # Errors
    ///
    /// When it does not come up.
    pub fn run(&self, spec: &Spec) -> Result<Vm> {
        let vm = self.start(spec)?;
        vm.console.wait_word("READY", LIMIT).with_context(|| vm.complaints())?;
        Ok(vm)
    }

    /// ferry's program.
    ///
    /// # Errors
    ///
    /// Never for a lab.
    pub fn program(&self) -> Result<&Path> {
        match &self.monitor {
            Monitor::Ferry(program) => Ok(program),
            other => bail!("not ferry: {other:?}"),
        }
    }

    /// Starts a destination for a guest and waits until it listens at a socket in the folder; gives its address.
    ///
    /// # Errors
    ///
    /// When it does not come up.
    pub fn destination(&self, spec: &Spec, name: &str) -> Result<(Vm, String)> {
        let socket = self.path(name);
        let uri = format!("unix:{}", socket.display());
        let vm = self.start(&spec.incoming(&uri))?;
        time::poll("a listening destination", LIMIT, || Ok(socket.exists().then_some(())))
            .with_context(|| vm.complaints())?;
        Ok((vm, uri))
    }
}

/// Tells the guest to check everything and to end; all must be well.
///
/// # Errors
///
/// When the guest found something wrong, or does not answer.
pub fn finish(vm: &Vm) -> Result<()> {
    vm.console.send(b"q")?;
    finished(vm)
}

/// Waits for the guest's own end; all must be well.
///
/// # Errors
///
/// As [`finish`].
pub fn finished(vm: &Vm) -> Result<()> {
    let done = vm.console.wait_word("DONE", LIMIT).with_context(|| vm.complaints())?;
    ensure!(done.text == "DONE status=0", "the guest is not content:\n{}", vm.console.text());
    Ok(())
}

/// What the guest said of its disk.
///
/// # Errors
///
/// When it said nothing.
pub fn verdict(vm: &Vm) -> Result<Verdict> {
    let line = vm.console.wait_word("DISK", LIMIT)?.text;
    ensure!(line.starts_with("DISK ok "), "{line}");
    let [written, digest, ops] = ["written", "digest", "ops"].map(|name| number(&line, name));
    Ok(Verdict { written: written?, digest: digest?, ops: ops? })
}

/// The image must hold exactly what the guest wrote.
///
/// # Errors
///
/// When it does not.
pub fn holds(image: &Path, verdict: Verdict, block_bytes: u64) -> Result<()> {
    let found = image::examine(image, block_bytes)?;
    ensure!(verdict.written > 0, "the guest wrote nothing: {verdict:?}");
    ensure!(
        (found.written, found.digest) == (verdict.written, verdict.digest),
        "{} holds {found:?}, the guest wrote {verdict:?}",
        image.display()
    );
    Ok(())
}

/// The qcow2 image must be sound, and hold exactly what the guest wrote; its process has ended.
///
/// # Errors
///
/// When it does not.
pub fn qcow2_holds(image: &Path, verdict: Verdict, block_bytes: u64) -> Result<()> {
    let raw = image.with_extension("copy");
    image::check_qcow2(image)?;
    image::to_raw(image, &raw)?;
    holds(&raw, verdict, block_bytes)
}

/// Waits until `query-migrate` shows an end state; gives the whole answer.
///
/// # Errors
///
/// When there is none in time.
pub fn migrated(qmp: &mut Qmp) -> Result<Value> {
    qmp.poll("query-migrate", LIMIT, |answer| {
        let state = answer["status"].as_str().unwrap_or_default();
        let over = ["completed", "failed", "cancelled"].contains(&state);
        Ok(over.then(|| answer.clone()))
    })
}

/// The guest's run state.
///
/// # Errors
///
/// When QMP fails.
pub fn state(qmp: &mut Qmp) -> Result<String> {
    let answer = qmp.call("query-status", json!({}))?;
    Ok(answer["status"].as_str().unwrap_or_default().to_owned())
}
