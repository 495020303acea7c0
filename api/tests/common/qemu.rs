//! QEMU without a machine, as the oracle of how QMP answers. Needs neither KVM nor a disk.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

pub(crate) struct Qemu {
    child: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Qemu {
    /// Starts QEMU, or says why there is none.
    pub(crate) fn start() -> Option<Self> {
        if !Path::new(QEMU).exists() {
            eprintln!("skipped: {QEMU} is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp.sock");
        let child = Command::new(QEMU)
            .args(["-machine", "none", "-nodefaults", "-S", "-display", "none", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let qemu = Qemu { child, socket, _dir: dir };
        for _ in 0..500 {
            if UnixStream::connect(&qemu.socket).is_ok() {
                return Some(qemu);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("QEMU did not open its socket");
    }

    pub(crate) fn path(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
