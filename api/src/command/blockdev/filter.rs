//! Drivers that stand over other nodes.

use super::BlockdevRef;
use crate::schema::{enumeration, object};

object! {
    /// Options of filters that have no others: `compress` and `snapshot-access`.
    pub struct FilterOptions {
        /// The node below.
        file: BlockdevRef = "file",
    }
}

object! {
    /// Options of `throttle`.
    pub struct ThrottleOptions {
        /// Id of the throttle group.
        throttle_group: String = "throttle-group",
        /// The node below.
        file: BlockdevRef = "file",
    }
}

object! {
    /// Options of `copy-on-read`.
    pub struct CopyOnReadOptions {
        /// The node below.
        file: BlockdevRef = "file",
        /// Copy only what comes from nodes above this one, and from it.
        bottom: Option<String> = "bottom",
    }
}

object! {
    /// A bitmap of a node.
    pub struct BlockDirtyBitmap {
        /// The node.
        node: String = "node",
        /// The bitmap.
        name: String = "name",
    }
}

enumeration! {
    /// What to do when copying before a write fails.
    pub enum OnCbwError {
        /// Fail the guest's write.
        BreakGuestWrite = "break-guest-write",
        /// Let the write through and give the snapshot up.
        BreakSnapshot = "break-snapshot",
    }
}

object! {
    /// Options of `copy-before-write`.
    pub struct CopyBeforeWriteOptions {
        /// The node below.
        file: BlockdevRef = "file",
        /// Where the old data goes.
        target: BlockdevRef = "target",
        /// Copy only what is dirty in it.
        bitmap: Option<BlockDirtyBitmap> = "bitmap",
        /// What to do when copying fails (default break-guest-write).
        on_cbw_error: Option<OnCbwError> = "on-cbw-error",
        /// Seconds after which copying counts as failed, 0 for never.
        cbw_timeout: Option<u32> = "cbw-timeout",
    }
}

enumeration! {
    /// Moments at which `blkdebug` can act.
    pub enum BlkdebugEvent {
        /// No moment: from the beginning.
        None = "none",
        /// A read begins.
        ReadAio = "read_aio",
        /// A write of data begins.
        WriteAio = "write_aio",
        /// A write of data begins: the same moment under its other name.
        Pwritev = "pwritev",
        /// A write of zeroes begins.
        PwritevZero = "pwritev_zero",
        /// A write has ended well.
        PwritevDone = "pwritev_done",
        /// A flush begins.
        FlushToDisk = "flush_to_disk",
    }
}

enumeration! {
    /// Kinds of requests.
    pub enum BlkdebugIotype {
        /// Reading.
        Read = "read",
        /// Writing.
        Write = "write",
        /// Writing zeroes.
        WriteZeroes = "write-zeroes",
        /// Discarding.
        Discard = "discard",
        /// Flushing.
        Flush = "flush",
        /// Asking what is allocated.
        BlockStatus = "block-status",
    }
}

object! {
    /// A request that fails.
    pub struct BlkdebugInjectErrorOptions {
        /// When.
        event: BlkdebugEvent = "event",
        /// Only in this state (default: any).
        state: Option<i64> = "state",
        /// Which kinds of requests (default: reads, writes, zeroes, discards and flushes).
        iotype: Option<BlkdebugIotype> = "iotype",
        /// With which errno (default EIO).
        errno: Option<i64> = "errno",
        /// Only requests that touch this sector of 512 bytes (default: any).
        sector: Option<i64> = "sector",
        /// Only once (default false).
        once: Option<bool> = "once",
        /// Before other requests get a turn (default false).
        immediately: Option<bool> = "immediately",
        /// Only requests that touch the bytes from here.
        offset: Option<u64> = "__org.ferry_offset",
        /// How many bytes from there (default: all that follow).
        length: Option<u64> = "__org.ferry_length",
        /// Let so many go by first.
        skip: Option<u64> = "__org.ferry_skip",
        /// Strike so many times (default: always).
        times: Option<u64> = "__org.ferry_times",
        /// How much longer a request takes, ns; without `errno` it then goes on.
        delay_ns: Option<u64> = "__org.ferry_delay-ns",
    }
}

object! {
    /// A change of state.
    pub struct BlkdebugSetStateOptions {
        /// When.
        event: BlkdebugEvent = "event",
        /// Only in this state (default: any).
        state: Option<i64> = "state",
        /// The new state.
        new_state: i64 = "new_state",
    }
}

enumeration! {
    /// A permission on a node.
    pub enum BlockPermission {
        /// Reading what was written last.
        ConsistentRead = "consistent-read",
        /// Changing the content.
        Write = "write",
        /// Writing what is there already.
        WriteUnchanged = "write-unchanged",
        /// Changing the length.
        Resize = "resize",
    }
}

object! {
    /// Options of `blkdebug`.
    pub struct BlkdebugOptions {
        /// The node below.
        image: BlockdevRef = "image",
        /// Path of a file with further rules.
        config: Option<String> = "config",
        /// Alignment that requests must have.
        align: Option<i64> = "align",
        /// Longest request.
        max_transfer: Option<i64> = "max-transfer",
        /// Best alignment of zeroes.
        opt_write_zero: Option<i64> = "opt-write-zero",
        /// Longest write of zeroes.
        max_write_zero: Option<i64> = "max-write-zero",
        /// Best alignment of discards.
        opt_discard: Option<i64> = "opt-discard",
        /// Longest discard.
        max_discard: Option<i64> = "max-discard",
        /// Requests that fail.
        inject_error: Option<Vec<BlkdebugInjectErrorOptions>> = "inject-error",
        /// Changes of state.
        set_state: Option<Vec<BlkdebugSetStateOptions>> = "set-state",
        /// Permissions to take on the node below besides.
        take_child_perms: Option<Vec<BlockPermission>> = "take-child-perms",
        /// Permissions not to share on the node below.
        unshare_child_perms: Option<Vec<BlockPermission>> = "unshare-child-perms",
    }
}
