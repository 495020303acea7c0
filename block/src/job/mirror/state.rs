//! What the mirror's loop, its copy operations and its filter share.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use super::{CopyMode, MirrorOptions, SyncMode};
use crate::backend::BlockBackend;
use crate::bitmap::DirtyBitmap;
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::{Error, ErrorKind, Result};
use crate::job::{IoOperation, JobCtx};
use crate::node::AttachedBitmap;
use crate::ranges::{RangeGuard, RangeLocks};

/// Most copy operations under way at once.
const MAX_OPS: u64 = 16;

/// What one operation normally moves, in bytes, and all a single read or write ever does.
const PIECE: u64 = 1 << 20;

/// Sizes as they were chosen, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// Of a granule.
    pub(super) granularity: u64,
    /// Of all buffers together.
    pub(super) buf_size: u64,
}

/// The mirror's part that others hold too: its operations while they run, its filter while it is in
/// the graph.
pub(crate) struct Mirror {
    pub(super) ctx: JobCtx,
    /// The source below the filter.
    pub(super) source: BlockBackend,
    pub(super) target: BlockBackend,
    pub(super) options: MirrorOptions,
    pub(super) settings: Settings,
    /// What differs, or may. It hangs on the source's node to be seen there; the filter marks it, not
    /// the node, because what was written through is clean.
    pub(super) bitmap: Rc<AttachedBitmap>,
    /// Where the target may read as anything but zeroes, once that is known.
    pub(super) target_data: RefCell<DirtyBitmap>,
    pub(super) target_known: Cell<bool>,
    /// Granules of which the target may lack something that is not dirty. It may get layers below it later
    /// that show there, so what is written of such a granule must not hide the rest of it.
    pub(super) partial: RefCell<DirtyBitmap>,
    /// Granules that some operation is working on (rule 3).
    pub(super) busy: RangeLocks,
    /// Where the search for dirty granules goes on.
    pub(super) cursor: Cell<u64>,
    /// Times the search came to the end of the disk and began again.
    pub(super) passes: Cell<u64>,
    pub(super) ops: Cell<u64>,
    pub(super) op_bytes: Cell<u64>,
    /// Raised when a range or slot becomes free, or a granule dirty: the loop looks again.
    pub(super) changes: Cell<u64>,
    done: Cell<u64>,
    mode: Cell<CopyMode>,
    /// Both sides have been equal ever since writes go through.
    pub(super) synced: Cell<bool>,
    /// Why the job must fail; the first reason stays.
    failure: RefCell<Option<Error>>,
    /// An error was ignored: nothing more is tried before this time (ns).
    pub(super) retry_at: Cell<u64>,
    /// The job has ended: operations stop, and the filter only passes on.
    pub(super) over: Cell<bool>,
    /// Buffers that no operation uses now.
    buffers: RefCell<Vec<IoBuf>>,
}

impl Mirror {
    pub(super) fn new(
        ctx: JobCtx,
        source: BlockBackend,
        target: BlockBackend,
        settings: Settings,
        options: MirrorOptions,
    ) -> Result<Mirror> {
        let len = source.len();
        let new_bitmap = || {
            let bitmap = DirtyBitmap::new(len, settings.granularity);
            bitmap.map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))
        };
        let mut partial = new_bitmap()?;
        if options.sync != SyncMode::Full {
            partial.mark_all();
        }
        let mut dirty = new_bitmap()?;
        dirty
            .disable()
            .map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))?;
        Ok(Mirror {
            mode: Cell::new(options.copy_mode),
            ctx,
            source,
            target,
            options,
            settings,
            bitmap: AttachedBitmap::new(None, dirty),
            target_data: RefCell::new(new_bitmap()?),
            target_known: Cell::new(false),
            partial: RefCell::new(partial),
            busy: RangeLocks::new(),
            cursor: Cell::new(0),
            passes: Cell::new(0),
            ops: Cell::new(0),
            op_bytes: Cell::new(0),
            changes: Cell::new(0),
            done: Cell::new(0),
            synced: Cell::new(false),
            failure: RefCell::new(None),
            retry_at: Cell::new(0),
            over: Cell::new(false),
            buffers: RefCell::new(Vec::new()),
        })
    }

    /// Whether guest writes go to the target before the guest hears of them. Not before it is known what
    /// the target reads as: zeroes that it seems to have already would never get there.
    pub(super) fn writes_through(&self) -> bool {
        let wanted = self.mode.get() == CopyMode::WriteBlocking;
        wanted && self.target_known.get() && !self.is_over()
    }

    /// Whether layers may come below the target later that hold what is not copied.
    pub(super) fn may_get_layers(&self) -> bool {
        self.options.sync != SyncMode::Full
    }

    /// How the target is written. What comes below it later must not show through, not even where it has zeroes.
    pub(super) fn write_flags(&self) -> WriteFlags {
        WriteFlags { opaque: self.may_get_layers(), ..WriteFlags::NONE }
    }

    /// Whether `range` can be written to the target without the rest of its granules.
    pub(super) fn may_be_alone(&self, range: &Range<u64>) -> bool {
        let (whole, partial) = (self.granules(range), self.partial.borrow());
        !partial.any_dirty(whole.start..range.start) && !partial.any_dirty(range.end..whole.end)
    }

    /// Whether the job does nothing any more, but its filter is still there.
    pub(super) fn is_over(&self) -> bool {
        self.over.get() || self.ctx.is_cancelled() || self.failure.borrow().is_some()
    }

    /// `range` and what else lies in its granules.
    pub(super) fn granules(&self, range: &Range<u64>) -> Range<u64> {
        let dirty = self.bitmap.bits.borrow();
        let mask = dirty.granularity() - 1;
        range.start & !mask..(range.end.saturating_add(mask) & !mask).min(dirty.len())
    }

    /// These bytes differ, or may.
    pub(super) fn mark(&self, range: Range<u64>) {
        if self.over.get() {
            return;
        }
        self.bitmap.bits.borrow_mut().mark(range);
        self.synced.set(false);
        self.show_progress();
        self.changed();
    }

    /// The loop is to look again.
    pub(super) fn changed(&self) {
        self.changes.set(self.changes.get().wrapping_add(1));
        self.ctx.kick();
    }

    /// The target has these bytes: what lies wholly in them need not be copied any more.
    pub(super) fn clear(&self, range: Range<u64>) {
        let mut dirty = self.bitmap.bits.borrow_mut();
        let before = dirty.dirty_bytes();
        dirty.clear(range.clone());
        self.partial.borrow_mut().clear(range);
        self.done.set(self.done.get() + before - dirty.dirty_bytes());
        drop(dirty);
        self.show_progress();
    }

    pub(super) fn dirty_bytes(&self) -> u64 {
        self.bitmap.bits.borrow().dirty_bytes()
    }

    /// Done, and all there is: done + dirty + in flight.
    pub(super) fn show_progress(&self) {
        let done = self.done.get();
        self.ctx.progress(done, done + self.dirty_bytes() + self.op_bytes.get());
    }

    /// Takes the next dirty run that nobody works on: at most one operation's worth. Its bits are clear
    /// when this returns, before anyone asks what the source holds there (rule 2).
    pub(super) fn claim(&self) -> Option<(Range<u64>, RangeGuard)> {
        let mut dirty = self.bitmap.bits.borrow_mut();
        let mut wrapped = false;
        loop {
            let Some(run) = dirty.next_dirty(self.cursor.get(), self.op_size()) else {
                if wrapped || self.cursor.get() == 0 {
                    return None;
                }
                wrapped = true;
                self.cursor.set(0);
                continue;
            };
            let free = self.busy.free_part(run.clone());
            self.cursor.set(if free.is_empty() { run.end } else { free.end });
            if let Some(guard) = self.busy.try_lock(free.clone()) {
                dirty.clear(free.clone());
                self.passes.set(self.passes.get() + u64::from(wrapped));
                return Some((free, guard));
            }
        }
    }

    /// Bytes of one claim: a piece, or one granule where that is more.
    fn op_size(&self) -> u64 {
        self.piece().max(self.settings.granularity)
    }

    /// Most bytes a single read or write moves.
    pub(super) fn piece(&self) -> u64 {
        self.settings.buf_size.max(self.settings.granularity).min(PIECE)
    }

    /// Whether one more operation may start.
    pub(super) fn has_slot(&self) -> bool {
        self.ops.get() < (self.settings.buf_size / self.piece()).clamp(1, MAX_OPS)
    }

    pub(super) fn take_buffer(&self) -> IoBuf {
        let ready = self.buffers.borrow_mut().pop();
        ready.unwrap_or_else(|| IoBuf::alloc(usize::try_from(self.piece()).unwrap_or(usize::MAX)))
    }

    pub(super) fn return_buffer(&self, buffer: IoBuf) {
        self.buffers.borrow_mut().push(buffer);
    }

    /// Nothing is to be copied for a while, so nothing needs the memory.
    pub(super) fn free_buffers(&self) {
        self.buffers.take();
    }

    /// Bytes dealt with so far.
    pub(super) fn done(&self) -> u64 {
        self.done.get()
    }

    /// What was copied counts as done.
    pub(super) fn add_done(&self, bytes: u64) {
        self.done.set(self.done.get() + bytes);
    }

    /// An operation failed, and its bits are set again. What now, the user's policy says.
    pub(super) fn failed(&self, operation: IoOperation, error: Error) {
        if self.is_over() {
            return;
        }
        let policy = match operation {
            IoOperation::Read => self.options.on_source_error,
            IoOperation::Write => self.options.on_target_error,
        };
        self.synced.set(false);
        // What keeps failing must not keep the processor busy.
        self.retry_at.set(self.ctx.now() + super::SLICE_NS);
        if let Err(error) = self.ctx.on_error(policy, operation, error) {
            self.failure.borrow_mut().get_or_insert(error);
        }
        self.changed();
    }

    /// When the next copy or flush may start, if not now, in ns. While the guest is held up, its time
    /// is dearer than the rate limit.
    pub(super) fn not_before(&self, guest_waits: bool) -> Option<u64> {
        let retry = Some(self.retry_at.get()).filter(|at| *at > self.ctx.now());
        let limit =
            if guest_waits || self.dirty_bytes() == 0 { None } else { self.ctx.throttled_until() };
        retry.max(limit)
    }

    /// Why the job must fail, if it must.
    pub(super) fn failure(&self) -> Result<()> {
        self.failure.borrow().clone().map_or(Ok(()), Err)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }
}
