//! A Unix socket as serial cable: whoever connects is plugged in, one at a time.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ferry_block::Executor;
use ferry_block::net::SocketName;
use ferry_devices::serial::FdSink;

use super::{Cable, Nobody, SharedSerial, lock};
use crate::error::{Error, ErrorKind, Result};

/// A socket in the file system that goes when it is dropped.
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Only the first of several handles takes the file with it.
    _name: Option<SocketName>,
}

impl Listener {
    pub(super) fn bind(path: &Path) -> Result<Listener> {
        let failed = |e| {
            let context = format!("cannot listen for the serial port at {}", path.display());
            Error::because(ErrorKind::Config, context, e)
        };
        let (socket, name) = SocketName::listen(path).map_err(failed)?;
        Ok(Listener { socket, path: path.to_owned(), _name: Some(name) })
    }

    pub(super) fn try_clone(&self) -> Result<Listener> {
        let socket =
            self.socket.try_clone().map_err(|e| Error::host("share the serial socket", e))?;
        Ok(Listener { socket, path: self.path.clone(), _name: None })
    }

    /// Plug in one client after the other, for ever.
    pub(super) async fn serve(
        &self,
        executor: &Executor,
        cable: &Rc<Cable>,
        serial: &SharedSerial,
    ) {
        loop {
            if let Err(e) = executor.readable(self.socket.as_raw_fd()).await {
                tracing::error!("serial socket {}: {e}", self.path.display());
                return;
            }
            let client = match self.socket.accept() {
                Ok((client, _)) => plug(&client, cable, serial),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => Err(e),
            };
            match client {
                Ok(input) => {
                    cable.drain(executor, serial);
                    cable.carry(executor, &input, serial, |_| false).await;
                    cable.output.set(None);
                    lock(serial).set_sink(Box::new(Nobody));
                }
                Err(e) => tracing::warn!("serial socket {}: {e}", self.path.display()),
            }
        }
    }
}

/// Let the serial port write to the client; gives the descriptor to read from.
fn plug(client: &UnixStream, cable: &Cable, serial: &SharedSerial) -> io::Result<File> {
    let sink = FdSink::new(OwnedFd::from(client.try_clone()?))?;
    cable.output.set(Some(sink.as_raw_fd()));
    lock(serial).set_sink(Box::new(sink));
    Ok(File::from(OwnedFd::from(client.try_clone()?)))
}
