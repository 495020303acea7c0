//! Listening Unix sockets and their names in the file system.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// Most bytes of a socket's path: what an address holds, less its NUL (unix(7)).
const LONGEST: usize = 107;

/// The file of a socket that listens. It goes with this, unless it is another's by then.
pub struct SocketName {
    path: PathBuf,
    /// Device and inode: a successor may have taken the name over.
    identity: Option<(u64, u64)>,
}

impl SocketName {
    /// A socket that listens at `path`; neither it nor this call blocks. One that a process left behind is replaced, one
    /// in use is not.
    ///
    /// # Errors
    /// `AddrInUse` if somebody listens there or something else has the name, or what the host says.
    pub fn listen(path: &Path) -> io::Result<(UnixListener, SocketName)> {
        if path.as_os_str().as_bytes().len() > LONGEST {
            let text =
                format!("the path of a socket has at most {LONGEST} bytes; choose a shorter one");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let in_use = |text| Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        if let Ok(there) = path.symlink_metadata() {
            if !there.file_type().is_socket() {
                return in_use("it is there and is no socket; choose another path");
            }
            if is_alive(path)? {
                return in_use("another process listens there; choose another path");
            }
            fs::remove_file(path)?;
        }
        let socket = UnixListener::bind(path)?;
        let name = SocketName::bound(path);
        socket.set_nonblocking(true)?;
        Ok((socket, name))
    }

    /// The name that a socket was just bound to.
    fn bound(path: &Path) -> SocketName {
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

/// Whether somebody listens there, also one who has no time for another client.
fn is_alive(path: &Path) -> io::Result<bool> {
    let client = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    match client.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_over_from_the_dead_only() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path)?);
        let (_socket, name) = SocketName::listen(&path)?;
        let said = |path: &Path| SocketName::listen(path).map(drop).unwrap_err().to_string();
        assert!(said(&path).contains("another process listens there"));
        drop(name);
        fs::write(&path, "a file")?;
        assert!(said(&path).contains("is no socket"));
        assert_eq!(fs::read(&path)?, b"a file");
        let long = folder.path().join("x".repeat(LONGEST));
        assert!(said(&long).contains("at most 107 bytes"));
        Ok(())
    }

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
