//! Options of `blkdebug`: QEMU's, and members of our own that address faults more closely.

use serde::Deserialize;

use crate::edge::{EdgePerms, Perms};
use crate::open::BlockdevRef;

/// The moments of a request that rules can name. QEMU has more, of the inner life of its format
/// drivers; those are refused by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// No moment: the rule holds from the beginning.
    None,
    /// A read begins.
    ReadAio,
    /// A write of data begins.
    WriteAio,
    /// A write of data begins: the same moment under its other name.
    Pwritev,
    /// A write of zeroes begins.
    PwritevZero,
    /// A write of data or zeroes has ended well.
    PwritevDone,
    /// A flush begins.
    FlushToDisk,
}

/// Kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each is the request of that name")]
pub enum IoType {
    Read,
    Write,
    WriteZeroes,
    Discard,
    Flush,
    BlockStatus,
}

/// A fault: from which moment it holds, which requests it strikes, what it does to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct InjectError {
    /// The moment from which it holds.
    pub event: Event,
    /// Only in this state (default, and 0: in any).
    pub state: Option<u32>,
    /// Only requests of this kind (default: all but `block-status`).
    pub iotype: Option<IoType>,
    /// Only requests that touch this sector of 512 bytes.
    pub sector: Option<u64>,
    /// Only requests that touch the bytes from here (ours).
    pub offset: Option<u64>,
    /// How many bytes from `offset` (default: all that follow; ours).
    pub length: Option<u64>,
    /// Lets so many go by first (ours).
    pub skip: Option<u64>,
    /// Strikes so many times (default: always; ours).
    pub times: Option<u64>,
    /// Strikes once.
    pub once: Option<bool>,
    /// How much longer a request takes, ns (ours). Without `errno` it then goes on.
    pub delay_ns: Option<u64>,
    /// The error, a positive number (default `EIO`).
    pub errno: Option<i32>,
    /// Fails before other requests get a turn.
    pub immediately: Option<bool>,
}

impl InjectError {
    /// Every request of a kind fails with `EIO`.
    pub fn every(iotype: IoType) -> InjectError {
        InjectError {
            event: Event::None,
            state: None,
            iotype: Some(iotype),
            sector: None,
            offset: None,
            length: None,
            skip: None,
            times: None,
            once: None,
            delay_ns: None,
            errno: None,
            immediately: None,
        }
    }
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SetState {
    /// The moment that changes it.
    pub event: Event,
    /// Only in this state (default, and 0: in any).
    pub state: Option<u32>,
    /// The state from then on.
    #[serde(rename = "new_state")]
    pub new_state: u32,
}

/// Permissions by their QMP names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each is the permission of that name")]
pub enum PermName {
    ConsistentRead,
    Write,
    WriteUnchanged,
    Resize,
}

/// The members that `blkdebug` has in `blockdev-add`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BlkdebugOptions {
    /// The node below.
    pub image: BlockdevRef,
    /// Path of a file with further rules, which come before the others.
    pub config: Option<String>,
    /// Alignment of requests that it pretends to need, bytes.
    pub align: Option<u32>,
    /// Longest transfer that it pretends to take, bytes.
    pub max_transfer: Option<u64>,
    /// Units in which zeroes are cheap, bytes.
    pub opt_write_zero: Option<u32>,
    /// Longest write of zeroes, bytes.
    pub max_write_zero: Option<u64>,
    /// Units in which discards help, bytes.
    pub opt_discard: Option<u32>,
    /// Longest discard, bytes.
    pub max_discard: Option<u64>,
    /// The faults.
    #[serde(default)]
    pub inject_error: Vec<InjectError>,
    /// The changes of state.
    #[serde(default)]
    pub set_state: Vec<SetState>,
    /// Permissions that it takes whether anybody needs them or not.
    #[serde(default)]
    pub take_child_perms: Vec<PermName>,
    /// Permissions that it does not share.
    #[serde(default)]
    pub unshare_child_perms: Vec<PermName>,
}

impl BlkdebugOptions {
    /// A filter over `image` without any rule.
    pub fn new(image: BlockdevRef) -> BlkdebugOptions {
        BlkdebugOptions {
            image,
            config: None,
            align: None,
            max_transfer: None,
            opt_write_zero: None,
            max_write_zero: None,
            opt_discard: None,
            max_discard: None,
            inject_error: Vec::new(),
            set_state: Vec::new(),
            take_child_perms: Vec::new(),
            unshare_child_perms: Vec::new(),
        }
    }

    /// What it does to the node below besides what its parents do.
    pub(super) fn perms(&self) -> EdgePerms {
        let union = |names: &[PermName]| {
            names.iter().fold(Perms::NONE, |all, name| {
                all | match name {
                    PermName::ConsistentRead => Perms::CONSISTENT_READ,
                    PermName::Write => Perms::WRITE,
                    PermName::WriteUnchanged => Perms::WRITE_UNCHANGED,
                    PermName::Resize => Perms::RESIZE,
                }
            })
        };
        EdgePerms {
            needs: union(&self.take_child_perms),
            shares: !union(&self.unshare_child_perms),
        }
    }
}
