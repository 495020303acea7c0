//! New files, before they become nodes.

use std::fs::File;
use std::os::fd::AsFd;

use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::sys;

/// What a file system is told to allocate at once where nobody says otherwise, in bytes: images that
/// grow by a cluster at a time would be scattered.
pub const DEFAULT_EXTENT_SIZE_HINT: u32 = 1 << 20;

/// Makes a file at `path` if there is none. One that is there keeps its content: somebody may be using
/// it, which only its locks tell.
pub async fn create(executor: &Executor, path: &str) -> Result<()> {
    let owned = path.to_owned();
    let made = executor.engine().blocking(move || {
        let mut open = File::options();
        open.create(true).write(true).truncate(false).open(owned).map(drop)
    });
    made.await.map_err(|error| Error::from_io(error, format!("Could not create '{path}'")))
}

/// Tells the file system to allocate so many bytes at once for the empty file at `path`. Most file
/// systems have no such thing, and then nothing happens.
pub async fn hint_extent_size(executor: &Executor, path: &str, bytes: u32) {
    let owned = path.to_owned();
    let set = move || sys::set_extent_size(File::options().write(true).open(owned)?.as_fd(), bytes);
    if let Err(error) = executor.engine().blocking(set).await {
        tracing::debug!("the extent size of '{path}' stays as it is: {error}");
    }
}
