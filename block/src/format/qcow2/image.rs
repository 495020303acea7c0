//! [`Image`]: everything of an open image, and its way to the file.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::Range;
use std::rc::{Rc, Weak};

use super::alloc::Space;
use super::bitmap::mark_in_use;
use super::cache::SliceCache;
use super::checksum::Piece;
use super::compress::Decompressed;
use super::container::name_of;
use super::flush::Flushes;
use super::frees::Frees;
use super::gate::{Closed, Gate, Pass};
use super::geometry::Geometry;
use super::header::{Autoclear, Header, Incompatible, Version};
use super::map::Map;
use super::options::{CacheSizes, OverlapFlags};
use super::overlap::{Kind, Regions};
use super::refcounts::Refcounts;
use super::root_table::RootTable;
use super::snapshot::SnapshotRef;
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::job::{BlockEvent, JobRegistry};
use crate::notify::Notify;
use crate::ranges::RangeLocks;

/// Longest single write of metadata, bytes: neighbours are joined up to this.
const MAX_JOINED: usize = 1 << 20;

/// What the options decide for as long as the image is open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behaviour {
    pub(super) pass_discard_request: bool,
    pub(super) pass_discard_other: bool,
    pub(super) discard_no_unref: bool,
    /// `None`: as the image says.
    pub(super) lazy_refcounts: Option<bool>,
    pub(super) overlap: OverlapFlags,
    pub(super) caches: CacheSizes,
    /// Nanoseconds after which an unused slice is given up; 0 for never.
    pub(super) clean_interval: u64,
}

/// Whether an image may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Another process may own it: nothing is written, not even the header.
    Inactive,
    /// Owned, but nothing has been written since.
    Clean,
    /// Owned and changed, with a new generation mark.
    Changed,
    /// Something in it is wrong: nothing is written any more.
    Corrupt,
}

/// An open image.
pub(super) struct Image {
    this: Weak<Image>,
    witness: Witness,
    pub(super) executor: Executor,
    pub(super) file: Edge,
    /// Guest data outside the image file.
    pub(super) data: Option<Edge>,
    pub(super) backing: RefCell<Option<Edge>>,
    /// Whether that is what the header names.
    pub(super) names_backing: Cell<bool>,
    /// What is shown instead of the disk.
    pub(super) snapshot: Option<SnapshotRef>,
    pub(super) behaviour: Behaviour,
    /// Whether the image may not be written even when it is owned.
    pub(super) read_only: Cell<bool>,
    pub(super) condition: Cell<Condition>,
    pub(super) header: RefCell<Header>,
    geometry: Cell<Geometry>,
    pub(super) size: Cell<u64>,
    pub(super) map: Map,
    pub(super) refcounts: Refcounts,
    pub(super) space: Space,
    pub(super) frees: Frees,
    pub(super) regions: Regions,
    pub(super) gate: Gate,
    /// Guest clusters whose entries are being changed.
    pub(super) locks: RangeLocks,
    pub(super) flushes: Flushes,
    pub(super) decompressed: Decompressed,
    /// Held while the header is changed.
    header_lock: RangeLocks,
    /// Held while the image file or the data file is made longer: a length that was asked for before
    /// must not come after a longer one.
    pub(super) growing: RangeLocks,
    /// A change of the header has failed, and the file may have it or not.
    header_unsure: Cell<bool>,
    /// Whether the mark of a corrupt image is on its way to the file.
    marking: Cell<bool>,
    marked: Notify,
}

/// Who is told of an image that is found to be corrupt.
pub(super) struct Witness {
    pub(super) jobs: JobRegistry,
    pub(super) node_name: Option<String>,
}

/// The nodes below an image.
pub(super) struct Below {
    pub(super) file: Edge,
    pub(super) data: Option<Edge>,
    pub(super) backing: Option<Edge>,
}

impl Image {
    pub(super) fn new(
        executor: &Executor,
        witness: Witness,
        below: Below,
        snapshot: Option<SnapshotRef>,
        header: Header,
        behaviour: Behaviour,
    ) -> Rc<Image> {
        let sizes = behaviour.caches;
        let cache = |capacity| SliceCache::new(sizes.slice, capacity);
        Rc::new_cyclic(|this| Image {
            this: this.clone(),
            witness,
            executor: executor.clone(),
            file: below.file,
            data: below.data,
            backing: RefCell::new(below.backing),
            names_backing: Cell::new(false),
            snapshot,
            behaviour,
            read_only: Cell::new(true),
            condition: Cell::new(Condition::Inactive),
            geometry: Cell::new(header.geometry),
            size: Cell::new(header.size),
            header: RefCell::new(header),
            map: Map::new(cache(sizes.l2_slices)),
            refcounts: Refcounts::new(cache(sizes.refcount_slices)),
            space: Space::default(),
            frees: Frees::default(),
            regions: Regions::new(behaviour.overlap),
            gate: Gate::default(),
            locks: RangeLocks::new(),
            flushes: Flushes::default(),
            decompressed: Decompressed::default(),
            header_lock: RangeLocks::new(),
            growing: RangeLocks::new(),
            header_unsure: Cell::new(false),
            marking: Cell::new(false),
            marked: Notify::new(),
        })
    }

    /// Cluster size and entry formats.
    pub(super) fn geometry(&self) -> Geometry {
        self.geometry.get()
    }

    /// The image's file in messages.
    pub(super) fn name(&self) -> String {
        name_of(&self.file)
    }

    /// What changes tables runs as a task of its own, so that it is never given up half way: the
    /// caller may be dropped at any time.
    pub(super) async fn run<T: 'static, F>(&self, work: impl FnOnce(Rc<Image>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + 'static,
    {
        match self.this.upgrade() {
            Some(image) => self.executor.spawn(work(image)).await,
            None => Err(Error::new(ErrorKind::Io, "the image is being closed")),
        }
    }

    /// This image, for a task that outlives the call.
    pub(super) fn shared(&self) -> Option<Rc<Image>> {
        self.this.upgrade()
    }

    /// Where guest data is: the data file, or the image file itself.
    pub(super) fn data_edge(&self) -> &Edge {
        self.data.as_ref().unwrap_or(&self.file)
    }

    /// What is below this image now.
    pub(super) fn backing(&self) -> Option<Edge> {
        self.backing.borrow().clone()
    }

    /// Takes a header over that was just read.
    pub(super) fn adopt_header(&self, header: Header) {
        self.geometry.set(header.geometry);
        self.size.set(header.size);
        self.regions.reset(header.geometry);
        self.header.replace(header);
        self.header_unsure.set(false);
    }

    /// Begins a request as soon as nobody has the whole image.
    pub(super) async fn enter(&self) -> Result<Pass> {
        loop {
            if let Some(pass) = self.gate.try_enter() {
                return Ok(pass);
            }
            self.gate.opened().await;
            if self.gate.is_stale() {
                drop(self.close().await?);
            }
        }
    }

    /// Refuses what ends behind the disk, which may have become shorter while the request waited for the gate.
    pub(super) fn check_end(&self, end: u64) -> Result<()> {
        let size = self.size.get();
        if end <= size { Ok(()) } else { Err(behind_end(end, size)) }
    }

    /// Waits until no request is under way, and keeps new ones off.
    pub(super) async fn close(&self) -> Result<Closed> {
        let closed = self.gate.close().await;
        if !self.gate.is_stale() {
            return Ok(closed);
        }
        // That may repair the image, which nobody must meet half way.
        self.run(|image| async move { image.reread().await.map(|()| closed) }).await
    }

    /// Begins a request that changes something. While it waited for the gate the image may have come to
    /// rest, or have been given up: only behind the gate is known whether there was a first change.
    pub(super) async fn enter_to_change(&self) -> Result<Pass> {
        let pass = self.enter().await?;
        self.begin_change(Some(pass.again())).await?;
        Ok(pass)
    }

    /// The same for what changes the whole image.
    pub(super) async fn close_to_change(&self) -> Result<Closed> {
        let closed = self.close().await?;
        self.begin_change(None).await?;
        Ok(closed)
    }

    /// Refuses changes to an image that is not ours, or broken. Called behind the gate, which `pass` keeps open if it
    /// is not closed. Before the first change of all the header says that there was one.
    pub(super) async fn begin_change(&self, pass: Option<Pass>) -> Result<()> {
        if self.has_begun()? { Ok(()) } else { self.mark_changed(pass).await }
    }

    /// Whether there was a first change. An image that is not ours, or broken, can have none.
    pub(super) fn has_begun(&self) -> Result<bool> {
        match self.condition.get() {
            Condition::Changed => Ok(true),
            Condition::Clean => Ok(false),
            Condition::Corrupt => {
                let text = format!("{} is marked corrupt and cannot be written", self.name());
                Err(Error::new(ErrorKind::Corrupt, text))
            }
            Condition::Inactive => {
                let text = format!("{} is inactive, another process may own it", self.name());
                Err(Error::new(ErrorKind::Inactive, text))
            }
        }
    }

    /// Advances the generation mark and clears the features that a writer would have to know, all
    /// in one write. Stored bitmaps miss what is written from now on, which they say before.
    async fn mark_changed(&self, pass: Option<Pass>) -> Result<()> {
        self.run(|image| async move {
            let guard = image.header_lock.lock(0..1, true).await;
            // It may have been found to be corrupt meanwhile: then nobody marks it as changed any more.
            if image.has_begun()? {
                return Ok(());
            }
            image.settle_locked_header().await?;
            // That changes the header on its way, behind our back: if it fails half way, ours is written
            // first the next time, or bitmaps would be valid again that were never marked.
            image.header_unsure.set(true);
            mark_in_use(&image.file).await?;
            image
                .change_locked_header(|header| {
                    let mark = header.extensions.generation.unwrap_or(0);
                    header.extensions.generation = Some(mark.wrapping_add(1));
                    header.autoclear.0 &= Autoclear::KNOWN.0;
                    let lazy = header.compatible.0 & super::header::Compatible::LAZY_REFCOUNTS.0;
                    let lazy = image.behaviour.lazy_refcounts.unwrap_or(lazy != 0);
                    if lazy && header.geometry.version() == Version::V3 {
                        header.incompatible = header.incompatible.with(Incompatible::DIRTY, true);
                    }
                })
                .await?;
            if !image.has_begun()? {
                image.condition.set(Condition::Changed);
            }
            drop((guard, pass));
            Ok(())
        })
        .await
    }

    /// Whether refcounts are only written when the image is closed: the header says dirty.
    pub(super) fn has_lazy_refcounts(&self) -> bool {
        self.header.borrow().incompatible.contains(Incompatible::DIRTY)
    }

    /// Changes the header durably: what was written before is durable first.
    pub(super) async fn change_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let guard = self.header_lock.lock(0..1, true).await;
        let changed = self.change_locked_header(change).await;
        drop(guard);
        changed
    }

    /// Sees to it that the file has the header that is here, before anything else relies on it.
    pub(super) async fn settle_header(&self) -> Result<()> {
        if !self.header_unsure.get() {
            return Ok(());
        }
        let guard = self.header_lock.lock(0..1, true).await;
        let settled = self.settle_locked_header().await;
        drop(guard);
        settled
    }

    async fn settle_locked_header(&self) -> Result<()> {
        match self.header_unsure.get() {
            true => self.change_locked_header(|_header| ()).await,
            false => Ok(()),
        }
    }

    /// [`change_header`](Self::change_header) for who holds the header's lock.
    async fn change_locked_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut header = self.header.borrow().clone();
        change(&mut header);
        // A version 2 header has no room for these.
        if header.geometry.version() == Version::V2 {
            header.extensions.generation = None;
        }
        let bytes = header.serialise()?;
        self.check_overlap(&(0..bytes.len() as u64), Some(Kind::Header))?;
        self.header_unsure.set(true);
        header.store_as(&bytes, &self.file).await?;
        self.header_unsure.set(false);
        self.header.replace(header);
        Ok(())
    }

    /// Bytes of the image file; what lies behind its end is zero.
    pub(super) async fn read_file(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let buf = IoBuf::alloc(len);
        read_clamped(&self.file, at, buf.clone()).await?;
        Ok(buf.to_vec())
    }

    /// Writes metadata, unless that would hit other metadata.
    pub(super) async fn write_metadata(&self, at: u64, bytes: &[u8], kind: Kind) -> Result<()> {
        self.check_overlap(&(at..at + bytes.len() as u64), Some(kind))?;
        self.reserve_file(at + bytes.len() as u64).await?;
        self.file.write(at, IoBuf::from_vec(bytes), WriteFlags::NONE).await
    }

    /// Writes pieces of tables, neighbours together. Nothing of a piece that was damaged in memory.
    pub(super) async fn write_tables(&self, pieces: &[Piece], kind: Kind) -> Result<()> {
        let mut rest = pieces;
        while let Some(first) = rest.first() {
            let mut joined = Vec::new();
            let mut count = 0;
            for piece in rest {
                if first.at + joined.len() as u64 != piece.at || joined.len() >= MAX_JOINED {
                    break;
                }
                if !piece.is_intact() {
                    return Err(self.damaged(kind, piece.at));
                }
                joined.extend_from_slice(&piece.bytes);
                count += 1;
            }
            self.write_metadata(first.at, &joined, kind).await?;
            rest = &rest[count..];
        }
        Ok(())
    }

    /// All entries of the L1 or refcount table.
    pub(super) fn entries_of(&self, table: &RootTable, kind: Kind) -> Result<Vec<u64>> {
        table.entries().ok_or_else(|| self.damaged(kind, table.at()))
    }

    #[cold]
    fn damaged(&self, kind: Kind, at: u64) -> Error {
        let name = kind.name();
        self.corrupt(&format!(
            "the {name} at {at:#x} has changed in memory by itself, so it is not written"
        ))
    }

    /// Refuses a write of `range` that hits metadata of another kind, and marks the image corrupt.
    pub(super) fn check_overlap(&self, range: &Range<u64>, own: Option<Kind>) -> Result<()> {
        match self.regions.hit(range, own) {
            None => Ok(()),
            Some(kind) => Err(self.overlap(range, kind)),
        }
    }

    /// The error of a write that would hit metadata.
    #[cold]
    pub(super) fn overlap(&self, range: &Range<u64>, kind: Kind) -> Error {
        let name = kind.name();
        let at = range.start;
        self.corrupt(&format!(
            "Preventing invalid write on metadata at {at:#x} (overlaps with {name})"
        ))
    }

    /// Something in the image contradicts something else: from now on nothing is written but the
    /// mark that says so.
    #[cold]
    pub(super) fn corrupt(&self, what: &str) -> Error {
        let error = Error::new(ErrorKind::Corrupt, format!("{}: {what}", self.name()));
        let before = self.condition.get();
        if !matches!(before, Condition::Clean | Condition::Changed) || self.read_only.get() {
            return error;
        }
        self.condition.set(Condition::Corrupt);
        tracing::error!("Marking image as corrupt: {error}");
        let (node_name, message) = (self.witness.node_name.clone(), what.to_owned());
        self.witness.jobs.emit(BlockEvent::BlockImageCorrupted { node_name, message });
        if let Some(image) = self.shared() {
            self.marking.set(true);
            self.executor.spawn(async move {
                let mark = |header: &mut Header| {
                    header.incompatible = header.incompatible.with(Incompatible::CORRUPT, true);
                };
                if image.geometry().version() == Version::V3
                    && let Err(error) = image.change_header(mark).await
                {
                    tracing::error!("{} cannot be marked corrupt: {error}", image.name());
                }
                image.marking.set(false);
                image.marked.notify_all();
            });
        }
        error
    }

    /// Waits for what a corrupt image still does by itself: its mark, and what had begun before it was found out.
    pub(super) async fn come_to_a_halt(&self) {
        self.marked.wait_until(|| !self.marking.get()).await;
        self.flushes.over().await;
        self.reaped().await;
    }
}

#[cold]
fn behind_end(end: u64, size: u64) -> Error {
    Error::new(ErrorKind::OutOfRange, format!("{end} is behind the end of the disk, {size} by now"))
}

/// Fills `into` with what is there from `at`; what lies behind the end of the node is zero.
pub(super) async fn read_clamped(edge: &Edge, at: u64, into: IoBuf) -> Result<()> {
    let have = edge.len().saturating_sub(at);
    let len = usize::try_from(have).unwrap_or(usize::MAX).min(into.len());
    if len != 0 {
        edge.read(at, into.slice(0..len)).await?;
    }
    if len != into.len() {
        into.slice(len..into.len()).fill_zero();
    }
    Ok(())
}
