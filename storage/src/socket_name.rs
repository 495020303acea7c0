//! The name of a listening Unix socket in the file system.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file of a socket that listens. It goes with this, unless it is another's by then.
pub struct SocketName {
    path: PathBuf,
    /// Device and inode: a successor may have taken the name over.
    identity: Option<(u64, u64)>,
}

impl SocketName {
    /// The name that a socket was just bound to.
    pub fn bound(path: &Path) -> SocketName {
        SocketName { path: path.to_owned(), identity: identity(path) }
    }
}

impl Drop for SocketName {
    fn drop(&mut self) {
        let path = self.path.display();
        if self.identity.is_none() || identity(&self.path) != self.identity {
            tracing::debug!(%path, "the socket is not ours any more");
        } else if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%path, %error, "the socket could not be removed");
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_name_goes_with_its_socket_but_not_when_a_successor_has_it() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("socket");
        let _first = UnixListener::bind(&path)?;
        let name = SocketName::bound(&path);
        fs::remove_file(&path)?;
        let _second = UnixListener::bind(&path)?;
        let successor = SocketName::bound(&path);
        drop(name);
        assert!(path.exists(), "the successor lost its socket");
        drop(successor);
        assert!(!path.exists(), "a socket was left behind");
        Ok(())
    }
}
