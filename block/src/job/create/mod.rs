//! The job that makes an image: `blockdev-create`.

mod options;

use crate::backend::BackendKind;
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::edge::{ChildRole, Edge, EdgePerms, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::create as qcow2;
use crate::graph::BlockGraph;
use crate::job::{Job, JobCtx, JobKind, JobOptions, JobRegistry, Settle};
use crate::node::BlockNode;
use crate::open::{BlockdevOptions, BlockdevRef};
use crate::protocol::file;

pub use options::{CreateFile, CreateImage, CreateQcow2};

/// Bytes written at once where a whole file is.
const CHUNK: usize = 1 << 20;
/// Changes everything, and lets nobody else do anything meanwhile.
const ALONE: EdgePerms = EdgePerms { needs: Perms::ALL, shares: Perms::NONE };

/// Starts making an image; how it went is told by the job, which stays until it is dismissed.
///
/// # Errors
/// The id is not well formed, or another job has it.
pub fn start(graph: &BlockGraph, id: String, image: CreateImage) -> Result<()> {
    let options = JobOptions { id, speed: 0, auto_finalize: true, auto_dismiss: false };
    let jobs = JobRegistry::of(graph);
    let ctx = jobs.create(JobKind::Create, options)?;
    ctx.progress(0, 1);
    jobs.start(ctx, Create { graph: graph.clone(), image });
    Ok(())
}

struct Create {
    graph: BlockGraph,
    image: CreateImage,
}

impl Job for Create {
    const KIND: JobKind = JobKind::Create;

    async fn run(&mut self, ctx: &JobCtx) -> Result<()> {
        let created = create_image(&self.graph, &self.image).await;
        // There is nothing left to do, however that went.
        ctx.progress(1, 1);
        created
    }

    async fn settle(self, _ctx: &JobCtx, _how: Settle) -> Result<()> {
        // What a failed job leaves is no image: its header is written last.
        Ok(())
    }
}

/// Makes an image without a job.
///
/// # Errors
/// The options contradict each other, somebody uses the file, or the host refuses. What is left then
/// is no image.
pub async fn create_image(graph: &BlockGraph, image: &CreateImage) -> Result<()> {
    match image {
        CreateImage::File(options) => create_file(graph, options).await,
        CreateImage::Qcow2(options) => create_qcow2(graph, options).await,
    }
}

async fn create_file(graph: &BlockGraph, options: &CreateFile) -> Result<()> {
    if options.preallocation == qcow2::Preallocation::Metadata {
        let text = "Unsupported preallocation mode 'metadata'";
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    let hint = options.extent_size_hint.unwrap_or(file::DEFAULT_EXTENT_SIZE_HINT.into());
    let hint = u32::try_from(hint).map_err(|_large| {
        Error::new(ErrorKind::InvalidArgument, "Extent size hint is too large")
    })?;
    file::create(graph.executor(), &options.filename).await?;
    // Emptied only under its locks: somebody may be using it.
    let node = graph.open(&BlockdevOptions::file(&options.filename)).await?;
    graph.disown(&node);
    let root = graph.add_backend(BackendKind::Job, "create", &node, ALONE)?;
    root.resize(0).await?;
    file::hint_extent_size(graph.executor(), &options.filename, hint).await;
    root.resize(options.size).await?;
    match options.preallocation {
        qcow2::Preallocation::Off | qcow2::Preallocation::Metadata => {}
        qcow2::Preallocation::Falloc => {
            root.write_zeroes(0..options.size, WriteFlags::NONE).await?;
        }
        qcow2::Preallocation::Full => {
            let mut at = 0;
            while at < options.size {
                let rest = usize::try_from(options.size - at).unwrap_or(CHUNK).min(CHUNK);
                root.write(at, IoBuf::from_vec(&vec![0; rest]), WriteFlags::NONE).await?;
                at += rest as u64;
            }
        }
    }
    root.flush().await
}

async fn create_qcow2(graph: &BlockGraph, options: &CreateQcow2) -> Result<()> {
    let mut opened = Vec::new();
    let result = create_in(graph, options, &mut opened).await;
    // An image that the new one is in must be left as the next program likes to find it.
    for node in opened.into_iter().rev() {
        let closed = graph.close(node).await;
        if result.is_ok() {
            closed?;
        }
    }
    result
}

/// Makes the image in the nodes that the options name, or that are opened for this.
async fn create_in(
    graph: &BlockGraph,
    options: &CreateQcow2,
    opened: &mut Vec<BlockNode>,
) -> Result<()> {
    let image = container(graph, &options.file, ChildRole::File, opened).await?;
    let data = match &options.data_file {
        Some(data) => Some(container(graph, data, ChildRole::Data, opened).await?),
        None => None,
    };
    let data_name = data.as_ref().and_then(|data| data.node().filename());
    qcow2::create(&image, data.as_ref(), &options.image(data_name)?).await
}

/// The node that is to hold the image, with nobody else on it.
async fn container(
    graph: &BlockGraph,
    node: &BlockdevRef,
    role: ChildRole,
    opened: &mut Vec<BlockNode>,
) -> Result<Edge> {
    let node: BlockNode = match node {
        BlockdevRef::Name(name) => graph.device_or_node(name)?,
        BlockdevRef::Nested(options) => {
            let node = graph.open(options).await?;
            // It goes with the job, however that ends.
            graph.disown(&node);
            opened.push(node.clone());
            node
        }
    };
    graph.edge(&node, role, ALONE)
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
