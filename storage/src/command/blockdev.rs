//! Nodes: made, removed, resized, activated.

use ferry_api::QmpError;
use ferry_api::command::{
    BlockResize, BlockdevCreate, BlockdevDel, BlockdevOptions, BlockdevReopen, BlockdevSetActive,
};
use ferry_block::job::create::{self, CreateImage};
use ferry_block::{
    BackendKind, BlockGraph, BlockNode, EdgePerms, Error, ErrorKind, Perms, check_top,
};

use super::{Result, Storage, carry_over};

impl Storage {
    /// Creates nodes, the outermost with a name.
    pub(crate) async fn blockdev_add(&self, options: BlockdevOptions) -> Result<()> {
        if options.node_name.is_none() {
            return Err(QmpError::root_without_name());
        }
        let options: ferry_block::BlockdevOptions = carry_over(&options)?;
        let add = |graph: BlockGraph| async move { graph.open(&options).await.map(drop) };
        self.on_graph(add).await
    }

    /// Removes a node that nobody uses.
    pub(super) async fn blockdev_del(&self, arguments: BlockdevDel) -> Result<()> {
        self.on_graph(|graph| async move { graph.remove(&arguments.node_name).await }).await
    }

    /// Gives nodes other options, all of them or none.
    pub(super) async fn blockdev_reopen(&self, arguments: BlockdevReopen) -> Result<()> {
        let options: Vec<ferry_block::BlockdevOptions> = carry_over(&arguments.options)?;
        self.in_turn(|graph| async move { graph.reopen(&options).await }).await
    }

    /// Takes write ownership of a node and those below it, or of all nodes; or gives it up.
    pub(super) async fn blockdev_set_active(&self, arguments: BlockdevSetActive) -> Result<()> {
        let BlockdevSetActive { node_name, active } = arguments;
        let set = move |graph: BlockGraph| async move {
            match (node_name, active) {
                (None, true) => graph.activate_all(None).await,
                (None, false) => graph.inactivate_all().await,
                (Some(name), true) => graph.activate(&name).await,
                (Some(name), false) => graph.inactivate(&name).await,
            }
        };
        self.on_graph(set).await
    }

    /// Starts the job that makes an image.
    pub(super) async fn blockdev_create(&self, arguments: BlockdevCreate) -> Result<()> {
        let options: CreateImage = carry_over(&arguments.options)?;
        let id = arguments.job_id;
        self.on_graph(|graph| async move { create::start(&graph, id, options) }).await
    }

    /// Changes a node's length; requests wait meanwhile.
    pub(super) async fn block_resize(&self, arguments: BlockResize) -> Result<()> {
        let BlockResize { device, node_name, size } = arguments;
        let Ok(size) = u64::try_from(size) else {
            return Err(QmpError::argument_value("size", "a >0 size"));
        };
        let resize = move |graph: BlockGraph| async move {
            let node = find(&graph, device.as_deref(), node_name.as_deref())?;
            if node.is_read_only() {
                let context = format!("Block node '{}' is read-only", node.name());
                return Err(Error::new(ErrorKind::ReadOnly, context));
            }
            // It may wait for the user already, with all requests held up.
            graph.check_no_job(&node)?;
            // What is above would see it change.
            check_top(&node)?;
            node.look_again().await?;
            let needs = if size < node.len() { Perms::SHRINK } else { Perms::GROW };
            let perms = EdgePerms { needs, shares: Perms::ALL };
            let own = graph.add_backend(BackendKind::Job, "block_resize", &node, perms)?;
            let drained = graph.drain(&node, &[own.id()]).await;
            own.resize(size).await?;
            drop(drained);
            Ok(())
        };
        self.in_turn(resize).await
    }
}

/// The root node of a device, or a node: what commands mean that can be given either.
pub(super) fn find(
    graph: &BlockGraph,
    device: Option<&str>,
    node: Option<&str>,
) -> ferry_block::Result<BlockNode> {
    let root = device.and_then(|device| graph.backend(device)).map(|device| device.node());
    root.or_else(|| node.and_then(|node| graph.node(node))).ok_or_else(|| {
        let (device, node) = (device.unwrap_or_default(), node.unwrap_or_default());
        let context = format!("Cannot find device='{device}' nor node-name='{node}'");
        Error::new(ErrorKind::NotFound, context)
    })
}
