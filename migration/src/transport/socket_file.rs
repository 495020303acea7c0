//! A listening Unix socket and its file, of which nobody else's takes harm.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A listening Unix socket; its file goes when it goes.
#[derive(Debug)]
pub struct SocketFile {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of our file: by the time we go another process may listen under the name.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Listens at `path`, in place of a socket that was left there. The file appears when somebody
    /// listens, not a moment before: scripts wait for it and then connect.
    pub(super) fn listen(path: &Path) -> io::Result<SocketFile> {
        if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            remove(path);
        }
        let mut hidden = path.as_os_str().to_owned();
        hidden.push("~");
        let hidden = PathBuf::from(hidden);
        remove(&hidden);
        let socket = match UnixListener::bind(&hidden) {
            Ok(socket) => {
                let shown = show(&hidden, path);
                remove(&hidden);
                shown?;
                socket
            }
            // The one byte more does not fit.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => UnixListener::bind(path)?,
            Err(error) => return Err(error),
        };
        let identity = fs::symlink_metadata(path).ok().as_ref().map(identity);
        Ok(SocketFile { socket, path: path.to_owned(), identity })
    }

    /// The socket.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path).ok().as_ref().map(identity);
        if found.is_some() && found == self.identity {
            remove(&self.path);
        }
    }
}

/// Gives the socket its name, unless somebody else has it.
fn show(hidden: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(hidden, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(io::Error::from_raw_os_error(libc::EADDRINUSE))
        }
        // A file system without links.
        Err(_no_links) => fs::rename(hidden, path),
        Ok(()) => Ok(()),
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!("removing {}: {error}", path.display());
    }
}
