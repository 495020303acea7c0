//! Exports and the NBD server that carries them.

use std::cell::RefCell;
use std::rc::Rc;

use ferry_api::QmpError;
use ferry_api::command::{
    BlockDirtyBitmapOrStr, BlockExportDel, BlockExportInfo, BlockExportKind, BlockExportOptions,
    BlockExportOptionsNbd, BlockExportRemoveMode, BlockExportType, NbdServerAdd, NbdServerOptions,
    NbdServerRemove, NbdServerStart, SocketAddress,
};
use ferry_block::nbd::{Export, ExportOptions, Server, ServerOptions};
use ferry_block::net::{TlsCreds, TlsEndpoint};
use ferry_block::{BlockGraph, Error, ErrorKind, LocalBoxFuture, within};

use super::export_registry::{Exports, PATIENCE};
use super::object::is_well_formed;
use super::{Result, Storage, carry_over};
use crate::export_kind::{RunningExport, VhostUserBlkOptions};

/// The NBD server of a graph, while there is one.
#[derive(Default)]
struct NbdServer(RefCell<Option<Server>>);

impl NbdServer {
    fn of(graph: &BlockGraph) -> ferry_block::Result<Server> {
        let server = graph.extension(NbdServer::default).0.borrow().clone();
        server.ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "NBD server not running"))
    }

    /// Takes it out, so that another may be started.
    fn take(graph: &BlockGraph) -> Option<Server> {
        graph.extension(NbdServer::default).0.take()
    }
}

/// An export of the NBD server.
struct NbdExport {
    server: Server,
    export: Rc<Export>,
}

impl RunningExport for NbdExport {
    fn node_name(&self) -> String {
        self.export.node_name()
    }

    fn has_client(&self) -> bool {
        self.export.client_count() != 0
    }

    fn retire(&self) {
        self.export.retire();
    }

    fn close(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.server.remove(&self.export))
    }
}

impl Storage {
    /// `nbd-server-start`
    pub(super) async fn nbd_server_start(&self, arguments: NbdServerStart) -> Result<()> {
        let NbdServerStart { addr, tls_creds, max_connections } = arguments;
        let addr = SocketAddress::from(addr);
        self.nbd_server(NbdServerOptions { addr, tls_creds, max_connections }).await?;
        self.open_nbd_server().await
    }

    /// Listens for NBD clients, with TLS if credentials are named. They wait until it is opened.
    pub(crate) async fn nbd_server(&self, options: NbdServerOptions) -> Result<()> {
        let address = carry_over(&options.addr)?;
        let tls = options.tls_creds;
        let max_connections = options.max_connections.unwrap_or(0);
        let start = move |graph: BlockGraph| async move {
            let slot = graph.extension(NbdServer::default);
            if slot.0.borrow().is_some() {
                let context = "NBD server already running";
                return Err(Error::new(ErrorKind::AlreadyExists, context));
            }
            let tls = match tls {
                Some(id) => Some(TlsCreds::find(&graph, &id, TlsEndpoint::Server)?),
                None => None,
            };
            let options = ServerOptions { address, tls, max_connections };
            let server = Server::bind(&graph, options).await?;
            slot.0.replace(Some(server));
            Ok(())
        };
        self.on_graph(start).await
    }

    /// Serves the clients of the NBD server.
    pub(crate) async fn open_nbd_server(&self) -> Result<()> {
        let open = |graph: BlockGraph| async move {
            NbdServer::of(&graph)?.open();
            Ok(())
        };
        self.on_graph(open).await
    }

    /// `nbd-server-stop`
    pub(super) async fn nbd_server_stop(&self) -> Result<()> {
        let stop = |graph: BlockGraph| async move {
            NbdServer::of(&graph)?;
            let executor = graph.executor().clone();
            // It goes on stopping when nobody waits for it any more.
            let stopping = executor.spawn(async move { stop_nbd_server(&graph).await });
            within(&executor, PATIENCE, stopping).await;
            Ok(())
        };
        self.on_graph(stop).await
    }

    /// `nbd-server-add`
    pub(super) async fn nbd_server_add(&self, arguments: NbdServerAdd) -> Result<()> {
        let device = arguments.device;
        let find = {
            let device = device.clone();
            |graph: BlockGraph| async move {
                NbdServer::of(&graph)?;
                let node = graph.device_or_node(&device)?;
                // A device that cannot be written is exported so, whatever was asked for.
                Ok((node.name().to_owned(), node.is_read_only()))
            }
        };
        let (node_name, read_only) = self.on_graph(find).await?;
        let name = arguments.name.unwrap_or(device);
        let nbd = BlockExportOptionsNbd {
            name: Some(name.clone()),
            description: arguments.description,
            bitmaps: arguments.bitmap.map(|name| vec![BlockDirtyBitmapOrStr::Local(name)]),
            allocation_depth: None,
        };
        let options = BlockExportOptions {
            id: name,
            node_name,
            writable: Some(arguments.writable == Some(true) && !read_only),
            writethrough: None,
            kind: BlockExportKind::Nbd(nbd),
        };
        self.block_export_add(options).await
    }

    /// `nbd-server-remove`
    pub(super) async fn nbd_server_remove(&self, arguments: NbdServerRemove) -> Result<()> {
        let NbdServerRemove { name, mode } = arguments;
        let id = name.clone();
        let check = |graph: BlockGraph| async move {
            Exports::of(&graph).check_kind(&id, BlockExportType::Nbd)
        };
        self.on_graph(check).await?;
        self.block_export_del(BlockExportDel { id: name, mode }).await
    }

    /// `block-export-add`
    pub(crate) async fn block_export_add(&self, arguments: BlockExportOptions) -> Result<()> {
        let BlockExportOptions { id, node_name, writable, writethrough, kind } = arguments;
        if !is_well_formed(&id) {
            return Err(QmpError::generic("Invalid block export id"));
        }
        let (writable, writethrough) = (writable == Some(true), writethrough == Some(true));
        match kind {
            BlockExportKind::Nbd(nbd) => {
                let options =
                    ExportOptions { writable, writethrough, ..nbd_options(id, node_name, nbd)? };
                self.nbd_export_add(options).await
            }
            BlockExportKind::VhostUserBlk(blk) => {
                let options = VhostUserBlkOptions {
                    id,
                    node_name,
                    address: carry_over(&blk.addr)?,
                    writable,
                    writethrough,
                    block_size: blk.logical_block_size.unwrap_or(512),
                    // Too many are refused, and this is far too many.
                    queues: u16::try_from(blk.num_queues.unwrap_or(1)).unwrap_or(u16::MAX),
                };
                self.vhost_user_blk_add(options).await
            }
        }
    }

    async fn nbd_export_add(&self, options: ExportOptions) -> Result<()> {
        let add = |graph: BlockGraph| async move {
            let server = NbdServer::of(&graph)?;
            super::blockdev::find(&graph, None, Some(&options.node_name))?;
            let id = options.id.clone();
            let start = async {
                let export = server.add(options).await?;
                Ok(Rc::new(NbdExport { server, export }) as Rc<dyn RunningExport>)
            };
            Exports::of(&graph).add(BlockExportType::Nbd, &id, start).await
        };
        self.on_graph(add).await
    }

    async fn vhost_user_blk_add(&self, options: VhostUserBlkOptions) -> Result<()> {
        let start = self.kinds.vhost_user_blk;
        let add = move |graph: BlockGraph| async move {
            super::blockdev::find(&graph, None, Some(&options.node_name))?;
            let (id, kind) = (options.id.clone(), BlockExportType::VhostUserBlk);
            Exports::of(&graph).add(kind, &id, start(graph.clone(), options)).await
        };
        self.on_graph(add).await
    }

    /// `block-export-del`
    pub(super) async fn block_export_del(&self, arguments: BlockExportDel) -> Result<()> {
        let mode = arguments.mode.unwrap_or(BlockExportRemoveMode::Safe);
        let id = arguments.id;
        let remove = move |graph: BlockGraph| async move {
            Exports::of(&graph).remove(&graph, &id, mode).await
        };
        self.on_graph(remove).await
    }

    /// `query-block-exports`
    pub(super) async fn query_block_exports(&self) -> Result<Vec<BlockExportInfo>> {
        self.on_graph(|graph| async move { Ok(Exports::of(&graph).infos()) }).await
    }
}

/// Takes every export away and stops listening, where anybody does. From the call on nobody gets in; the
/// result is over when they are gone.
pub(crate) fn close_exports(graph: &BlockGraph) -> impl Future<Output = ()> + use<> {
    let gone = Exports::of(graph).remove_all(graph, |_| true);
    let graph = graph.clone();
    async move {
        gone.await;
        stop_nbd_server(&graph).await;
    }
}

async fn stop_nbd_server(graph: &BlockGraph) {
    let Some(server) = NbdServer::take(graph) else { return };
    server.retire();
    Exports::of(graph).remove_all(graph, |kind| kind == BlockExportType::Nbd).await;
    server.stop().await;
}

fn nbd_options(id: String, node_name: String, nbd: BlockExportOptionsNbd) -> Result<ExportOptions> {
    let mut options = ExportOptions::new(id, node_name);
    for bitmap in nbd.bitmaps.unwrap_or_default() {
        options.bitmaps.push(match bitmap {
            BlockDirtyBitmapOrStr::Local(name) => name,
            BlockDirtyBitmapOrStr::External(other) if other.node == options.node_name => other.name,
            BlockDirtyBitmapOrStr::External(other) => {
                return Err(QmpError::generic(format!(
                    "bitmap '{}' is on node '{}', not on the node that is exported",
                    other.name, other.node
                )));
            }
        });
    }
    options.name = nbd.name;
    options.description = nbd.description;
    options.allocation_depth = nbd.allocation_depth == Some(true);
    Ok(options)
}
