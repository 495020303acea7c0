//! The one place where this crate starts threads.

use std::thread::JoinHandle;

use crate::error::{Error, Result};

/// Starts a named thread; the kernel shows the first 15 bytes of the name.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| Error::from_io(error, format!("cannot start the thread '{name}'")))
}
