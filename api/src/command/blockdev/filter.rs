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
    /// Moments at which `blkdebug` can act. Ours reach only those of its own requests and those that
    /// the formats above it tell.
    pub enum BlkdebugEvent {
        /// `l1_update`.
        L1Update = "l1_update",
        /// `l1_grow_alloc_table`.
        L1GrowAllocTable = "l1_grow_alloc_table",
        /// `l1_grow_write_table`.
        L1GrowWriteTable = "l1_grow_write_table",
        /// `l1_grow_activate_table`.
        L1GrowActivateTable = "l1_grow_activate_table",
        /// `l2_load`.
        L2Load = "l2_load",
        /// `l2_update`.
        L2Update = "l2_update",
        /// `l2_update_compressed`.
        L2UpdateCompressed = "l2_update_compressed",
        /// `l2_alloc_cow_read`.
        L2AllocCowRead = "l2_alloc_cow_read",
        /// `l2_alloc_write`.
        L2AllocWrite = "l2_alloc_write",
        /// `read_aio`.
        ReadAio = "read_aio",
        /// `read_backing_aio`.
        ReadBackingAio = "read_backing_aio",
        /// `read_compressed`.
        ReadCompressed = "read_compressed",
        /// `write_aio`.
        WriteAio = "write_aio",
        /// `write_compressed`.
        WriteCompressed = "write_compressed",
        /// `vmstate_load`.
        VmstateLoad = "vmstate_load",
        /// `vmstate_save`.
        VmstateSave = "vmstate_save",
        /// `cow_read`.
        CowRead = "cow_read",
        /// `cow_write`.
        CowWrite = "cow_write",
        /// `reftable_load`.
        ReftableLoad = "reftable_load",
        /// `reftable_grow`.
        ReftableGrow = "reftable_grow",
        /// `reftable_update`.
        ReftableUpdate = "reftable_update",
        /// `refblock_load`.
        RefblockLoad = "refblock_load",
        /// `refblock_update`.
        RefblockUpdate = "refblock_update",
        /// `refblock_update_part`.
        RefblockUpdatePart = "refblock_update_part",
        /// `refblock_alloc`.
        RefblockAlloc = "refblock_alloc",
        /// `refblock_alloc_hookup`.
        RefblockAllocHookup = "refblock_alloc_hookup",
        /// `refblock_alloc_write`.
        RefblockAllocWrite = "refblock_alloc_write",
        /// `refblock_alloc_write_blocks`.
        RefblockAllocWriteBlocks = "refblock_alloc_write_blocks",
        /// `refblock_alloc_write_table`.
        RefblockAllocWriteTable = "refblock_alloc_write_table",
        /// `refblock_alloc_switch_table`.
        RefblockAllocSwitchTable = "refblock_alloc_switch_table",
        /// `cluster_alloc`.
        ClusterAlloc = "cluster_alloc",
        /// `cluster_alloc_bytes`.
        ClusterAllocBytes = "cluster_alloc_bytes",
        /// `cluster_free`.
        ClusterFree = "cluster_free",
        /// `flush_to_os`.
        FlushToOs = "flush_to_os",
        /// `flush_to_disk`.
        FlushToDisk = "flush_to_disk",
        /// `pwritev_rmw_head`.
        PwritevRmwHead = "pwritev_rmw_head",
        /// `pwritev_rmw_after_head`.
        PwritevRmwAfterHead = "pwritev_rmw_after_head",
        /// `pwritev_rmw_tail`.
        PwritevRmwTail = "pwritev_rmw_tail",
        /// `pwritev_rmw_after_tail`.
        PwritevRmwAfterTail = "pwritev_rmw_after_tail",
        /// `pwritev`.
        Pwritev = "pwritev",
        /// `pwritev_zero`.
        PwritevZero = "pwritev_zero",
        /// `pwritev_done`.
        PwritevDone = "pwritev_done",
        /// `empty_image_prepare`.
        EmptyImagePrepare = "empty_image_prepare",
        /// `l1_shrink_write_table`.
        L1ShrinkWriteTable = "l1_shrink_write_table",
        /// `l1_shrink_free_l2_clusters`.
        L1ShrinkFreeL2Clusters = "l1_shrink_free_l2_clusters",
        /// `cor_write`.
        CorWrite = "cor_write",
        /// `cluster_alloc_space`.
        ClusterAllocSpace = "cluster_alloc_space",
        /// `none`.
        None = "none",
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
        /// Before anything is done (default false).
        immediately: Option<bool> = "immediately",
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
        /// A file with rules.
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
