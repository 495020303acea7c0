//! Signals as something to read: SIGINT, SIGTERM and SIGHUP end the process in order.

#![expect(unsafe_code, reason = "signal masks and signalfd are system calls")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use ferry_block::Executor;

use crate::error::{Error, Result};

/// The signals that ask the process to end.
const ENDING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// The descriptor that signals arrive at.
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Take the signals from here on. Call it before any thread is started: threads inherit the mask.
    ///
    /// # Errors
    /// The host refuses.
    pub fn take() -> Result<Signals> {
        Signals::take_all().map_err(|e| Error::host("take signals", &e))
    }

    fn take_all() -> io::Result<Signals> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: the call fills the set in.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: it has been filled in.
        let mut set: libc::sigset_t = unsafe { set.assume_init() };
        for signal in ENDING {
            // SAFETY: a valid set and a valid number.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: a valid set; nobody wants the old one.
        let error =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: a valid set.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else has.
        Ok(Signals { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Wait for a signal; its name.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub async fn next(&self, executor: &Executor) -> Result<&'static str> {
        loop {
            let ready = executor.readable(self.fd.as_raw_fd()).await;
            ready.map_err(|e| Error::host("wait for signals", &e))?;
            let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
            let len = size_of::<libc::signalfd_siginfo>();
            // SAFETY: the buffer has this length.
            let got = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), len) };
            if usize::try_from(got) != Ok(len) {
                continue;
            }
            // SAFETY: it was read whole.
            let info = unsafe { info.assume_init() };
            return Ok(match libc::c_int::try_from(info.ssi_signo) {
                Ok(libc::SIGINT) => "SIGINT",
                Ok(libc::SIGTERM) => "SIGTERM",
                _ => "SIGHUP",
            });
        }
    }
}
