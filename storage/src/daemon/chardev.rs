//! The character devices of the command line: where monitors are to be reached.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use ferry_api::QmpError;
use ferry_api::command::ChardevInfo;
use ferry_block::keyval::split;

use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Listener;

/// A device with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chardev {
    pub(super) id: String,
    pub(super) backend: Backend,
}

/// What a device is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Backend {
    /// Clients connect to this socket.
    Listen(PathBuf),
    /// One client listens there and is connected to.
    Connect(PathBuf),
    /// Standard input and output.
    Stdio,
}

/// A device that can be used.
pub(super) enum Opened {
    Listener(Listener),
    Connection(Connection),
}

impl Chardev {
    /// Reads one `--chardev`.
    pub(super) fn parse(text: &str) -> std::result::Result<Chardev, QmpError> {
        let parts = split(text);
        let (mut stdio, mut id, mut path, mut server) = (false, None, None, false);
        for (index, part) in parts.iter().enumerate() {
            // A name by itself switches something on, and with `no` before it off.
            let (key, value) = part.split_once('=').unwrap_or((part, "on"));
            match (key, value) {
                ("socket", "on") if index == 0 => {}
                ("stdio", "on") if index == 0 => stdio = true,
                ("backend", "socket") => {}
                ("backend", "stdio") => stdio = true,
                ("id", id_text) => id = Some(id_text.to_owned()),
                ("path", path_text) if !stdio => path = Some(PathBuf::from(path_text)),
                ("server", "on" | "yes" | "true") if !stdio => server = true,
                ("server", "off" | "no" | "false") if !stdio => server = false,
                // Nobody is ever waited for.
                ("wait", _) | ("nowait", "on") if !stdio => {}
                _ => return Err(QmpError::generic(format!("'{part}' is not supported"))),
            }
        }
        match (id, stdio, path, server) {
            (Some(id), true, _, _) => Ok(Chardev { id, backend: Backend::Stdio }),
            (Some(id), false, Some(path), true) => {
                Ok(Chardev { id, backend: Backend::Listen(path) })
            }
            (Some(id), false, Some(path), false) => {
                Ok(Chardev { id, backend: Backend::Connect(path) })
            }
            _ => Err(QmpError::generic(
                "give socket,id=ID,path=PATH with server=on or server=off, or stdio,id=ID",
            )),
        }
    }

    /// Listens or connects.
    pub(super) fn open(&self) -> Result<Opened> {
        match &self.backend {
            Backend::Listen(path) => Listener::bind(path).map(Opened::Listener),
            Backend::Connect(path) => {
                let connected = UnixStream::connect(path).and_then(Connection::socket);
                connected.map(Opened::Connection).map_err(|error| {
                    let (id, path) = (&self.id, path.display());
                    let context = format!("--chardev {id}: Failed to connect to '{path}': {error}");
                    Error::new(ErrorKind::Config, context)
                })
            }
            Backend::Stdio => Connection::stdio().map(Opened::Connection).map_err(|error| {
                let context = format!(
                    "--chardev {}: standard input or output cannot be opened again ({error}); \
                         give it pipes or a terminal of your own, or use a socket",
                    self.id
                );
                Error::new(ErrorKind::Config, context)
            }),
        }
    }

    /// What `query-chardev` says of it.
    pub(super) fn info(&self) -> ChardevInfo {
        match &self.backend {
            Backend::Listen(path) => ChardevInfo::listening(&self.id, path),
            Backend::Connect(path) => {
                ChardevInfo::new(&self.id, &format!("unix:{}", path.display()))
            }
            Backend::Stdio => ChardevInfo::new(&self.id, "stdio"),
        }
    }
}
