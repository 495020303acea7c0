//! The kinds of exports that `ferry` has besides NBD.

use std::rc::Rc;

use ferry_block::{BlockGraph, LocalBoxFuture, Result};
use ferry_storage::{ExportKinds, RunningExport, VhostUserBlkOptions};
use ferry_vhost_user::{Export, ExportOptions};

/// What the block commands may use.
pub const KINDS: ExportKinds = ExportKinds { vhost_user_blk };

fn vhost_user_blk(
    graph: BlockGraph,
    options: VhostUserBlkOptions,
) -> LocalBoxFuture<'static, Result<Rc<dyn RunningExport>>> {
    Box::pin(async move {
        let options = ExportOptions {
            id: options.id,
            node_name: options.node_name,
            address: options.address,
            writable: options.writable,
            writethrough: options.writethrough,
            block_size: options.block_size,
            queues: options.queues,
        };
        let export = Export::start(&graph, options).await?;
        Ok(Rc::new(VhostUser(export)) as Rc<dyn RunningExport>)
    })
}

struct VhostUser(Export);

impl RunningExport for VhostUser {
    fn node_name(&self) -> String {
        self.0.node_name()
    }

    fn has_client(&self) -> bool {
        self.0.has_client()
    }

    fn retire(&self) {
        self.0.retire();
    }

    fn close(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.0.close())
    }
}
