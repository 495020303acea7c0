//! Opening an image, with the files that it names.

use std::path::Path;

use serde_json::Value;

use super::driver::Qcow2Driver;
use super::header::Header;
use super::image::{Behaviour, Below, Image, Witness};
use super::options::{BackingRef, Qcow2Options};
use super::snapshot::load_header;
use crate::buf::IoBuf;
use crate::edge::{ChildRole, EdgePerms, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{PROBED_BYTES, recognise};
use crate::job::JobRegistry;
use crate::node::BlockNode;
use crate::open::{
    BlockdevOptions, BlockdevRef, DiscardMode, DriverOptions, Opening, json_name, protocol_name,
};

/// Seconds after which an unused part of the cache is given up, QEMU's default.
const CLEAN_INTERVAL: u64 = 600;

impl Qcow2Options {
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<BlockNode> {
        if self.encrypt.is_some() {
            return refuse(ErrorKind::Unsupported, "encrypted images are not supported");
        }
        let (graph, read_only) = (opening.graph(), opening.node_options().read_only);
        if self.x_snapshot.is_some() && !read_only {
            let text = "a snapshot can only be opened read-only";
            return refuse(ErrorKind::InvalidArgument, text);
        }
        let perms = file_perms(read_only);
        let node = opening.child(&self.file, ChildRole::File).await?;
        let file = graph.edge(&node, ChildRole::File, perms)?;
        let snapshot = self.x_snapshot.as_ref();
        let header = load_header(&file, snapshot).await?;
        let data = match self.open_data(opening, &header).await? {
            Some(node) => Some(graph.edge(&node, ChildRole::Data, perms)?),
            None => None,
        };
        let backing = match self.open_backing(opening, &header, &node).await? {
            Some(node) => Some(graph.backing_edge(&node)?),
            None => None,
        };
        let behaviour = self.behaviour(opening, &header)?;
        let below = Below { file, data, backing };
        let jobs = JobRegistry::of(graph);
        let witness = Witness { jobs, node_name: opening.options().node_name.clone() };
        let image =
            Image::new(graph.executor(), witness, below, snapshot.cloned(), header, behaviour);
        image.read_only.set(read_only);
        image.names_backing.set(self.backing == BackingRef::FromImage);
        image.reload().await?;
        opening.add(Qcow2Driver::new(image)).await
    }

    fn behaviour(&self, opening: &Opening<'_>, header: &Header) -> Result<Behaviour> {
        let node = opening.node_options();
        let geometry = header.geometry;
        let l2_bytes = geometry.l1_entries_for(header.size) << geometry.cluster_bits();
        let unmap = node.discard == DiscardMode::Unmap;
        let interval = self.cache_clean_interval.unwrap_or(CLEAN_INTERVAL);
        if interval > u32::MAX.into() {
            return refuse(ErrorKind::InvalidArgument, "Cache clean interval too big");
        }
        Ok(Behaviour {
            pass_discard_request: self.pass_discard_request.unwrap_or(unmap),
            pass_discard_other: self.pass_discard_other.unwrap_or(false),
            discard_no_unref: self.discard_no_unref.unwrap_or(false),
            lazy_refcounts: self.lazy_refcounts,
            overlap: self.overlap_check.unwrap_or_default().resolve(),
            caches: self.cache_sizes(geometry.cluster_size(), l2_bytes)?,
            clean_interval: interval.saturating_mul(1_000_000_000),
        })
    }

    /// The external data file, if the image has one.
    async fn open_data(&self, opening: &Opening<'_>, header: &Header) -> Result<Option<BlockNode>> {
        let has = header.geometry.has_external_data();
        let child = match (&self.data_file, &header.extensions.data_file) {
            (Some(_), _) if !has => {
                let text = "'data-file' can only be set for images with an external data file";
                return refuse(ErrorKind::InvalidArgument, text);
            }
            _ if !has => return Ok(None),
            (Some(child), _) => child.clone(),
            (None, Some(name)) => BlockdevRef::nested(data_options(name)?),
            (None, None) => {
                return refuse(
                    ErrorKind::InvalidArgument,
                    "'data-file' is required for this image",
                );
            }
        };
        opening.child(&child, ChildRole::Data).await.map(Some)
    }

    /// The node below, as the options or the image say.
    async fn open_backing(
        &self,
        opening: &Opening<'_>,
        header: &Header,
        file: &BlockNode,
    ) -> Result<Option<BlockNode>> {
        let child = match (&self.backing, &header.backing_file) {
            (BackingRef::None, _) | (BackingRef::FromImage, None) => return Ok(None),
            (BackingRef::Node(child), _) => child.clone(),
            (BackingRef::FromImage, Some(name)) => {
                let format = header.extensions.backing_format.as_deref();
                let (image, opening) = (file.filename(), &opening.below(file).await);
                let opened = backing_options(opening, image.as_deref(), name, format).await;
                let (child, probed) =
                    opened.map_err(|error| error.context("Could not open backing file"))?;
                let node = opening.child(&child, ChildRole::Backing).await;
                // Only now somebody else keeps what was opened to look at it.
                drop(probed);
                return node.map(Some);
            }
        };
        opening.child(&child, ChildRole::Backing).await.map(Some)
    }
}

/// The node that the name of a data file means. Unlike a backing file's it is seen from where we are,
/// not from where the image is: so does QEMU.
fn data_options(name: &str) -> Result<BlockdevOptions> {
    match json_name(name).or_else(|| protocol_name(name)) {
        Some(options) => from_json(name, options?),
        None => Ok(BlockdevOptions::file(name.strip_prefix("file:").unwrap_or(name).to_owned())),
    }
}

/// The node that a backing file name means: a path, relative to the image's directory, the address
/// of an NBD export, or `json:` with the options of `blockdev-add`. The file itself, if it had to be opened to find out
/// its format, is returned to be kept until the node is there.
async fn backing_options(
    opening: &Opening<'_>,
    image: Option<&str>,
    name: &str,
    format: Option<&str>,
) -> Result<(BlockdevRef, Option<BlockNode>)> {
    if let Some(options) = json_name(name) {
        return Ok((BlockdevRef::nested(from_json(name, options?)?), None));
    }
    let file = match protocol_name(name) {
        Some(options) => from_json(name, options?)?,
        None => BlockdevOptions::file(beside(image, name)?),
    };
    let (file, format, probed) = match format {
        Some(format) => (BlockdevRef::nested(file), format.to_owned(), None),
        None => {
            let child = opening.child(&BlockdevRef::nested(file), ChildRole::Backing).await?;
            let format = probe(&child).await?.to_owned();
            tracing::warn!("the format of backing file '{name}' is taken to be {format}");
            (BlockdevRef::Name(child.name().to_owned()), format, Some(child))
        }
    };
    let options = match format.as_str() {
        "qcow2" => BlockdevOptions::new(DriverOptions::Qcow2(Box::new(Qcow2Options::new(file)))),
        "raw" => BlockdevOptions::raw(file),
        "file" | "host_device" => return Ok((file, probed)),
        other => {
            let text = format!("backing file '{name}' has format '{other}', which is not known");
            return refuse(ErrorKind::Unsupported, &text);
        }
    };
    Ok((BlockdevRef::nested(options), probed))
}

fn from_json(name: &str, options: Value) -> Result<BlockdevOptions> {
    serde_json::from_value(options).map_err(|error| {
        Error::new(ErrorKind::InvalidArgument, format!("the file '{name}': {error}"))
    })
}

/// The format of a file that nobody will write: only then may its content decide.
async fn probe(node: &BlockNode) -> Result<&'static str> {
    let len = usize::try_from(node.len()).unwrap_or(usize::MAX).min(PROBED_BYTES);
    let start = IoBuf::alloc(len);
    node.read(0, start.clone()).await?;
    Ok(recognise(&start.to_vec()).unwrap_or("raw"))
}

/// The path of a file that an image names, relative to the image's directory.
pub(super) fn beside(image: Option<&str>, name: &str) -> Result<String> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    if Path::new(name).is_absolute() {
        return Ok(name.to_owned());
    }
    match image.map(Path::new).and_then(Path::parent) {
        Some(directory) => Ok(directory.join(name).to_string_lossy().into_owned()),
        None => {
            let text = format!("'{name}' is relative to an image that is in no directory");
            refuse(ErrorKind::InvalidArgument, &text)
        }
    }
}

/// What an image does to its files, and lets others do.
pub(crate) fn file_perms(read_only: bool) -> EdgePerms {
    if read_only {
        return EdgePerms::READ;
    }
    EdgePerms {
        needs: Perms::CONSISTENT_READ | Perms::WRITE | Perms::RESIZE,
        shares: Perms::CONSISTENT_READ | Perms::WRITE_UNCHANGED,
    }
}

fn refuse<T>(kind: ErrorKind, text: &str) -> Result<T> {
    Err(Error::new(kind, text))
}
