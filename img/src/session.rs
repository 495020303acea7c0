//! The block layer of one command: an executor on this thread, a graph, and the images in it.

use std::os::unix::fs::MetadataExt;

use ferry_block::format::{PROBED_BYTES, recognise};
use ferry_block::{
    BackendKind, BlockBackend, BlockGraph, BlockNode, BlockdevOptions, Clock, DriverOptions,
    EdgePerms, Executor, IoBuf, Perms, RingChoice,
};
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::location::{self, Location};
use crate::object::Objects;

/// What a command does to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reads.
    Read,
    /// Reads, also while another program writes.
    Share,
    /// Reads and writes.
    Write,
    /// Changes the length, too.
    Resize,
}

/// How an image is to be opened.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    /// What the user wrote.
    pub(crate) name: &'a str,
    /// `--image-opts`: it is a list of options.
    pub(crate) image_opts: bool,
    /// The format; without one it is found out.
    pub(crate) format: Option<&'a str>,
    pub(crate) access: Access,
    /// The host's cache mode.
    pub(crate) cache: Cache,
    /// Without the images below it.
    pub(crate) alone: bool,
    /// The internal snapshot to show, as the driver takes it.
    pub(crate) snapshot: Option<&'a Value>,
}

impl<'a> Request<'a> {
    /// An image to be read.
    pub(crate) fn read(name: &'a str, format: Option<&'a str>) -> Request<'a> {
        let (access, cache) = (Access::Read, Cache::default());
        Request { name, image_opts: false, format, access, cache, alone: false, snapshot: None }
    }
}

impl Request<'_> {
    fn location(&self) -> Result<Location> {
        match self.image_opts {
            true => Location::options(self.name),
            false => Location::parse(self.name),
        }
    }
}

/// A cache mode as `-t` and `-T` name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cache {
    /// Past the host's page cache.
    pub(crate) direct: bool,
    /// Every write is durable when it has ended. Only `bench` makes a difference of it: what others have written is
    /// durable when they end.
    pub(crate) writethrough: bool,
    /// Nothing is flushed.
    pub(crate) no_flush: bool,
}

impl Cache {
    /// The mode of that name.
    pub(crate) fn parse(name: &str) -> Result<Cache> {
        let (direct, writethrough, no_flush) = match name {
            "none" | "off" => (true, false, false),
            "directsync" => (true, true, false),
            "writeback" => (false, false, false),
            "writethrough" => (false, true, false),
            "unsafe" => (false, false, true),
            _ => return Err(Failure::new(format!("Invalid cache option: {name}"))),
        };
        Ok(Cache { direct, writethrough, no_flush })
    }
}

/// The block layer of one command.
pub(crate) struct Session {
    pub(crate) graph: BlockGraph,
}

/// An open image.
pub(crate) struct Image {
    /// The name as the user wrote it.
    pub(crate) name: String,
    pub(crate) node: BlockNode,
    /// The hold on it, with its locks.
    pub(crate) root: BlockBackend,
}

impl Image {
    /// Bytes of the disk.
    pub(crate) fn len(&self) -> u64 {
        self.node.len()
    }
}

impl Session {
    /// Runs a command to its end; options of images may refer to `objects`.
    pub(crate) fn run<T>(
        objects: &Objects,
        command: impl AsyncFnOnce(&Session) -> Result<T>,
    ) -> Result<T> {
        Session::run_on(RingChoice::Auto, objects, command)
    }

    /// [`run`](Session::run) with a choice of how requests are made. Threads copy through the page
    /// cache on all processors; a ring is for requests past it.
    pub(crate) fn run_on<T>(
        ring: RingChoice,
        objects: &Objects,
        command: impl AsyncFnOnce(&Session) -> Result<T>,
    ) -> Result<T> {
        let executor = Executor::new(Clock::real())?;
        executor.set_ring_choice(ring);
        // Nobody waits for a single request, so a busy processor would only be in the way.
        executor.set_poll_max_ns(0);
        let session = Session { graph: BlockGraph::new(executor.clone()) };
        executor.block_on(async {
            objects.load(&session).await?;
            let result = command(&session).await;
            let closed = session.close().await;
            // What went wrong first explains the rest.
            result.and_then(|output| closed.map(|()| output))
        })
    }

    /// Lets every image write out what it still holds. A raw image holds nothing.
    async fn close(&self) -> Result<()> {
        let holds = |node: &BlockNode| node.format() == "qcow2" && !node.is_read_only();
        if self.graph.nodes().iter().any(holds) {
            self.graph.close_all().await?;
        }
        Ok(())
    }

    /// Opens an image; errors name it.
    pub(crate) async fn open(&self, request: &Request<'_>) -> Result<Image> {
        let name = request.name;
        self.try_open(request)
            .await
            .map_err(|failure| failure.context(format!("Could not open '{name}'")))
    }

    async fn try_open(&self, request: &Request<'_>) -> Result<Image> {
        let location = request.location()?;
        let mut guessed = false;
        let mut options = match location.protocol() {
            Some(protocol) => {
                let format = match request.format {
                    Some(format) => format.to_owned(),
                    None => self.probe(request, &protocol).await?,
                };
                guessed = request.format.is_none();
                json!({"driver": format, "file": protocol})
            }
            None => match location {
                Location::Image(options) => options,
                Location::File(_) | Location::Protocol(_) => Value::Null,
            },
        };
        if request.alone {
            leave_alone(&mut options);
        }
        if let Some(snapshot) = request.snapshot {
            if options["driver"] != "qcow2" {
                let text = format!("images of format {} have no snapshots", options["driver"]);
                return Err(Failure::new(text));
            }
            options["x-snapshot"] = snapshot.clone();
        }
        let mut options = with_common(location::blockdev(options)?, request);
        if let DriverOptions::Raw(raw) = &mut options.driver {
            raw.guessed = guessed;
        }
        let node = self.graph.open(&options).await?;
        let root = self.hold(&node, request.access)?;
        Ok(Image { name: request.name.to_owned(), node, root })
    }

    /// The format of an image, and the file that holds it, without a driver of that format.
    pub(crate) async fn open_container(&self, request: &Request<'_>) -> Result<(String, Image)> {
        let name = request.name;
        self.try_container(request)
            .await
            .map_err(|failure| failure.context(format!("Could not open '{name}'")))
    }

    async fn try_container(&self, request: &Request<'_>) -> Result<(String, Image)> {
        let location = request.location()?;
        let (format, protocol) = match (&location, location.protocol()) {
            (Location::Image(options), _) => {
                let driver = options["driver"].as_str().unwrap_or_default();
                // A protocol without a format holds itself.
                let file = if options["file"].is_null() { options } else { &options["file"] };
                (driver.to_owned(), file.clone())
            }
            (_, Some(protocol)) => match request.format {
                Some(format) => (format.to_owned(), protocol),
                None => (self.probe(request, &protocol).await?, protocol),
            },
            _ => return Err(Failure::new("the options name no file")),
        };
        let image = self.open_protocol(protocol, request.access).await?;
        Ok((format, image))
    }

    /// A hold on a node.
    pub(crate) fn hold(&self, node: &BlockNode, access: Access) -> Result<BlockBackend> {
        let perms = match access {
            Access::Read => EdgePerms::READ,
            Access::Share => EdgePerms { needs: Perms::CONSISTENT_READ, shares: Perms::ALL },
            Access::Write => EdgePerms::READ_WRITE,
            Access::Resize => EdgePerms {
                needs: EdgePerms::READ_WRITE.needs | Perms::RESIZE,
                shares: EdgePerms::READ.shares,
            },
        };
        Ok(self.graph.add_backend(BackendKind::Job, "ferry img", node, perms)?)
    }

    /// A protocol node of its own, as a format's container.
    pub(crate) async fn open_protocol(&self, protocol: Value, access: Access) -> Result<Image> {
        let name = protocol["filename"].as_str().unwrap_or_default().to_owned();
        let request = Request { access, ..Request::read(&name, None) };
        let options = with_common(location::blockdev(protocol)?, &request);
        let node = self.graph.open(&options).await?;
        let root = self.hold(&node, access)?;
        Ok(Image { name, node, root })
    }

    /// The format that the first bytes of an image show. Who writes to a raw image should say that it
    /// is raw: otherwise its driver keeps it from looking like anything else.
    async fn probe(&self, request: &Request<'_>, protocol: &Value) -> Result<String> {
        let access = match request.access {
            Access::Share => Access::Share,
            _ => Access::Read,
        };
        let image = self.open_protocol(protocol.clone(), access).await?;
        let len = usize::try_from(image.len()).unwrap_or(usize::MAX).min(PROBED_BYTES);
        let head = IoBuf::alloc(len);
        image.root.read(0, head.clone()).await?;
        self.forget(image);
        let head = head.to_vec();
        if let Some(format) = recognise(&head) {
            return match format {
                "qcow2" => Ok(format.to_owned()),
                other => Err(Failure::new(format!("the format '{other}' is not supported"))),
            };
        }
        if !matches!(request.access, Access::Read | Access::Share) {
            crate::say(&format!(
                "warning: Image format was not specified for '{}' and probing guessed raw.\n         \
                 Automatically detecting the format is dangerous for raw images, write operations \
                 on block 0 will be restricted.\n         Specify the 'raw' format explicitly to \
                 remove the restrictions.",
                request.name
            ));
        }
        Ok("raw".to_owned())
    }

    /// Closes an image that nothing was written to.
    pub(crate) fn forget(&self, image: Image) {
        self.graph.disown(&image.node);
    }
}

/// Takes away what is below an image, which may have filters on top.
fn leave_alone(options: &mut Value) {
    if options["driver"] == "qcow2" {
        options["backing"] = Value::Null;
        return;
    }
    // Filters name what is below them in one of these ways.
    for key in ["file", "image"] {
        if let Some(below) = options.get_mut(key).filter(|below| below.is_object()) {
            leave_alone(below);
        }
    }
}

/// What a request says of every node.
fn with_common(options: BlockdevOptions, request: &Request<'_>) -> BlockdevOptions {
    let reads = matches!(request.access, Access::Read | Access::Share);
    let cache = ferry_block::CacheOptions { direct: Some(request.cache.direct), no_flush: None };
    BlockdevOptions {
        read_only: options.read_only.or(Some(reads)),
        force_share: options.force_share.or((request.access == Access::Share).then_some(true)),
        cache: options.cache.or(Some(cache)),
        discard: options.discard.or(Some(ferry_block::DiscardMode::Unmap)),
        ..options
    }
}

/// Bytes that a file occupies on its host.
pub(crate) fn disk_size(node: &BlockNode) -> Option<u64> {
    let below = node.children().into_iter().map(|edge| edge.node());
    let mut file = node.clone();
    if let Some(first) = below.into_iter().next() {
        file = first;
    }
    let metadata = std::fs::metadata(file.filename()?).ok()?;
    Some(metadata.blocks() * 512)
}
