//! Snapshots: overlays that take a node's place, and those inside an image.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use ferry_api::command::{
    BlockdevSnapshot, BlockdevSnapshotDeleteInternal, BlockdevSnapshotInternal,
    BlockdevSnapshotSync, ChangeBackingFile, NewImageMode, SnapshotInfo,
};
use ferry_block::format::qcow2::snapshot::{Moment, Snapshot};
use ferry_block::format::qcow2::{BackingRef, Qcow2Options};
use ferry_block::job::create::{CreateImage, create_image};
use ferry_block::{
    BlockGraph, BlockNode, BlockdevOptions, BlockdevRef, CacheOptions, Drained, DriverOptions,
    Error, ErrorKind, ExternalSnapshot, json_name,
};
use serde_json::Value;

use super::blockdev::find;
use super::{Result, Storage};
use crate::events::signed;

/// The overlay of an external snapshot.
pub(super) enum Overlay {
    /// A node that is there.
    Node(BlockdevSnapshot),
    /// An image that is opened, and made before.
    Image(BlockdevSnapshotSync),
}

/// A node and the overlay that is to take its place.
pub(super) struct Prepared {
    node: BlockNode,
    overlay: BlockNode,
    /// Whether the overlay was opened for this.
    opened: bool,
    /// Whether it was made for this, too.
    made: bool,
}

/// An overlay in its place; see [`ExternalSnapshot`].
pub(super) struct Placed {
    snapshot: ExternalSnapshot,
    opened: bool,
}

impl Storage {
    /// `blockdev-snapshot` and `blockdev-snapshot-sync`: requests wait only while the overlay moves in.
    pub(super) async fn snapshot(&self, overlay: Overlay) -> Result<()> {
        let take = |graph: BlockGraph| async move {
            let prepared = overlay.prepare(&graph).await?;
            let both = vec![prepared.node.clone(), prepared.overlay.clone()];
            let drained = graph.drain_nodes(both, &[]).await;
            let placed = prepared.place(&graph, &drained).await?;
            drop(drained);
            placed.commit(&graph).await;
            Ok(())
        };
        self.in_turn(take).await
    }

    /// `blockdev-snapshot-internal-sync`
    pub(super) async fn snapshot_internal(&self, asked: BlockdevSnapshotInternal) -> Result<()> {
        self.in_turn(|graph| async move { take_internal(&graph, &asked).await.map(drop) }).await
    }

    /// `blockdev-snapshot-delete-internal-sync`
    pub(super) async fn delete_internal(
        &self,
        asked: BlockdevSnapshotDeleteInternal,
    ) -> Result<SnapshotInfo> {
        let delete = |graph: BlockGraph| async move {
            let node = graph.device_or_node(&asked.device)?;
            let (id, name) = (asked.id.as_deref(), asked.name.as_deref());
            graph.delete_internal_snapshot(&asked.device, &node, id, name).await
        };
        self.in_turn(delete).await.map(|snapshot| snapshot_info(&snapshot))
    }

    /// `change-backing-file`: only what the image says changes, not what is below it now.
    pub(super) async fn change_backing_file(&self, asked: ChangeBackingFile) -> Result<()> {
        let change = |graph: BlockGraph| async move {
            let top = graph.device_or_node(&asked.device)?;
            let image = find(&graph, None, Some(&asked.image_node_name))?;
            graph.change_backing_file(&top, &image, &asked.backing_file).await
        };
        self.in_turn(change).await
    }
}

/// Takes a snapshot inside the image of a device or node.
pub(super) async fn take_internal(
    graph: &BlockGraph,
    asked: &BlockdevSnapshotInternal,
) -> ferry_block::Result<(BlockNode, Snapshot)> {
    let node = graph.device_or_node(&asked.device)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let when = Moment {
        seconds: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        nanoseconds: now.subsec_nanos(),
        vm_clock_nsec: 0,
    };
    let taken = graph.take_internal_snapshot(&asked.device, &node, &asked.name, when).await?;
    Ok((node, taken))
}

/// A snapshot inside an image as QMP tells of it.
pub(super) fn snapshot_info(from: &Snapshot) -> SnapshotInfo {
    const SECOND: u64 = 1_000_000_000;
    SnapshotInfo {
        id: from.id.clone(),
        name: from.name.clone(),
        vm_state_size: signed(from.vm_state_size),
        date_sec: i64::from(from.date_sec),
        date_nsec: i64::from(from.date_nsec),
        vm_clock_sec: signed(from.vm_clock_nsec / SECOND),
        vm_clock_nsec: signed(from.vm_clock_nsec % SECOND),
        icount: from.icount.map(signed),
    }
}

impl Overlay {
    /// Finds the node and the overlay, which is made and opened if need be.
    pub(super) async fn prepare(self, graph: &BlockGraph) -> ferry_block::Result<Prepared> {
        match self {
            Overlay::Node(asked) => {
                let node = graph.device_or_node(&asked.node)?;
                graph.check_snapshot(&node)?;
                let overlay = graph.device_or_node(&asked.overlay)?;
                Ok(Prepared { node, overlay, opened: false, made: false })
            }
            Overlay::Image(asked) => {
                let node = find(graph, asked.device.as_deref(), asked.node_name.as_deref())?;
                graph.check_snapshot(&node)?;
                let overlay = open_overlay(graph, &node, &asked).await?;
                let made = asked.mode != Some(NewImageMode::Existing);
                Ok(Prepared { node, overlay, opened: true, made })
            }
        }
    }
}

impl Prepared {
    /// Puts the overlay in its place, or closes it if it was opened for that.
    pub(super) async fn place(
        self,
        graph: &BlockGraph,
        drained: &Drained,
    ) -> ferry_block::Result<Placed> {
        let placed = match self.fit().await {
            Ok(()) => graph.snapshot(&self.node, &self.overlay, drained).await,
            Err(error) => Err(error),
        };
        match placed {
            Ok(snapshot) => Ok(Placed { snapshot, opened: self.opened }),
            Err(error) => {
                close(graph, &self.overlay, self.opened).await;
                Err(error)
            }
        }
    }

    /// Gives an overlay that was made for this the length of the node: an image's file has grown meanwhile, if
    /// somebody wrote to the image.
    async fn fit(&self) -> ferry_block::Result<()> {
        match self.made && self.overlay.len() != self.node.len() {
            true => self.overlay.resize(self.node.len()).await,
            false => Ok(()),
        }
    }
}

impl Placed {
    /// Makes it stay; see [`ExternalSnapshot::commit`]. An overlay that was opened for this lives as long as
    /// somebody uses it.
    pub(super) async fn commit(self, graph: &BlockGraph) {
        let overlay = self.snapshot.overlay().clone();
        self.snapshot.commit().await;
        if self.opened {
            graph.disown(&overlay);
            graph.release(overlay).await;
        }
    }

    /// Takes it back; see [`ExternalSnapshot::undo`]. The overlay's file stays.
    pub(super) async fn undo(self, graph: &BlockGraph, drained: &Drained) {
        let overlay = self.snapshot.overlay().clone();
        self.snapshot.undo(drained);
        close(graph, &overlay, self.opened).await;
    }
}

async fn close(graph: &BlockGraph, overlay: &BlockNode, opened: bool) {
    if opened && let Err(error) = graph.remove(overlay.name()).await {
        tracing::error!("node '{}' cannot be closed: {error}", overlay.name());
    }
}

/// Opens the overlay, like the node that it will be over, after making it unless it is there.
async fn open_overlay(
    graph: &BlockGraph,
    node: &BlockNode,
    asked: &BlockdevSnapshotSync,
) -> ferry_block::Result<BlockNode> {
    let refuse = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
    let name = asked.snapshot_node_name.as_deref();
    if asked.node_name.is_some() && name.is_none() {
        return refuse("New overlay node-name missing".to_owned());
    }
    if name.is_some_and(|name| graph.device_or_node(name).is_ok()) {
        return refuse("New overlay node-name already in use".to_owned());
    }
    let existing = asked.mode == Some(NewImageMode::Existing);
    match (asked.format.as_deref().unwrap_or("qcow2"), existing) {
        ("qcow2", _) => {}
        ("raw", true) => return refuse("The overlay does not support backing images".to_owned()),
        ("raw", false) => {
            return refuse("Backing file not supported for file format 'raw'".to_owned());
        }
        (format, true) => return refuse(format!("Unknown driver '{format}'")),
        (format, false) => return refuse(format!("Unknown file format '{format}'")),
    }
    if !existing {
        let backing = (absolute_name(node)?, node.skip_filters().format().to_owned());
        let path = &asked.snapshot_file;
        create_image(graph, &CreateImage::file(path, 0)).await?;
        create_image(graph, &CreateImage::overlay(path, node.len(), backing)).await?;
    }
    let (like, file) = (node.options(), BlockdevOptions::file(&asked.snapshot_file));
    let qcow2 =
        Qcow2Options { backing: BackingRef::None, ..Qcow2Options::new(BlockdevRef::nested(file)) };
    let options = BlockdevOptions {
        node_name: name.map(str::to_owned),
        read_only: Some(like.read_only),
        discard: Some(like.discard),
        cache: Some(CacheOptions { direct: Some(like.direct), no_flush: None }),
        active: Some(node.is_active()),
        ..BlockdevOptions::new(DriverOptions::Qcow2(Box::new(qcow2)))
    };
    graph.open(&options).await
}

/// The name by which an image in any folder can find what `node` reads.
fn absolute_name(node: &BlockNode) -> ferry_block::Result<String> {
    let name = node.image_name().ok_or_else(|| {
        let context = format!(
            "node '{}' has no file name that an image could give: make the overlay and use \
             blockdev-snapshot",
            node.name()
        );
        Error::new(ErrorKind::InvalidArgument, context)
    })?;
    if let Some(options) = json_name(&name) {
        let mut options = options?;
        make_absolute(&mut options)?;
        return Ok(format!("json:{options}"));
    }
    if name.contains(':') {
        return Ok(name);
    }
    absolute_path(&name)
}

/// The same options with the path of the file at the bottom seen from the root.
fn make_absolute(options: &mut Value) -> ferry_block::Result<()> {
    if let Some(file) = options.get_mut("file") {
        return make_absolute(file);
    }
    if let Some(Value::String(name)) = options.get_mut("filename") {
        *name = absolute_path(name)?;
    }
    Ok(())
}

fn absolute_path(name: &str) -> ferry_block::Result<String> {
    let failed = |error| Error::from_io(error, format!("cannot tell where '{name}' is"));
    let path = std::path::absolute(Path::new(name)).map_err(failed)?;
    Ok(path.to_string_lossy().into_owned())
}
