//! The members that `file` has in `blockdev-add`.

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::node::BlockNode;
use crate::open::Opening;

use super::{FileDriver, FileMode};

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

/// How QEMU would make requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aio {
    /// A pool of threads.
    Threads,
    /// Linux AIO, which needs O_DIRECT.
    Native,
    /// io_uring.
    IoUring,
}

/// The members that `file` and `host_device` have in `blockdev-add`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileOptions {
    /// The path.
    pub filename: String,
    /// Whether to lock it (default auto).
    pub locking: Option<Locking>,
    /// Accepted for compatibility; the I/O thread decides.
    pub aio: Option<Aio>,
    /// Accepted for compatibility: a batch is whatever one turn of the I/O thread brings.
    pub aio_max_batch: Option<i64>,
}

impl FileOptions {
    /// A path, with nothing else said.
    pub fn new(path: impl Into<String>) -> FileOptions {
        FileOptions { filename: path.into(), locking: None, aio: None, aio_max_batch: None }
    }

    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<BlockNode> {
        opening.check_file(&self.filename).await?;
        let node = opening.node_options();
        if self.aio == Some(Aio::Native) && !node.direct {
            let text = "aio=native was specified, but it requires cache.direct=on, which was not specified.";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        let force_share = opening.options().force_share == Some(true);
        let locking = if force_share { Locking::Off } else { self.locking.unwrap_or_default() };
        let mode = FileMode { read_only: node.read_only, direct: node.direct, locking };
        let driver = FileDriver::open(opening.graph().executor(), &self.filename, mode).await?;
        opening.add(driver).await
    }
}
