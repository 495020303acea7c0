//! The terminal in raw mode: keys go to the guest as they are typed.

#![expect(unsafe_code, reason = "terminal modes are set by system calls on descriptors")]

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Raw mode; the mode from before comes back when this is dropped, and also when the process panics.
pub(super) struct RawMode {
    input: RawFd,
    before: libc::termios,
}

impl RawMode {
    /// Put the terminal behind `input` into raw mode; `None` when it is no terminal.
    pub(super) fn enter(input: &OwnedFd) -> io::Result<Option<RawMode>> {
        if !input.is_terminal() {
            return Ok(None);
        }
        // Not our descriptor's copy: this one stays open until the process ends.
        let (copy, input) = (input.as_raw_fd(), libc::STDIN_FILENO);
        let mut before = MaybeUninit::uninit();
        // SAFETY: the call fills in what it is given when it returns 0.
        if unsafe { libc::tcgetattr(copy, before.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it returned 0.
        let before: libc::termios = unsafe { before.assume_init() };
        let mut raw = before;
        raw.c_iflag &= !(libc::BRKINT | libc::ICRNL | libc::INPCK | libc::ISTRIP | libc::IXON);
        raw.c_lflag &= !(libc::ECHO | libc::ICANON | libc::IEXTEN | libc::ISIG);
        set(input, &raw)?;
        restore_on_panic(input, before);
        Ok(Some(RawMode { input, before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Err(e) = set(self.input, &self.before) {
            tracing::debug!("the terminal keeps its raw mode: {e}");
        }
    }
}

fn set(terminal: RawFd, mode: &libc::termios) -> io::Result<()> {
    // SAFETY: the call only reads the mode.
    match unsafe { libc::tcsetattr(terminal, libc::TCSANOW, mode) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A panic message in raw mode is a staircase, and the shell after it is unusable.
fn restore_on_panic(terminal: RawFd, mode: libc::termios) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Whether it works or not, the message matters more.
        drop(set(terminal, &mode));
        before(panic);
    }));
}
