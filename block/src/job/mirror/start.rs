//! How a mirror starts: everything that can be refused is refused here, before anything changes.

use std::rc::Rc;

use super::hold::Hold;
use super::options::{MirrorOptions, SyncMode};
use super::state::{Mirror, Settings};
use super::{MirrorJob, end};
use crate::backend::{BackendKind, BlockBackend};
use crate::bitmap::MIN_GRANULARITY;
use crate::edge::{ChildRole, EdgePerms, Parent, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::mirror_top::MirrorTop;
use crate::graph::{BlockGraph, Edit, check_top};
use crate::job::registry::{checked_speed, invalid};
use crate::job::{JobCtx, JobKind, JobOptions, JobRegistry};
use crate::node::{BlockNode, NodeOptions};
use crate::protocol::nbd::NbdDriver;

/// Granule of a mirror unless the user or the target wants another, bytes.
const DEFAULT_GRANULARITY: u64 = 64 << 10;

/// Bytes of buffers that a mirror uses in all by default.
const DEFAULT_BUF_SIZE: u64 = 16 << 20;

/// The job writes the target, and nobody else may read or write what is not finished.
const TARGET_PERMS: EdgePerms = EdgePerms { needs: Perms::WRITE, shares: Perms::WRITE_UNCHANGED };

/// Starts a mirror job and returns its id. Its `created` and `running` events are out on return.
///
/// # Errors
/// Whatever is wrong with the arguments or forbids the job, in QEMU's words. Nothing has changed then.
pub async fn start(graph: &BlockGraph, options: MirrorOptions) -> Result<String> {
    let source = graph.device_or_node(&options.device)?;
    if !is_root(&source) || source.format() == "mirror_top" {
        return Err(invalid("Need a root block node"));
    }
    let target = graph.device_or_node(&options.target)?;
    let settings = check(graph, &options, &source, &target)?;
    let id = match (&options.job_id, graph.backend(&options.device)) {
        (Some(id), _) => id.clone(),
        (None, device) => device.map(|device| device.name().to_owned()).unwrap_or_default(),
    };
    let registry = JobRegistry::of(graph);
    let ctx = registry.create(
        JobKind::Mirror,
        JobOptions {
            id: id.clone(),
            speed: 0,
            auto_finalize: options.auto_finalize,
            auto_dismiss: options.auto_dismiss,
        },
    )?;
    match build(graph, &ctx, options, settings, &source, &target).await {
        Ok(job) => registry.start(ctx, job),
        Err(error) => {
            registry.discard(&ctx);
            return Err(error);
        }
    }
    Ok(id)
}

/// Largest granule of a mirror, as QEMU's, bytes.
const MAX_GRANULARITY: u64 = 64 << 20;

/// What can be refused without trying.
fn check(
    graph: &BlockGraph,
    options: &MirrorOptions,
    source: &BlockNode,
    target: &BlockNode,
) -> Result<Settings> {
    let granularity = options.granularity;
    if granularity != 0 && !(MIN_GRANULARITY..=MAX_GRANULARITY).contains(&granularity) {
        let text = "Parameter 'granularity' expects a value in range [512B, 64MB]";
        return Err(invalid(text));
    }
    if granularity != 0 && !granularity.is_power_of_two() {
        return Err(invalid("Parameter 'granularity' expects a power of 2"));
    }
    for node in [source, target] {
        if node.job().is_some() {
            let name = node.name();
            let text =
                format!("Node '{name}' is busy: block device is in use by block job: mirror");
            return Err(Error::new(ErrorKind::Busy, text));
        }
    }
    // Another process may change the one, and must find what it left in the other.
    if let Some(idle) = [source, target].into_iter().find(|node| !node.is_active()) {
        let name = idle.name();
        let text = format!("Node '{name}' is inactive, another process may own it");
        return Err(Error::new(ErrorKind::Inactive, text));
    }
    // What is above would see it change.
    check_top(target)?;
    if let Some(name) = &options.replaces {
        end::node_to_replace(graph, source, target, name)?;
    }
    if matches!(options.sync, SyncMode::Incremental | SyncMode::Bitmap) {
        let mode = options.sync.as_str();
        return Err(invalid(format!("Sync mode '{mode}' not supported")));
    }
    let Ok(buf_size) = u64::try_from(options.buf_size) else {
        return Err(invalid("Invalid parameter 'buf-size'"));
    };
    if source.is_same(target) {
        return Err(invalid("Can't mirror node into itself"));
    }
    Ok(Settings {
        granularity: granularity_for(options, target),
        buf_size: if buf_size == 0 { DEFAULT_BUF_SIZE } else { buf_size },
    })
}

/// Bytes in a granule. Where `target` may get layers below it later, it needs whole clusters: what is written
/// of one takes the place of all of it.
fn granularity_for(options: &MirrorOptions, target: &BlockNode) -> u64 {
    let wanted = if options.granularity == 0 { DEFAULT_GRANULARITY } else { options.granularity };
    if options.sync == SyncMode::Full {
        return wanted;
    }
    let cluster = target.skip_filters().limits().discard_granularity;
    // Nobody can ask a server for its cluster. Ours prefer requests of whole ones, and tell.
    let server = target.passes_to().find_map(|node| node.driver().map(NbdDriver::preferred_block));
    wanted.max(cluster.into()).max(server.unwrap_or(0).into())
}

/// Puts the job's roots and its filter into the graph, or leaves it as it was.
async fn build(
    graph: &BlockGraph,
    ctx: &JobCtx,
    options: MirrorOptions,
    settings: Settings,
    source: &BlockNode,
    target: &BlockNode,
) -> Result<MirrorJob> {
    ctx.set_speed(checked_speed(options.speed)?);
    let root = |node: &BlockNode, perms| -> Result<BlockBackend> {
        graph.add_backend(BackendKind::Job, ctx.id(), node, perms)
    };
    // The job reads the source, and everybody else may go on with it; but its length stays, also where a node
    // below decides on that.
    let reads = EdgePerms { needs: Perms::CONSISTENT_READ, shares: !Perms::RESIZE };
    let from = root(source, reads)?;
    let to = root(target, TARGET_PERMS)?;
    let name = options.filter_node_name.clone();
    let mirror = Rc::new(Mirror::new(ctx.clone(), from, to, settings, options)?);
    let top = MirrorTop::new(
        graph.filter_edge(source, ChildRole::Filtered)?,
        graph.edge(target, ChildRole::Target, EdgePerms::IDLE)?,
        Rc::clone(&mirror),
    );
    // It belongs to its parents, or to the job if it has none, and never to the user.
    let node_options =
        NodeOptions { owned: false, read_only: source.is_read_only(), ..NodeOptions::default() };
    let filter = graph.add(name.as_deref(), top, node_options).await?;
    let own = [mirror.source.id(), mirror.target.id()];
    let insert = Edit::new().replace(source, &filter, &own);
    let drained = graph.drain(source, &own).await;
    graph.apply(&insert, &drained)?;
    source.attach_bitmap(Rc::clone(&mirror.bitmap));
    ctx.set_hooks(Rc::new(end::Hooks::new(graph, &mirror)));
    let hold = Hold::new(&mirror);
    Ok(MirrorJob { mirror, graph: graph.clone(), filter, hold, held: None })
}

/// Whether no other node is over `node`.
fn is_root(node: &BlockNode) -> bool {
    let parents = node.0.live_parents();
    !parents.iter().any(|edge| matches!(*edge.0.parent.borrow(), Parent::Node(_)))
}
