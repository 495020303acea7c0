//! Options as `blockdev-add` takes them, and the one place that opens images.

use std::time::Duration;

use serde::Deserialize;

use crate::driver::LocalBoxFuture;
use crate::error::{Error, ErrorKind, Result};
use crate::format::raw::RawDriver;
use crate::graph::BlockGraph;
use crate::node::{BlockNode, NodeOptions};
use crate::protocol::file::{FileDriver, FileOptions};
use crate::protocol::null::NullDriver;

/// Deepest nesting of nodes in one set of options.
const MAX_DEPTH: usize = 16;
/// Size of a `null-co` disk when none is given, as in QEMU.
const NULL_SIZE: u64 = 1 << 30;

/// What is to happen to discards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiscardMode {
    /// They are ignored, and zeroes keep their space.
    #[default]
    #[serde(alias = "off")]
    Ignore,
    /// They are passed on.
    #[serde(alias = "on")]
    Unmap,
}

/// Whether writes of zeroes are recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DetectZeroes {
    /// They are written like any other.
    #[default]
    Off,
    /// They are written as zeroes.
    On,
    /// And may give their space back.
    Unmap,
}

/// Whether an image is locked against other programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Locking {
    /// It is.
    #[default]
    Auto,
    /// It is.
    On,
    /// It is not: somebody else makes sure that nobody interferes.
    Off,
}

/// Host cache options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CacheOptions {
    /// Past the host's page cache.
    pub direct: Option<bool>,
    /// Accepted for compatibility if false: flushes are never dropped.
    pub no_flush: Option<bool>,
}

/// The driver of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverName {
    /// A file or block device of the host.
    #[serde(alias = "host_device")]
    File,
    /// The bytes of another node.
    Raw,
    /// A disk without storage.
    NullCo,
}

/// A node below: by name, or opened together with its parent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum FileRef {
    /// A node that exists.
    Name(String),
    /// A node of its own.
    Nested(Box<BlockdevOptions>),
}

/// The arguments of QMP's `blockdev-add`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "the members are QMP's, described there")]
pub struct BlockdevOptions {
    pub driver: DriverName,
    pub node_name: Option<String>,
    pub read_only: Option<bool>,
    pub auto_read_only: Option<bool>,
    pub force_share: Option<bool>,
    pub discard: Option<DiscardMode>,
    pub detect_zeroes: Option<DetectZeroes>,
    pub cache: Option<CacheOptions>,
    /// Whether to take write ownership at once; a migration's destination does not.
    pub active: Option<bool>,
    /// `raw`: the node below.
    pub file: Option<FileRef>,
    /// `raw`: first byte of the window.
    pub offset: Option<u64>,
    /// `raw`: bytes of the window; `null-co`: bytes of the disk.
    pub size: Option<u64>,
    /// `file`: the path.
    pub filename: Option<String>,
    /// `file`: whether to lock it.
    pub locking: Option<Locking>,
    /// `file`: accepted for compatibility; the thread decides.
    pub aio: Option<String>,
    /// `null-co`: how long each request takes.
    pub latency_ns: Option<u64>,
    /// `null-co`: whether reads give zeroes.
    pub read_zeroes: Option<bool>,
}

impl BlockdevOptions {
    /// Options of a driver with nothing set.
    pub fn new(driver: DriverName) -> BlockdevOptions {
        BlockdevOptions {
            driver,
            node_name: None,
            read_only: None,
            auto_read_only: None,
            force_share: None,
            discard: None,
            detect_zeroes: None,
            cache: None,
            active: None,
            file: None,
            offset: None,
            size: None,
            filename: None,
            locking: None,
            aio: None,
            latency_ns: None,
            read_zeroes: None,
        }
    }

    /// A file of the host.
    pub fn file(path: impl Into<String>) -> BlockdevOptions {
        BlockdevOptions { filename: Some(path.into()), ..BlockdevOptions::new(DriverName::File) }
    }

    /// The raw format over a file of the host: what a disk of a guest is.
    pub fn raw_file(path: impl Into<String>) -> BlockdevOptions {
        let file = FileRef::Nested(Box::new(BlockdevOptions::file(path)));
        BlockdevOptions { file: Some(file), ..BlockdevOptions::new(DriverName::Raw) }
    }

    /// Refuses members that the driver does not have.
    fn check(&self) -> Result<()> {
        let (raw, file, null) = match self.driver {
            DriverName::Raw => (true, false, false),
            DriverName::File => (false, true, false),
            DriverName::NullCo => (false, false, true),
        };
        let members = [
            ("file", self.file.is_some(), raw, raw),
            ("offset", self.offset.is_some(), raw, false),
            ("size", self.size.is_some(), raw || null, false),
            ("filename", self.filename.is_some(), file, file),
            ("locking", self.locking.is_some(), file, false),
            ("aio", self.aio.is_some(), file, false),
            ("latency-ns", self.latency_ns.is_some(), null, false),
            ("read-zeroes", self.read_zeroes.is_some(), null, false),
        ];
        for (name, given, allowed, needed) in members {
            let text = match (given, allowed, needed) {
                (true, false, _) => format!("Parameter '{name}' is unexpected"),
                (false, _, true) => format!("Parameter '{name}' is missing"),
                _ => continue,
            };
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        let unmap = self.detect_zeroes == Some(DetectZeroes::Unmap);
        if unmap && self.discard != Some(DiscardMode::Unmap) {
            let text = "setting detect-zeroes to unmap is not allowed without setting discard \
                        operation to unmap";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        if self.cache.and_then(|cache| cache.no_flush) == Some(true) {
            let text = "cache.no-flush=on would lose acknowledged writes and is not supported";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if self.force_share == Some(true) && self.read_only != Some(true) {
            let text = "force-share=on can only be used with read-only images";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        Ok(())
    }

    /// What a nested node takes over from its parent unless it says otherwise.
    fn inherited(&self, parent: &BlockdevOptions) -> BlockdevOptions {
        let mut own = self.clone();
        own.read_only = own.read_only.or(parent.read_only);
        own.force_share = own.force_share.or(parent.force_share);
        own.active = own.active.or(parent.active);
        // The parent decides what to discard; its file only carries it out.
        own.discard = own.discard.or(Some(DiscardMode::Unmap));
        let direct = parent.cache.and_then(|cache| cache.direct);
        let cache = own.cache.unwrap_or_default();
        own.cache = Some(CacheOptions { direct: cache.direct.or(direct), ..cache });
        own
    }
}

impl BlockGraph {
    /// Opens what `blockdev-add` describes. The node stays until [`BlockGraph::remove`]; nodes that
    /// were opened with it go with it. Nothing is left behind on an error.
    pub async fn open(&self, options: &BlockdevOptions) -> Result<BlockNode> {
        self.open_at(options.clone(), 0).await
    }

    fn open_at(
        &self,
        options: BlockdevOptions,
        depth: usize,
    ) -> LocalBoxFuture<'_, Result<BlockNode>> {
        Box::pin(async move {
            options.check()?;
            let name = options.node_name.as_deref();
            let node_options = NodeOptions {
                read_only: options.read_only.unwrap_or(false),
                direct: options.cache.and_then(|cache| cache.direct) == Some(true),
                discard: options.discard.unwrap_or_default(),
                detect_zeroes: options.detect_zeroes.unwrap_or_default(),
                active: options.active.unwrap_or(true),
                owned: depth == 0,
            };
            match options.driver {
                DriverName::Raw => {
                    let file = self.open_child(&options, depth).await?;
                    let offset = options.offset.unwrap_or(0);
                    let driver = RawDriver::new(self, &file, offset, options.size)?;
                    self.add(name, driver, node_options).await
                }
                DriverName::File => {
                    let force_share = options.force_share == Some(true);
                    let locking = options.locking.unwrap_or_default();
                    let file_options = FileOptions {
                        read_only: node_options.read_only,
                        direct: node_options.direct,
                        locking: if force_share { Locking::Off } else { locking },
                    };
                    let path = options.filename.as_deref().unwrap_or_default();
                    let driver = FileDriver::open(self.executor(), path, file_options).await?;
                    self.add(name, driver, node_options).await
                }
                DriverName::NullCo => {
                    let latency = Duration::from_nanos(options.latency_ns.unwrap_or(0));
                    let size = options.size.unwrap_or(NULL_SIZE);
                    let zeroes = options.read_zeroes == Some(true);
                    let driver = NullDriver::new(self.executor().clone(), size, zeroes, latency);
                    self.add(name, driver, node_options).await
                }
            }
        })
    }

    /// The node that `file` names or describes.
    async fn open_child(&self, parent: &BlockdevOptions, depth: usize) -> Result<BlockNode> {
        match &parent.file {
            Some(FileRef::Name(name)) => self.node(name).ok_or_else(|| {
                let context = format!("Cannot find device='' nor node-name='{name}'");
                Error::new(ErrorKind::NotFound, context)
            }),
            Some(FileRef::Nested(options)) if depth < MAX_DEPTH => {
                self.open_at(options.inherited(parent), depth + 1).await
            }
            _ => Err(Error::new(ErrorKind::InvalidArgument, "nodes are nested too deeply")),
        }
    }
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
