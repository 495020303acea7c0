//! An export: a disk at a socket, for one front end at a time.

use std::cell::{Cell, RefCell};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use ferry_block::net::{Listener, SocketAddress};
use ferry_block::{
    BlockBackend, BlockGraph, Error, ErrorKind, Executor, Notify, Perms, Result, Task, within,
};
use ferry_devices::virtio::blk::{BlkQueues, VirtioBlkConfig};
use ferry_devices::virtio::features;

use crate::event::Calls;
use crate::session::{Device, Session};

/// How long a front end waits for the one before it to leave: it may have been killed just now.
const SUCCESSION: Duration = Duration::from_secs(2);
/// Entries of a ring for which the segments of a request are announced; the front end decides.
const USUAL_RING: u16 = 128;

/// What to export and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// Identifies the export.
    pub id: String,
    /// The device or node.
    pub node_name: String,
    /// Where to listen: a socket in the file system.
    pub address: SocketAddress,
    /// Whether the guest may write.
    pub writable: bool,
    /// Whether every write is durable before it is answered.
    pub writethrough: bool,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// How many queues the front end may have.
    pub queues: u16,
}

/// An export; clones are the same one. [`close`](Export::close) it before the last one goes.
#[derive(Clone)]
pub struct Export(Rc<Inner>);

struct Inner {
    options: ExportOptions,
    executor: Executor,
    backend: BlockBackend,
    client: RefCell<Option<Client>>,
    /// A client came or left.
    changed: Notify,
    listener: Cell<Option<Task<()>>>,
}

struct Client {
    stream: Rc<UnixStream>,
    device: Rc<Device>,
    /// It has hung up, or we have.
    gone: Cell<bool>,
}

impl Export {
    /// Claims the node and listens.
    ///
    /// # Errors
    /// There is no such node or it is not to be had so, the options cannot be, or nobody can listen there.
    pub async fn start(graph: &BlockGraph, options: ExportOptions) -> Result<Export> {
        if !matches!(options.address, SocketAddress::Unix { .. }) {
            let context = "vhost-user-blk is for sockets of type unix only";
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        let executor = graph.executor().clone();
        let (id, node) = (&options.id, &options.node_name);
        // The guest is told of another length.
        let backend = graph.add_export(id, node, options.writable, Perms::ALL).await?;
        let export = Export(Rc::new(Inner {
            executor: executor.clone(),
            backend,
            client: RefCell::default(),
            changed: Notify::new(),
            listener: Cell::default(),
            options,
        }));
        // What the options ask for must be possible before anybody comes.
        export.0.device()?;
        let listener = Listener::bind(&executor, &export.0.options.address).await?;
        let weak = Rc::downgrade(&export.0);
        export.0.backend.on_resize(move |len| {
            if let Some(inner) = weak.upgrade()
                && let Some(client) = &*inner.client.borrow()
            {
                client.device.resized(len);
            }
        });
        let inner = Rc::clone(&export.0);
        export.0.listener.set(Some(executor.spawn(listen(inner, listener))));
        Ok(export)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.0.options.id
    }

    /// The node that it exports now.
    pub fn node_name(&self) -> String {
        self.0.backend.node().name().to_owned()
    }

    /// Whether a front end is connected.
    pub fn has_client(&self) -> bool {
        self.0.client.borrow().is_some()
    }

    /// Lets nobody in any more. Requests that somebody holds up at the gate stay in the ring for whoever serves
    /// it next.
    pub fn retire(&self) {
        self.0.backend.retire();
    }

    /// Retires it, stops listening, hangs up, and waits until nothing is in flight.
    pub async fn close(&self) {
        let inner = &self.0;
        self.retire();
        if let Some(listener) = inner.listener.take() {
            listener.cancel().await;
        }
        if let Some(client) = &*inner.client.borrow()
            && let Err(error) = client.stream.shutdown(std::net::Shutdown::Both)
        {
            tracing::debug!("a front end had hung up already: {error}");
        }
        inner.changed.wait_until(|| inner.client.borrow().is_none()).await;
    }
}

impl Inner {
    /// A device over the disk, as it is after power-on.
    fn device(&self) -> Result<Rc<Device>> {
        let options = &self.options;
        let config = VirtioBlkConfig {
            serial: options.id.clone(),
            read_only: !options.writable,
            queues: options.queues,
            queue_size: USUAL_RING,
            block_size: options.block_size,
            write_cache: !options.writethrough,
            ..VirtioBlkConfig::default()
        };
        let calls = Rc::new(Calls::new(usize::from(options.queues)));
        let signal = Rc::clone(&calls) as Rc<_>;
        let queues = BlkQueues::new(config, self.backend.clone(), self.executor.clone(), signal);
        let queues =
            queues.map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))?;
        let mut offered = queues.features();
        if options.writethrough {
            // A driver that knows of no cache takes every write for durable, and so it is then.
            offered &= !(features::BLK_FLUSH | features::BLK_CONFIG_WCE);
        }
        Ok(Rc::new(Device::new(queues, calls, offered, options.queues)))
    }

    /// Serves a front end if there is no other.
    async fn welcome(self: &Rc<Self>, stream: UnixStream) {
        let id = &self.options.id;
        let vacant = self.changed.wait_until(|| self.client.borrow().is_none());
        if within(&self.executor, SUCCESSION, vacant).await.is_none() {
            return match self.left_behind() {
                Some(requests) => tracing::warn!(
                    "export '{id}': a front end is turned away, for the storage has not answered \
                     {requests} requests of the one before"
                ),
                None => tracing::warn!("export '{id}' has a front end, so another is turned away"),
            };
        }
        let device = match self.device() {
            Ok(device) => device,
            Err(error) => return tracing::error!("export '{id}': {error}"),
        };
        let stream = Rc::new(stream);
        let gone = Cell::new(false);
        let client = Client { stream: Rc::clone(&stream), device: Rc::clone(&device), gone };
        self.client.replace(Some(client));
        let farewell = self.executor.spawn(Rc::clone(self).farewell(Rc::clone(&stream)));
        let (this, session) = (Rc::clone(self), Session::new(&self.executor, stream, device));
        drop(self.executor.spawn(async move {
            if let Err(error) = session.serve().await {
                let id = &this.options.id;
                tracing::warn!("the front end of export '{id}' is dropped: {error}");
            }
            farewell.cancel().await;
            this.client.replace(None);
            this.changed.notify_all();
        }));
    }

    /// How many requests of a front end that is gone the storage has not answered; nothing if there is none
    /// or it is there.
    fn left_behind(&self) -> Option<u32> {
        let gone = self.client.borrow().as_ref().is_some_and(|client| client.gone.get());
        gone.then(|| self.backend.in_flight())
    }

    /// Gives the requests of a front end up that wait at the gate once it is gone, until it is cancelled: whoever
    /// shut the gate may keep it shut for hours, and the next front end finds them in its ring.
    ///
    /// What the storage has is waited for, however long that takes: a write that comes late would destroy what
    /// the next front end has written.
    async fn farewell(self: Rc<Self>, stream: Rc<UnixStream>) {
        let id = &self.options.id;
        if let Err(error) = self.executor.hung_up(stream.as_raw_fd()).await {
            return tracing::warn!("export '{id}': {error}");
        }
        if let Some(client) = &*self.client.borrow() {
            client.gone.set(true);
        }
        let _retired = self.backend.retire_for_now();
        self.executor.sleep(SUCCESSION).await;
        let requests = self.backend.in_flight();
        tracing::warn!(
            "export '{id}': the front end is gone, but the storage has not answered {requests} of its \
             requests; the next one has to wait for that"
        );
        std::future::pending().await
    }
}

async fn listen(inner: Rc<Inner>, listener: Listener) {
    loop {
        match listener.accept_unix().await {
            Ok(stream) => inner.welcome(stream).await,
            Err(error) => return tracing::error!("export '{}': {error}", inner.options.id),
        }
    }
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
