//! The arguments of QMP's `blockdev-add`: what all nodes have, and below it the driver's own.

use serde::Deserialize;

use crate::edge::ChildRole;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::blkdebug::BlkdebugOptions;
use crate::filter::compress::CompressOptions;
use crate::filter::copy_before_write::{CopyBeforeWriteOptions, SnapshotAccessOptions};
use crate::filter::copy_on_read::CopyOnReadOptions;
use crate::filter::throttle::ThrottleOptions;
use crate::format::qcow2::{BackingRef, Qcow2Options};
use crate::format::raw::RawOptions;
use crate::protocol::file::FileOptions;
use crate::protocol::nbd::NbdOptions;
use crate::protocol::null::NullOptions;

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

/// Host cache options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CacheOptions {
    /// Past the host's page cache.
    pub direct: Option<bool>,
    /// Accepted for compatibility if false: flushes are never dropped.
    pub no_flush: Option<bool>,
}

/// A node below: by name, or opened together with its parent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum BlockdevRef {
    /// A node that exists.
    Name(String),
    /// A node of its own.
    Nested(Box<BlockdevOptions>),
}

impl BlockdevRef {
    /// A node of its own.
    pub fn nested(options: BlockdevOptions) -> BlockdevRef {
        BlockdevRef::Nested(Box::new(options))
    }
}

/// The driver of a node with the members that only it has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "driver", rename_all = "kebab-case")]
pub enum DriverOptions {
    /// Faults in the requests to another node.
    Blkdebug(BlkdebugOptions),
    /// Writes to another node are stored compressed.
    Compress(CompressOptions),
    /// Old content of another node is saved before it is overwritten.
    CopyBeforeWrite(CopyBeforeWriteOptions),
    /// What is read from the images below is kept in the top one.
    CopyOnRead(CopyOnReadOptions),
    /// A file or block device of the host.
    #[serde(alias = "host_device")]
    File(FileOptions),
    /// What an NBD server exports.
    Nbd(NbdOptions),
    /// A disk without storage.
    NullCo(NullOptions),
    /// A qcow2 image.
    Qcow2(Box<Qcow2Options>),
    /// The bytes of another node.
    Raw(RawOptions),
    /// A disk as it was when its `copy-before-write` node came.
    SnapshotAccess(SnapshotAccessOptions),
    /// Limits on the requests to another node.
    Throttle(ThrottleOptions),
}

impl DriverOptions {
    /// The driver's name, as in QMP's `driver`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            DriverOptions::Blkdebug(_) => "blkdebug",
            DriverOptions::Compress(_) => "compress",
            DriverOptions::CopyBeforeWrite(_) => "copy-before-write",
            DriverOptions::CopyOnRead(_) => "copy-on-read",
            DriverOptions::File(_) => "file",
            DriverOptions::Nbd(_) => "nbd",
            DriverOptions::NullCo(_) => "null-co",
            DriverOptions::Qcow2(_) => "qcow2",
            DriverOptions::Raw(_) => "raw",
            DriverOptions::SnapshotAccess(_) => "snapshot-access",
            DriverOptions::Throttle(_) => "throttle",
        }
    }

    /// The members that name or describe nodes below, and what these are to the node.
    pub(crate) fn children(&mut self) -> Vec<(&mut BlockdevRef, ChildRole)> {
        match self {
            DriverOptions::Blkdebug(own) => vec![(&mut own.image, ChildRole::Filtered)],
            DriverOptions::Compress(own) => vec![(&mut own.file, ChildRole::Filtered)],
            DriverOptions::CopyBeforeWrite(own) => {
                vec![(&mut own.file, ChildRole::Filtered), (&mut own.target, ChildRole::Target)]
            }
            DriverOptions::CopyOnRead(own) => vec![(&mut own.file, ChildRole::Filtered)],
            DriverOptions::File(_) | DriverOptions::Nbd(_) | DriverOptions::NullCo(_) => vec![],
            DriverOptions::Qcow2(own) => {
                let mut children = vec![(&mut own.file, ChildRole::File)];
                children.extend(own.data_file.as_mut().map(|data| (data, ChildRole::Data)));
                if let BackingRef::Node(backing) = &mut own.backing {
                    children.push((backing, ChildRole::Backing));
                }
                children
            }
            DriverOptions::Raw(own) => vec![(&mut own.file, ChildRole::File)],
            DriverOptions::SnapshotAccess(own) => vec![(&mut own.file, ChildRole::File)],
            DriverOptions::Throttle(own) => vec![(&mut own.file, ChildRole::Filtered)],
        }
    }
}

/// The arguments of QMP's `blockdev-add`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the members are QMP's, described there")]
pub struct BlockdevOptions {
    pub node_name: Option<String>,
    pub read_only: Option<bool>,
    pub auto_read_only: Option<bool>,
    pub force_share: Option<bool>,
    pub discard: Option<DiscardMode>,
    pub detect_zeroes: Option<DetectZeroes>,
    pub cache: Option<CacheOptions>,
    /// Whether to take write ownership at once; a migration's destination does not.
    pub active: Option<bool>,
    /// The driver and its own members.
    #[serde(flatten)]
    pub driver: DriverOptions,
}

impl BlockdevOptions {
    /// A node of a driver, with nothing else said.
    pub fn new(driver: DriverOptions) -> BlockdevOptions {
        BlockdevOptions {
            node_name: None,
            read_only: None,
            auto_read_only: None,
            force_share: None,
            discard: None,
            detect_zeroes: None,
            cache: None,
            active: None,
            driver,
        }
    }

    /// A file of the host.
    pub fn file(path: impl Into<String>) -> BlockdevOptions {
        BlockdevOptions::new(DriverOptions::File(FileOptions::new(path)))
    }

    /// The raw format over another node.
    pub fn raw(file: BlockdevRef) -> BlockdevOptions {
        BlockdevOptions::new(DriverOptions::Raw(RawOptions {
            file,
            offset: None,
            size: None,
            guessed: false,
        }))
    }

    /// The qcow2 format over another node, with all that the image says.
    pub fn qcow2(file: BlockdevRef) -> BlockdevOptions {
        BlockdevOptions::new(DriverOptions::Qcow2(Box::new(Qcow2Options::new(file))))
    }

    /// The raw format over a file of the host: what a disk of a guest is.
    pub fn raw_file(path: impl Into<String>) -> BlockdevOptions {
        BlockdevOptions::raw(BlockdevRef::nested(BlockdevOptions::file(path)))
    }

    /// Refuses members that contradict each other.
    pub(super) fn check(&self) -> Result<()> {
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

    /// What a nested node in that role takes over from its parent unless it says otherwise.
    pub(crate) fn inherited_as(
        &self,
        role: ChildRole,
        parent: &BlockdevOptions,
    ) -> BlockdevOptions {
        match role {
            ChildRole::Backing => self.inherited_backing(parent),
            _ => self.inherited(parent),
        }
    }

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

    /// What a nested backing node takes over: nobody writes to it through its overlay.
    fn inherited_backing(&self, parent: &BlockdevOptions) -> BlockdevOptions {
        let own = BlockdevOptions { read_only: self.read_only.or(Some(true)), ..self.clone() };
        own.inherited(parent)
    }
}
