//! The NBD server: a listener and the exports that its clients may choose from.
//!
//! It lives on the thread of its graph, and so do all its connections. One graph serves them all,
//! so a flush on one connection covers what was written on the others.

use std::cell::RefCell;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::backend::{BackendKind, BlockBackend};
use crate::edge::{EdgePerms, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::BlockGraph;
use crate::net::{SocketAddress, TlsCreds};

/// Where and how to serve.
#[derive(Clone)]
pub struct ServerOptions {
    /// Where to listen.
    pub address: SocketAddress,
    /// With credentials of a server, clients must use TLS.
    pub tls: Option<Rc<TlsCreds>>,
    /// How many clients may be connected at once; 0 for any number.
    pub max_connections: u32,
}

impl ServerOptions {
    /// Any number of clients, without TLS.
    pub fn new(address: SocketAddress) -> ServerOptions {
        ServerOptions { address, tls: None, max_connections: 0 }
    }
}

/// What to export and how: QMP's `BlockExportOptions` of type `nbd`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ExportOptions {
    /// Identifies the export in commands and events.
    pub id: String,
    /// The node.
    pub node_name: String,
    /// Name that clients ask for; the node's name if there is none.
    #[serde(default)]
    pub name: Option<String>,
    /// What it is, for people.
    #[serde(default)]
    pub description: Option<String>,
    /// Whether clients may write.
    #[serde(default)]
    pub writable: bool,
    /// Whether every write is durable before it is answered.
    #[serde(default)]
    pub writethrough: bool,
    /// Dirty bitmaps that clients may query as `qemu:dirty-bitmap:NAME`.
    #[serde(default)]
    pub bitmaps: Vec<String>,
    /// Whether clients may query `qemu:allocation-depth`.
    #[serde(default)]
    pub allocation_depth: bool,
}

impl ExportOptions {
    /// A read-only export of a node under the node's name.
    pub fn new(id: impl Into<String>, node_name: impl Into<String>) -> ExportOptions {
        ExportOptions {
            id: id.into(),
            node_name: node_name.into(),
            name: None,
            description: None,
            writable: false,
            writethrough: false,
            bitmaps: Vec::new(),
            allocation_depth: false,
        }
    }
}

/// What to do with clients of an export that is taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RemoveMode {
    /// Keep the export while there are any.
    #[default]
    Safe,
    /// Disconnect them.
    Hard,
}

/// An export as `query-block-exports` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its id.
    pub id: String,
    /// The node it exports now.
    pub node_name: String,
    /// Whether it waits for requests to finish before it goes.
    pub shutting_down: bool,
    /// How many clients use it.
    pub clients: usize,
}

/// A running server; clones are the same one. [`stop`](Server::stop) it before the last one goes.
#[derive(Clone)]
pub struct Server(Rc<Inner>);

type OnDeleted = Box<dyn Fn(&str)>;

struct Inner {
    graph: BlockGraph,
    options: ServerOptions,
    exports: RefCell<Vec<Rc<Export>>>,
    on_deleted: RefCell<Option<OnDeleted>>,
}

struct Export {
    options: ExportOptions,
    backend: BlockBackend,
}

impl Server {
    /// Listens. With TLS credentials they must be those of a server.
    pub async fn start(graph: &BlockGraph, options: ServerOptions) -> Result<Server> {
        Ok(Server(Rc::new(Inner {
            graph: graph.clone(),
            options,
            exports: RefCell::default(),
            on_deleted: RefCell::default(),
        })))
    }

    /// Where it listens: with the port that the host chose, if it was asked to.
    pub fn address(&self) -> &SocketAddress {
        &self.0.options.address
    }

    /// Calls `hook` with the id of every export that is gone: QMP's `BLOCK_EXPORT_DELETED`.
    pub fn on_deleted(&self, hook: impl Fn(&str) + 'static) {
        self.0.on_deleted.replace(Some(Box::new(hook)));
    }

    /// Adds an export. A writable one of an inactive node activates the node.
    pub async fn add(&self, options: ExportOptions) -> Result<()> {
        let graph = &self.0.graph;
        if self.0.exports.borrow().iter().any(|export| export.options.id == options.id) {
            let context = format!("Block export id '{}' is already in use", options.id);
            return Err(Error::new(ErrorKind::AlreadyExists, context));
        }
        let node = graph.device_or_node(&options.node_name)?;
        let shares = Perms::ALL;
        let needs = if options.writable {
            Perms::CONSISTENT_READ | Perms::WRITE
        } else {
            Perms::CONSISTENT_READ
        };
        let perms = EdgePerms { needs, shares };
        let backend = graph.add_backend(BackendKind::Export, &options.id, &node, perms)?;
        self.0.exports.borrow_mut().push(Rc::new(Export { options, backend }));
        Ok(())
    }

    /// Takes an export away; returns when it is gone and its node is free.
    pub async fn remove(&self, id: &str, _mode: RemoveMode) -> Result<()> {
        let place = self.0.exports.borrow().iter().position(|export| export.options.id == id);
        let Some(place) = place else {
            let context = format!("Export '{id}' is not found");
            return Err(Error::new(ErrorKind::NotFound, context));
        };
        drop(self.0.exports.borrow_mut().remove(place));
        if let Some(hook) = &*self.0.on_deleted.borrow() {
            hook(id);
        }
        Ok(())
    }

    /// The exports, in the order they were added.
    pub fn exports(&self) -> Vec<ExportInfo> {
        let exports = self.0.exports.borrow();
        let info = |export: &Rc<Export>| ExportInfo {
            id: export.options.id.clone(),
            node_name: export.backend.node().name().to_owned(),
            shutting_down: false,
            clients: 0,
        };
        exports.iter().map(info).collect()
    }

    /// Disconnects everybody, removes all exports and stops listening. Returns when all of that
    /// has happened.
    pub async fn stop(&self) -> Result<()> {
        for export in self.exports() {
            self.remove(&export.id, RemoveMode::Hard).await?;
        }
        Ok(())
    }
}
