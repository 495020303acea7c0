//! Going to the background: the process that was started ends when the one behind it is ready.

#![expect(unsafe_code, reason = "fork, setsid and dup2 are system calls")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

use crate::error::{Error, Result};

/// Which of the two processes this is.
pub(super) enum Side {
    /// The one that was started; whether the other one is ready. If not, it has said why.
    Started { ready: bool },
    /// The one in the background.
    Behind(Ready),
}

/// Tells the process that was started.
pub(super) struct Ready(io::PipeWriter);

/// Makes a second process. Call it before there are threads: they would not come along.
///
/// # Errors
/// The host has no process left.
pub(super) fn fork() -> Result<Side> {
    let failed = |e: io::Error| Error::host("go to the background", &e);
    let (mut reader, writer) = io::pipe().map_err(failed)?;
    // SAFETY: there is one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(failed(io::Error::last_os_error())),
        0 => {
            drop(reader);
            // SAFETY: no memory is involved. It fails for a leader of a group, which a child is not.
            unsafe { libc::setsid() };
            Ok(Side::Behind(Ready(writer)))
        }
        _ => {
            drop(writer);
            let mut word = Vec::new();
            reader.read_to_end(&mut word).map_err(failed)?;
            Ok(Side::Started { ready: !word.is_empty() })
        }
    }
}

impl Ready {
    /// Lets go of the terminal and of the process that was started.
    ///
    /// # Errors
    /// The host refuses.
    pub(super) fn tell(mut self) -> Result<()> {
        let failed = |e: io::Error| Error::host("go to the background", &e);
        let null = File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
        for stream in 0..3 {
            // SAFETY: both are numbers of descriptors; the standard streams are nobody's objects.
            if unsafe { libc::dup2(null.as_raw_fd(), stream) } < 0 {
                return Err(failed(io::Error::last_os_error()));
            }
        }
        self.0.write_all(b"1").map_err(failed)
    }
}
