//! Options as `blockdev-add` takes them, and the one place that opens images.

mod above;
mod image_name;
mod json_name;
pub mod keyval;
mod options;
mod protocol_name;

use crate::driver::{BlockDriver, LocalBoxFuture};
use crate::edge::ChildRole;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::BlockGraph;
use crate::node::{BlockNode, NodeOptions, Origin};

use above::Above;

pub use json_name::json_name;
pub use options::{
    BlockdevOptions, BlockdevRef, CacheOptions, DetectZeroes, DiscardMode, DriverOptions,
};
pub use protocol_name::protocol_name;

/// Deepest nesting of nodes in one set of options, backing files included.
const MAX_DEPTH: usize = 200;

/// What a driver needs to open a node of its own: the graph, the members that all nodes have, and
/// a way to the nodes below.
pub(crate) struct Opening<'a> {
    graph: &'a BlockGraph,
    options: &'a BlockdevOptions,
    depth: usize,
    above: Above,
    /// Whether a node of the same name is there, whose place the new one will take.
    takes_over: bool,
}

impl Opening<'_> {
    /// The graph that the node will belong to.
    pub(crate) fn graph(&self) -> &BlockGraph {
        self.graph
    }

    /// The node's options as they were given, or inherited.
    pub(crate) fn options(&self) -> &BlockdevOptions {
        self.options
    }

    /// How the node is to behave, whatever its driver.
    pub(crate) fn node_options(&self) -> NodeOptions {
        let options = self.options;
        NodeOptions {
            read_only: options.read_only.unwrap_or(false),
            direct: options.cache.and_then(|cache| cache.direct) == Some(true),
            discard: options.discard.unwrap_or_default(),
            detect_zeroes: options.detect_zeroes.unwrap_or_default(),
            active: options.active.unwrap_or(true),
            owned: self.depth == 0,
        }
    }

    /// The node that a member names or describes. What it describes is opened with what this node
    /// passes on to a child in that role.
    pub(crate) async fn child(&self, child: &BlockdevRef, role: ChildRole) -> Result<BlockNode> {
        match child {
            BlockdevRef::Name(name) => self.graph.device_or_node(name),
            BlockdevRef::Nested(options) if self.depth < MAX_DEPTH => {
                let given = BlockdevOptions::clone(options);
                let options = given.inherited_as(role, self.options);
                let (graph, depth) = (self.graph.clone(), self.depth + 1);
                let above = self.above.clone();
                // A task of its own: a long chain must not use up the stack.
                let opening = async move {
                    let node = graph.open_at(options.clone(), depth, above, false).await?;
                    node.set_origin(Origin::new(given, options));
                    Ok(node)
                };
                self.graph.executor().spawn(opening).await
            }
            BlockdevRef::Nested(_) => {
                Err(Error::new(ErrorKind::InvalidArgument, "nodes are nested too deeply"))
            }
        }
    }

    /// The same for what an image, whose own file this is, says to be below it.
    pub(crate) async fn below(&self, file: &BlockNode) -> Opening<'_> {
        let above = self.above.and(self.graph.executor(), file.filename()).await;
        Opening { above, ..*self }
    }

    /// Refuses a file that an image above is in: it would be below itself, without end.
    pub(crate) async fn check_file(&self, path: &str) -> Result<()> {
        self.above.refuse(self.graph.executor(), path).await
    }

    /// Makes the driver a node of the graph, named as the options say.
    pub(crate) async fn add(&self, driver: impl BlockDriver) -> Result<BlockNode> {
        self.add_with(driver, self.node_options()).await
    }

    /// [`add`](Opening::add) with options that opening has changed.
    pub(crate) async fn add_with(
        &self,
        driver: impl BlockDriver,
        options: NodeOptions,
    ) -> Result<BlockNode> {
        let name = self.options.node_name.as_deref();
        match name.filter(|_| self.takes_over) {
            Some(name) => self.graph.insert(name.to_owned(), driver, options).await,
            None => self.graph.add(name, driver, options).await,
        }
    }
}

impl BlockGraph {
    /// Opens what `blockdev-add` describes. The node stays until [`BlockGraph::remove`]; nodes that
    /// were opened with it go with it. Nothing is left behind on an error.
    pub async fn open(&self, options: &BlockdevOptions) -> Result<BlockNode> {
        self.open_at(options.clone(), 0, Above::default(), false).await
    }

    /// Opens a node that is to take the place of the one of its name.
    pub(crate) async fn open_successor(&self, options: &BlockdevOptions) -> Result<BlockNode> {
        self.open_at(options.clone(), 0, Above::default(), true).await
    }

    fn open_at(
        &self,
        options: BlockdevOptions,
        depth: usize,
        above: Above,
        takes_over: bool,
    ) -> LocalBoxFuture<'_, Result<BlockNode>> {
        Box::pin(async move {
            options.check()?;
            let opening = Opening { graph: self, options: &options, depth, above, takes_over };
            match &options.driver {
                DriverOptions::Blkdebug(driver) => driver.open(&opening).await,
                DriverOptions::Compress(driver) => driver.open(&opening).await,
                DriverOptions::CopyBeforeWrite(driver) => driver.open(&opening).await,
                DriverOptions::CopyOnRead(driver) => driver.open(&opening).await,
                DriverOptions::File(driver) => driver.open(&opening).await,
                DriverOptions::Nbd(driver) => driver.open(&opening).await,
                DriverOptions::NullCo(driver) => driver.open(&opening).await,
                DriverOptions::Qcow2(driver) => driver.open(&opening).await,
                DriverOptions::Raw(driver) => driver.open(&opening).await,
                DriverOptions::SnapshotAccess(driver) => driver.open(&opening).await,
                DriverOptions::Throttle(driver) => driver.open(&opening).await,
            }
        })
    }
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
