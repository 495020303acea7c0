//! Memory that is taken away: a front end shrinks the file under a mapping of ours, and touching what is gone
//! is a SIGBUS, which by default ends the process with all its other exports.
//!
//! Files sealed against shrinking, which QEMU's are, cannot do this; but not every monitor seals its own, and
//! files of `/dev/shm` or of huge pages cannot be sealed at all. So the handler puts memory of our own in the
//! whole mapping's place, where the access goes on, and hangs up on the front end.
#![expect(unsafe_code, reason = "a signal handler that maps memory")]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use ferry_block::{Error, Result};
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::register_signal_handler;

use crate::wire::bad;

/// Most mappings at one time, of all front ends.
const MAX_PLACES: usize = 1024;

/// A mapping that may lose its memory. All zero where there is none.
struct Place {
    start: AtomicUsize,
    len: AtomicUsize,
    /// The front end's connection.
    socket: AtomicI32,
    lost: AtomicBool,
}

static PLACES: [Place; MAX_PLACES] = [const {
    Place {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        socket: AtomicI32::new(0),
        lost: AtomicBool::new(false),
    }
}; MAX_PLACES];

/// Held while places are given out.
static GIVING: Mutex<()> = Mutex::new(());

/// Watches over a mapping until it is dropped, which must be before the mapping and the connection go.
pub(crate) struct Guard(&'static Place);

impl Guard {
    /// Watches over `len` bytes of shared memory at `start`; `socket` is shut down when they are gone.
    ///
    /// # Errors
    /// There are too many mappings, or signals cannot be handled.
    pub(crate) fn new(start: *const u8, len: usize, socket: RawFd) -> Result<Guard> {
        static HANDLING: OnceLock<std::result::Result<(), i32>> = OnceLock::new();
        let handling = HANDLING.get_or_init(|| {
            register_signal_handler(libc::SIGBUS, on_sigbus).map_err(|error| error.errno())
        });
        handling.map_err(|errno| {
            let error = std::io::Error::from_raw_os_error(errno);
            Error::from_io(error, "SIGBUS cannot be handled")
        })?;
        let giving = GIVING.lock().unwrap_or_else(PoisonError::into_inner);
        let free = PLACES.iter().find(|place| place.start.load(Ordering::Acquire) == 0);
        let place = free.ok_or_else(|| bad("too much memory of too many front ends"))?;
        place.len.store(len, Ordering::Release);
        place.socket.store(socket, Ordering::Release);
        place.lost.store(false, Ordering::Release);
        place.start.store(start.addr(), Ordering::Release);
        drop(giving);
        Ok(Guard(place))
    }

    /// Whether memory of it was gone when we touched it.
    pub(crate) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.start.store(0, Ordering::Release);
    }
}

/// Runs on the thread that touched the memory, in the middle of that.
extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes the facts of this signal.
    let info = unsafe { &*info };
    // SAFETY: those of a SIGBUS have an address.
    let addr = unsafe { info.si_addr() }.addr();
    let hit = |place: &&Place| {
        let start = place.start.load(Ordering::Acquire);
        let len = place.len.load(Ordering::Acquire);
        start != 0 && addr.checked_sub(start).is_some_and(|inside| inside < len)
    };
    if !PLACES.iter().find(hit).is_some_and(replace) {
        // Not ours: what happened happens again, with the usual end.
        // SAFETY: one system call that may be made in a handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Puts memory of our own there; whether that worked.
fn replace(place: &Place) -> bool {
    let start = std::ptr::without_provenance_mut(place.start.load(Ordering::Acquire));
    let len = place.len.load(Ordering::Acquire);
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the place is a mapping whose guard lives, so nothing else is there; whoever uses it expects
    // others to change its bytes at any time.
    let mapped = unsafe { libc::mmap(start, len, access, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    place.lost.store(true, Ordering::Release);
    // SAFETY: one system call that may be made in a handler; the connection is open while its guard lives.
    unsafe { libc::shutdown(place.socket.load(Ordering::Acquire), libc::SHUT_RDWR) };
    true
}
