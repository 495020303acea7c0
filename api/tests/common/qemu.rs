//! QEMU without a machine, as the oracle of how QMP answers. Needs neither KVM nor a disk.

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use super::peer::Peer;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

pub(crate) struct Qemu {
    child: Child,
    peer: Peer,
}

impl Qemu {
    /// Starts QEMU, or says why there is none.
    ///
    /// It speaks QMP on its standard input and output, which are a socket of ours: a listening socket
    /// of QEMU's may hang up on a client or forget its greeting when that comes very early.
    pub(crate) fn start() -> Option<Self> {
        if !Path::new(QEMU).exists() {
            eprintln!("skipped: {QEMU} is not installed");
            return None;
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let output = theirs.try_clone().unwrap();
        let child = Command::new(QEMU)
            .args(["-machine", "none", "-nodefaults", "-S", "-display", "none"])
            .args(["-chardev", "stdio,id=qmp,signal=off", "-mon", "chardev=qmp,mode=control"])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(output)))
            .spawn()
            .unwrap();
        Some(Qemu { child, peer: Peer::new(ours) })
    }

    pub(crate) fn peer(&mut self) -> &mut Peer {
        &mut self.peer
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
