//! Ctrl-C, counted.

use std::{
    ffi::c_void,
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

use libc::{c_int, siginfo_t};
use vmm_sys_util::signal::register_signal_handler;

static COUNT: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_signal(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    COUNT.fetch_add(1, Ordering::Relaxed);
}

/// Counts SIGINT and SIGTERM from now on instead of dying of them.
pub(super) fn catch() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        register_signal_handler(signal, on_signal)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    }
    Ok(())
}

/// How often the user has asked to stop.
pub(super) fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}
