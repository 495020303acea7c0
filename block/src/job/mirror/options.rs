//! What a user can choose about a mirror, with QMP's defaults.

use crate::job::OnError;

/// What is copied at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Everything, through all layers.
    Full,
    /// What the topmost layer holds. The target may get the layers below it later, also behind an NBD server;
    /// but a qcow2 image of version 2 keeps no zeroes behind QEMU's, and behind ours only where the client's
    /// node does not discard.
    Top,
    /// Nothing: only what is written from now on. For the target, what is said of `Top` holds.
    None,
    /// What a bitmap says (not supported yet).
    Incremental,
    /// What a bitmap says, named (not supported yet).
    Bitmap,
}

impl SyncMode {
    /// The name QMP shows.
    pub fn as_str(self) -> &'static str {
        match self {
            SyncMode::Full => "full",
            SyncMode::Top => "top",
            SyncMode::None => "none",
            SyncMode::Incremental => "incremental",
            SyncMode::Bitmap => "bitmap",
        }
    }
}

/// When a guest's write reaches the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyMode {
    /// Some time later.
    #[default]
    Background,
    /// Before the guest hears that it is done.
    WriteBlocking,
}

impl CopyMode {
    /// The name QMP shows.
    pub fn as_str(self) -> &'static str {
        match self {
            CopyMode::Background => "background",
            CopyMode::WriteBlocking => "write-blocking",
        }
    }
}

/// The arguments of `blockdev-mirror`. [`MirrorOptions::new`] gives QMP's defaults.
#[derive(Clone, Debug)]
pub struct MirrorOptions {
    /// The job's id; without one, the device's name.
    pub job_id: Option<String>,
    /// The source: a device's or a node's name.
    pub device: String,
    /// The target: a device's or a node's name.
    pub target: String,
    /// The node that the target takes the place of in the end, if not the source.
    pub replaces: Option<String>,
    /// What is copied at the start.
    pub sync: SyncMode,
    /// Rate limit in bytes a second, 0 for none. Negative is refused.
    pub speed: i64,
    /// Bytes in a granule; 0 for 64 KiB. Where not all layers are copied, it is a cluster of the target at
    /// least; behind an NBD server, the block that it prefers. That is the cluster with ours, but 4096 with QEMU's.
    pub granularity: u64,
    /// Bytes of buffers in all; 0 for 16 MiB. Negative is refused.
    pub buf_size: i64,
    /// What to do when reading fails.
    pub on_source_error: OnError,
    /// What to do when writing fails.
    pub on_target_error: OnError,
    /// The filter's node name; without one it has none that users see.
    pub filter_node_name: Option<String>,
    /// When a guest's write reaches the target.
    pub copy_mode: CopyMode,
    /// Take effect without waiting for `job-finalize`.
    pub auto_finalize: bool,
    /// Disappear when over, without waiting for `job-dismiss`.
    pub auto_dismiss: bool,
}

impl MirrorOptions {
    /// A mirror of `device` to `target` with everything else as QMP has it by default.
    pub fn new(device: impl Into<String>, target: impl Into<String>, sync: SyncMode) -> Self {
        MirrorOptions {
            job_id: None,
            device: device.into(),
            target: target.into(),
            replaces: None,
            sync,
            speed: 0,
            granularity: 0,
            buf_size: 0,
            on_source_error: OnError::Report,
            on_target_error: OnError::Report,
            filter_node_name: None,
            copy_mode: CopyMode::Background,
            auto_finalize: true,
            auto_dismiss: true,
        }
    }
}
