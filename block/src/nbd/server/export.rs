//! One export: a node under a name, and the clients that use it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::{Rc, Weak};

use super::ExportOptions;
use super::connection::Connection;
use super::negotiate::Offer;
use crate::backend::BlockBackend;
use crate::bitmap::BitmapState;
use crate::edge::{ChildRole, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::BlockGraph;
use crate::nbd::proto::{
    ALLOCATION_DEPTH, BASE_ALLOCATION, DIRTY_BITMAP, MAX_PAYLOAD, MAX_STRING, export,
};
use crate::node::{AttachedBitmap, BlockNode};
use crate::notify::Notify;

/// Smallest unit that clients are told to prefer, bytes: a page.
const PREFERRED_BLOCK: u32 = 4096;

/// What block status can report.
pub(super) enum Context {
    /// Holes and zeroes, as seen through the whole chain.
    Allocation,
    /// In which layer of the chain the data is.
    Depth,
    /// Dirty or clean.
    Bitmap(Rc<AttachedBitmap>),
}

/// A node under a name; [`Server::remove`](super::Server::remove) takes it away.
pub struct Export {
    pub(super) options: ExportOptions,
    pub(super) backend: BlockBackend,
    pub(super) contexts: Vec<Context>,
    closing: Cell<bool>,
    clients: RefCell<Vec<Weak<Connection>>>,
    client_left: Notify,
}

impl Export {
    /// Claims the node for what clients may do. An inactive node that they may write to becomes
    /// active.
    pub(super) async fn new(graph: &BlockGraph, options: ExportOptions) -> Result<Rc<Export>> {
        if let Some(text) = [&options.name, &options.description]
            .into_iter()
            .flatten()
            .find(|s| s.len() > MAX_STRING)
        {
            let context = format!("export name or description '{text:.32}…' too long");
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        // Clients hold on to the length that they were told. A longer disk does them no harm.
        let (id, node, shares) = (&options.id, &options.node_name, !Perms::SHRINK);
        let backend = graph.add_export(id, node, options.writable, shares).await?;
        let bitmaps = find_bitmaps(&backend.node(), &options)?;
        let mut contexts = vec![Context::Allocation];
        for bitmap in bitmaps {
            bitmap.busy.set(true);
            contexts.push(Context::Bitmap(bitmap));
        }
        if options.allocation_depth {
            contexts.push(Context::Depth);
        }
        Ok(Rc::new(Export {
            options,
            backend,
            contexts,
            closing: Cell::new(false),
            clients: RefCell::default(),
            client_left: Notify::new(),
        }))
    }

    /// The name that clients ask for.
    pub(super) fn name(&self) -> &str {
        self.options.name.as_deref().unwrap_or(&self.options.node_name)
    }

    /// Tells it from others of its name.
    pub(super) fn number(&self) -> u64 {
        self.backend.id().0
    }

    /// What a client is told of it.
    pub(super) fn offer(&self) -> Offer {
        let mut flags =
            export::HAS_FLAGS | export::SEND_FLUSH | export::SEND_FUA | export::SEND_CACHE;
        // One graph serves all connections, so a flush on one covers the writes of all.
        flags |= export::CAN_MULTI_CONN;
        flags |= if self.options.writable {
            export::SEND_TRIM | export::SEND_WRITE_ZEROES | export::SEND_FAST_ZERO
        } else {
            export::READ_ONLY
        };
        let name = |context: &Context| match context {
            Context::Allocation => BASE_ALLOCATION.to_owned(),
            Context::Depth => ALLOCATION_DEPTH.to_owned(),
            Context::Bitmap(bitmap) => {
                format!("{DIRTY_BITMAP}{}", bitmap.name.as_deref().unwrap_or_default())
            }
        };
        Offer {
            number: self.number(),
            name: self.name().to_owned(),
            description: self.options.description.clone(),
            size: self.backend.len(),
            flags,
            preferred_block: self.preferred_block(),
            contexts: self.contexts.iter().map(name).collect(),
        }
    }

    /// What is done best at once and whole: a cluster, where that is not too long for one request.
    fn preferred_block(&self) -> u32 {
        let limits = self.backend.node().skip_filters().limits();
        let cluster = limits.discard_granularity;
        let fits = cluster.is_power_of_two() && cluster <= MAX_PAYLOAD;
        limits.request_alignment.max(PREFERRED_BLOCK).max(if fits { cluster } else { 0 })
    }

    /// The node that it exports now.
    pub fn node_name(&self) -> String {
        self.backend.node().name().to_owned()
    }

    /// How many clients use it.
    pub fn client_count(&self) -> usize {
        self.clients().len()
    }

    fn clients(&self) -> Vec<Rc<Connection>> {
        self.clients.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    pub(super) fn enter(&self, client: &Rc<Connection>) {
        self.clients.borrow_mut().push(Rc::downgrade(client));
    }

    pub(super) fn leave(&self, client: &Rc<Connection>) {
        self.clients.borrow_mut().retain(|other| !std::ptr::eq(other.as_ptr(), Rc::as_ptr(client)));
        self.client_left.notify_all();
    }

    /// Lets nobody in any more. Requests that somebody holds up at the gate are given up: nobody was told that
    /// they are done.
    pub fn retire(&self) {
        self.closing.set(true);
        self.backend.retire();
    }

    /// Retires it, disconnects everybody and waits until their requests are over.
    pub(super) async fn close(&self) {
        self.retire();
        for client in self.clients() {
            client.shut_down();
        }
        self.client_left.wait_until(|| self.clients.borrow().is_empty()).await;
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Export({} of {:?})", self.name(), self.backend)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        for context in &self.contexts {
            if let Context::Bitmap(bitmap) = context {
                bitmap.busy.set(false);
            }
        }
    }
}

/// The bitmaps to export, looked for on the node and along its chain.
fn find_bitmaps(node: &BlockNode, options: &ExportOptions) -> Result<Vec<Rc<AttachedBitmap>>> {
    let refused = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
    let mut found: Vec<Rc<AttachedBitmap>> = Vec::new();
    for name in &options.bitmaps {
        let Some(bitmap) = find_bitmap(node, name) else {
            return refused(format!("Bitmap '{name}' is not found"));
        };
        if bitmap.busy.get() || found.iter().any(|other| Rc::ptr_eq(other, &bitmap)) {
            let context = format!(
                "Bitmap '{name}' is currently in use by another operation and cannot be used"
            );
            return Err(Error::new(ErrorKind::Busy, context));
        }
        match bitmap.bits.borrow().state() {
            BitmapState::Inconsistent => {
                return refused(format!("Bitmap '{name}' is inconsistent and cannot be used"));
            }
            BitmapState::Recording if !options.writable && !node.is_read_only() => {
                return refused(format!(
                    "Enabled bitmap '{name}' incompatible with readonly export"
                ));
            }
            _ => {}
        }
        if DIRTY_BITMAP.len() + name.len() > MAX_STRING {
            return refused(format!("Bitmap name '{name:.32}…' too long to export"));
        }
        found.push(bitmap);
    }
    Ok(found)
}

fn find_bitmap(node: &BlockNode, name: &str) -> Option<Rc<AttachedBitmap>> {
    let mut layer = Some(node.clone());
    while let Some(node) = layer {
        let found = node.bitmaps().into_iter().find(|bitmap| bitmap.name.as_deref() == Some(name));
        if found.is_some() {
            return found;
        }
        layer = super::status::below(&node).map(|(node, _)| node);
    }
    None
}

/// The child that a format or filter shows where it has nothing itself.
pub(super) fn child_of(node: &BlockNode, role: ChildRole) -> Option<BlockNode> {
    node.children().into_iter().find(|edge| edge.role() == role).map(|edge| edge.node())
}
