//! The NBD server: a listener and the exports that its clients may choose from.
//!
//! It lives on the thread of its graph, and so do all its connections. One graph serves them all,
//! so a flush on one connection covers what was written on the others.

mod connection;
mod export;
mod handshake;
mod input;
mod negotiate;
mod reply;
mod request;
mod status;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::executor::{race, within};
use crate::graph::BlockGraph;
use crate::net::{Listener, SocketAddress, Stream, TlsCreds, TlsEndpoint};
use crate::notify::Notify;

use connection::Connection;
pub use export::Export;
use negotiate::{Agreement, Catalogue, Offer};

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

/// A running server; clones are the same one. [`stop`](Server::stop) it before the last one goes.
#[derive(Clone)]
pub struct Server(Rc<Inner>);

struct Inner {
    graph: BlockGraph,
    address: SocketAddress,
    tls: Option<Rc<TlsCreds>>,
    max_connections: usize,
    exports: RefCell<Vec<Rc<Export>>>,
    clients: Cell<usize>,
    stopping: Cell<bool>,
    listening: Cell<bool>,
    /// Whether clients that connect are served yet.
    open: Cell<bool>,
    /// A client came or left, or the server opens or stops.
    changed: Notify,
}

impl Server {
    /// Listens, but lets clients wait until it is [opened](Server::open): whoever connects sees all exports that
    /// were added before. TLS credentials must be those of a server.
    pub async fn bind(graph: &BlockGraph, options: ServerOptions) -> Result<Server> {
        if let Some(tls) = &options.tls
            && tls.endpoint() != TlsEndpoint::Server
        {
            let context = "Expecting TLS credentials with a server endpoint";
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        let executor = graph.executor();
        let listener = Listener::bind(executor, &options.address).await?;
        let max = usize::try_from(options.max_connections).unwrap_or(usize::MAX);
        let server = Server(Rc::new(Inner {
            graph: graph.clone(),
            address: listener.address().clone(),
            tls: options.tls,
            max_connections: if max == 0 { usize::MAX } else { max },
            exports: RefCell::default(),
            clients: Cell::new(0),
            stopping: Cell::new(false),
            listening: Cell::new(true),
            open: Cell::new(false),
            changed: Notify::new(),
        }));
        let this = server.clone();
        drop(executor.spawn(async move {
            this.listen(listener).await;
            this.0.listening.set(false);
            this.0.changed.notify_all();
        }));
        Ok(server)
    }

    /// Serves whoever connects or has connected.
    pub fn open(&self) {
        self.0.open.set(true);
        self.0.changed.notify_all();
    }

    /// Where it listens: with the port that the host chose, if it was asked to.
    pub fn address(&self) -> &SocketAddress {
        &self.0.address
    }

    /// Adds an export. A writable one of an inactive node activates the node.
    ///
    /// # Errors
    /// Another one has its name, the node is not to be had so, or there are no such bitmaps.
    pub async fn add(&self, options: ExportOptions) -> Result<Rc<Export>> {
        self.check_new(&options)?;
        let export = Export::new(&self.0.graph, options).await?;
        // Somebody may have been faster.
        self.check_new(&export.options)?;
        self.0.exports.borrow_mut().push(Rc::clone(&export));
        Ok(export)
    }

    fn check_new(&self, options: &ExportOptions) -> Result<()> {
        let taken = |text: String| Err(Error::new(ErrorKind::AlreadyExists, text));
        if self.0.stopping.get() {
            return Err(Error::new(ErrorKind::Cancelled, "NBD server is shutting down"));
        }
        let name = options.name.as_deref().unwrap_or(&options.node_name);
        for export in self.0.exports.borrow().iter() {
            if export.name() == name {
                return taken(format!("NBD server already has export named '{name}'"));
            }
        }
        Ok(())
    }

    /// Takes an export away and disconnects its clients; returns when none of their requests is under way.
    /// Its node is free when `export` is dropped.
    pub async fn remove(&self, export: &Rc<Export>) {
        export.close().await;
        self.0.exports.borrow_mut().retain(|other| !Rc::ptr_eq(other, export));
        self.0.changed.notify_all();
    }

    /// Takes no more clients and no more exports.
    pub fn retire(&self) {
        self.0.stopping.set(true);
        self.0.changed.notify_all();
    }

    /// Stops listening, disconnects everybody and removes all exports. Returns when all of that
    /// has happened.
    pub async fn stop(&self) {
        self.retire();
        let exports = self.0.exports.borrow().clone();
        for export in exports {
            self.remove(&export).await;
        }
        let gone = || {
            let deserted = self.0.clients.get() == 0 && self.0.exports.borrow().is_empty();
            deserted && !self.0.listening.get()
        };
        self.0.changed.wait_until(gone).await;
    }

    async fn listen(&self, listener: Listener) {
        let inner = &self.0;
        loop {
            let has_room = || inner.open.get() && inner.clients.get() < inner.max_connections;
            let may_come = || inner.stopping.get() || has_room();
            inner.changed.wait_until(may_come).await;
            let stop = inner.changed.wait_until(|| inner.stopping.get());
            match race(listener.accept(), stop).await {
                None => return,
                Some(Ok(stream)) => {
                    inner.clients.set(inner.clients.get() + 1);
                    let server = self.clone();
                    drop(inner.graph.executor().spawn(async move {
                        server.serve(stream).await;
                        server.0.clients.set(server.0.clients.get() - 1);
                        server.0.changed.notify_all();
                    }));
                }
                Some(Err(error)) => {
                    tracing::error!("NBD server on {}: {error}", inner.address);
                    return;
                }
            }
        }
    }

    /// One client, from its first byte to its last.
    async fn serve(&self, stream: Stream) {
        let (inner, peer) = (&self.0, stream.peer());
        let executor = inner.graph.executor();
        let haggling = handshake::run(self, stream);
        let haggling = within(executor, handshake::LIMIT, haggling);
        let stop = inner.changed.wait_until(|| inner.stopping.get());
        let (stream, agreement) = match race(haggling, stop).await {
            None => return,
            Some(None) => {
                tracing::info!("{peer} took too long to choose an export");
                return;
            }
            Some(Some(Ok(None))) => return,
            Some(Some(Ok(Some(agreed)))) => agreed,
            Some(Some(Err(error))) => {
                tracing::warn!("{peer} is refused: {error}");
                return;
            }
        };
        // It may have gone while the client was being told of it.
        let Some(export) = self.agreed(&agreement) else { return };
        let client = Connection::new(executor.clone(), stream, Rc::clone(&export), agreement);
        export.enter(&client);
        if let Err(error) = client.serve().await {
            tracing::info!("{peer}, a client of export '{}', is dropped: {error}", export.name());
        }
        export.leave(&client);
        // `remove` waits for the last client to leave, and nothing of it may keep the node then.
    }

    /// The export that was agreed on, and not another that has its name now: what the client was told holds for
    /// that one alone.
    fn agreed(&self, agreement: &Agreement) -> Option<Rc<Export>> {
        let exports = self.0.exports.borrow();
        let agreed =
            |export: &&Rc<Export>| !export.is_closing() && export.number() == agreement.export;
        exports.iter().find(agreed).cloned()
    }

    /// The export a client means. The empty name means the only one, if there is just one.
    fn find(&self, name: &str) -> Option<Rc<Export>> {
        let exports = self.0.exports.borrow();
        let mut open = exports.iter().filter(|export| !export.is_closing());
        if let Some(found) = open.clone().find(|export| export.name() == name) {
            return Some(Rc::clone(found));
        }
        let only = open.next().filter(|_| name.is_empty() && open.next().is_none());
        only.cloned()
    }
}

impl Catalogue for Server {
    fn offers(&self) -> Vec<Offer> {
        let exports = self.0.exports.borrow();
        exports.iter().filter(|export| !export.is_closing()).map(|export| export.offer()).collect()
    }

    fn offer(&self, name: &str) -> Option<Offer> {
        self.find(name).map(|export| export.offer())
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod wire_tests;

#[cfg(test)]
#[path = "extended_tests.rs"]
mod extended_tests;

#[cfg(test)]
#[path = "batch_tests.rs"]
mod batch_tests;

#[cfg(test)]
#[path = "status_tests.rs"]
mod status_tests;
