//! Moving the bytes of images: several workers, each with one piece at a time. Which bytes are holes
//! is asked first, so that they are never read.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use ferry_block::{BlockBackend, BlockNode, ErrorKind, ExtentKind, IoBuf, Notify, WriteFlags};

use crate::failure::{Failure, Result};
use crate::progress::Progress;
use crate::session::{Image, Session};

/// Bytes that are read at once. Of a server that answers after 20 ms, a quarter of it takes twice as long; between
/// two files in memory a quarter costs 6 % of the time and 10 % more of the processors', for there are four
/// times as many hand-overs between threads.
const PIECE: u64 = 2 << 20;
/// Bytes that the kernel is asked to copy at once.
const OFFLOADED: u64 = 16 << 20;
/// Unit in which unreadable parts are given up, bytes.
const SECTOR: u64 = 512;

/// An image that is copied.
pub(crate) struct Source {
    root: BlockBackend,
    node: BlockNode,
    /// What it holds from here down is not copied.
    base: Option<BlockNode>,
    /// Its first byte, and the end of what is copied of it.
    part: Range<u64>,
}

impl Source {
    /// All of an image that is above `base`.
    pub(crate) fn new(image: &Image, base: Option<BlockNode>) -> Source {
        let part = 0..image.len();
        Source { root: image.root.clone(), node: image.node.clone(), base, part }
    }

    /// A part of an image.
    pub(crate) fn part(image: &Image, part: Range<u64>) -> Source {
        Source { part, ..Source::new(image, None) }
    }

    fn len(&self) -> u64 {
        self.part.end - self.part.start
    }
}

/// A copy: what, where to, and how.
pub(crate) struct Copy {
    /// One after the other.
    pub(crate) sources: Vec<Source>,
    pub(crate) target: BlockBackend,
    /// Bytes of all sources.
    pub(crate) len: u64,
    /// Workers.
    pub(crate) depth: u16,
    /// Writes begin in the order of the disk.
    pub(crate) ordered: bool,
    /// Writes are whole clusters, compressed.
    pub(crate) compressed: bool,
    /// Bytes of the target's clusters.
    pub(crate) cluster: u64,
    /// Shortest run of zeroes that is left out, bytes; 0: none is.
    pub(crate) sparse: u64,
    /// The target reads as zeroes.
    pub(crate) zero: bool,
    /// The kernel is asked to copy what it can; the rest is copied here.
    pub(crate) offload: bool,
    /// Unreadable parts become zeroes.
    pub(crate) salvage: bool,
    /// Bytes a second at most.
    pub(crate) rate: Option<u64>,
}

/// Where the workers are.
struct Work {
    copy: Copy,
    progress: Progress,
    executor: ferry_block::Executor,
    started_at: u64,
    /// First byte that nobody has taken.
    next: Cell<u64>,
    /// A worker is finding out what comes next.
    planning: Cell<bool>,
    /// What was found out last, and for which bytes of the target: more than one piece, mostly.
    known: RefCell<(ExtentKind, Range<u64>)>,
    /// Whether the kernel is still asked to copy.
    offload: Cell<bool>,
    /// Pieces taken, and pieces whose writes have begun.
    taken: Cell<u64>,
    begun: Cell<u64>,
    changed: Notify,
    failure: RefCell<Option<Failure>>,
}

/// A piece of the target.
struct Piece {
    number: u64,
    kind: ExtentKind,
    range: Range<u64>,
}

impl Copy {
    /// Shortest piece that can be compressed, in bytes.
    fn compressed_unit(&self) -> u64 {
        if self.compressed { self.cluster } else { 1 }
    }

    /// Copies everything.
    pub(crate) async fn run(self, session: &Session, progress: &Progress) -> Result<()> {
        let executor = session.graph.executor().clone();
        let depth = self.depth;
        let work = Rc::new(Work {
            offload: Cell::new(self.offload),
            copy: self,
            progress: progress.clone(),
            started_at: executor.clock().now(),
            executor: executor.clone(),
            next: Cell::new(0),
            planning: Cell::new(false),
            known: RefCell::new((ExtentKind::Data, 0..0)),
            taken: Cell::new(0),
            begun: Cell::new(0),
            changed: Notify::new(),
            failure: RefCell::new(None),
        });
        let workers: Vec<_> = (0..depth)
            .map(|_| {
                let work = Rc::clone(&work);
                executor.spawn(async move { work.work().await })
            })
            .collect();
        for worker in workers {
            worker.await;
        }
        match work.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

impl Work {
    /// One worker, until nothing is left or somebody has failed.
    async fn work(&self) {
        // One buffer for all pieces: fresh memory costs a page fault for every page of it.
        let buf = IoBuf::alloc(to_usize(PIECE.max(self.copy.compressed_unit())));
        loop {
            let result = match self.take().await {
                Ok(Some(piece)) => self.piece(piece, &buf).await,
                Ok(None) => return,
                Err(failure) => Err(failure),
            };
            if let Err(failure) = result {
                let mut first = self.failure.borrow_mut();
                first.get_or_insert(failure);
                drop(first);
                self.changed.notify_all();
            }
        }
    }

    fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// The next piece; one worker at a time looks for it.
    async fn take(&self) -> Result<Option<Piece>> {
        self.changed.wait_until(|| !self.planning.get()).await;
        self.planning.set(true);
        let found = self.plan().await;
        self.planning.set(false);
        self.changed.notify_all();
        found
    }

    async fn plan(&self) -> Result<Option<Piece>> {
        let at = self.next.get();
        if at >= self.copy.len || self.has_failed() {
            return Ok(None);
        }
        let known = self.known.borrow().clone();
        let (mut kind, known) = match known {
            (kind, range) if range.contains(&at) => (kind, range),
            _ => self.find_out(at).await?,
        };
        let (source, offset) = self.source(at);
        let start = source.part.start + offset;
        let mut range = start..start + (known.end - at);
        if self.copy.compressed && kind != ExtentKind::Absent {
            // Whole clusters, or they would not be compressed.
            let cluster = self.copy.cluster.max(1);
            if kind == ExtentKind::Zero && range.end - start < cluster {
                kind = ExtentKind::Data;
            }
            let end = match kind {
                ExtentKind::Data => (at + (range.end - start)).next_multiple_of(cluster),
                _ => (at + (range.end - start)) / cluster * cluster,
            };
            range.end = (start + (end - at)).min(source.part.end);
        }
        if kind == ExtentKind::Data {
            let most = if self.offload.get() { OFFLOADED } else { PIECE };
            range.end = range.end.min(start + most.max(self.copy.compressed_unit()));
        }
        let number = self.taken.get();
        self.taken.set(number + 1);
        let end = at + (range.end - start);
        self.next.set(end);
        Ok(Some(Piece { number, kind, range: at..end }))
    }

    /// What the bytes from `at` are, and up to where.
    async fn find_out(&self, at: u64) -> Result<(ExtentKind, Range<u64>)> {
        let (source, offset) = self.source(at);
        let start = source.part.start + offset;
        let found = source.node.map_above(source.base.as_ref(), start..source.part.end).await;
        let (kind, len) = match found {
            Ok(found) => (found.kind, found.len),
            // It may be readable all the same.
            Err(_) if self.copy.salvage => (ExtentKind::Data, source.part.end - start),
            Err(error) => {
                let text = format!("error while reading block status at offset {at}: {error}");
                return Err(Failure::new(text));
            }
        };
        let kind = match kind {
            ExtentKind::Absent if source.base.is_some() => ExtentKind::Absent,
            // Everything shall occupy space.
            _ if self.copy.sparse == 0 => ExtentKind::Data,
            ExtentKind::Absent => ExtentKind::Zero,
            kind => kind,
        };
        self.known.replace((kind, at..at + len));
        Ok((kind, at..at + len))
    }

    /// The source of a byte of the target, and which byte of it that is.
    fn source(&self, at: u64) -> (&Source, u64) {
        let mut offset = at;
        let sources = &self.copy.sources;
        let mut index = 0;
        while index + 1 < sources.len() && offset >= sources[index].len() {
            offset -= sources[index].len();
            index += 1;
        }
        (&sources[index], offset)
    }

    async fn piece(&self, piece: Piece, whole: &IoBuf) -> Result<()> {
        let Piece { number, kind, range } = piece;
        let offload = kind == ExtentKind::Data && self.offload.get();
        let buf = match kind {
            ExtentKind::Data if !offload => Some(self.read(&range, whole).await?),
            _ => None,
        };
        if self.copy.ordered {
            self.changed.wait_until(|| self.begun.get() == number || self.has_failed()).await;
        }
        if self.has_failed() {
            return Ok(());
        }
        self.begun.set(self.begun.get().max(number + 1));
        self.changed.notify_all();
        match (&buf, kind) {
            (Some(buf), _) => self.write(range.start, buf).await?,
            (None, ExtentKind::Zero) => self.zeroes(range.clone()).await?,
            (None, ExtentKind::Data) => self.offload(&range, whole).await?,
            (None, ExtentKind::Absent) => {}
        }
        self.progress.add(range.end - range.start);
        self.pace(range.end).await;
        Ok(())
    }

    /// Lets the kernel copy a piece. If it cannot, it is not asked again.
    async fn offload(&self, range: &Range<u64>, whole: &IoBuf) -> Result<()> {
        let (source, offset) = self.source(range.start);
        let (from, len) = (source.part.start + offset, to_usize(range.end - range.start));
        let target = self.copy.target.node();
        match target.copy_range(range.start, &source.node, from, len).await {
            Err(error) if error.kind() == ErrorKind::Unsupported => self.offload.set(false),
            Err(error) => {
                let at = range.start;
                return Err(Failure::new(format!("error while copying at byte {at}: {error}")));
            }
            Ok(()) => return Ok(()),
        }
        let mut at = range.start;
        while at < range.end {
            let part = at..range.end.min(at + PIECE);
            let buf = self.read(&part, whole).await?;
            self.write(at, &buf).await?;
            at = part.end;
        }
        Ok(())
    }

    async fn read(&self, range: &Range<u64>, whole: &IoBuf) -> Result<IoBuf> {
        let (source, offset) = self.source(range.start);
        let at = source.part.start + offset;
        let buf = whole.slice(0..to_usize(range.end - range.start));
        let Err(error) = source.root.read(at, buf.clone()).await else { return Ok(buf) };
        if !self.copy.salvage {
            let text = format!("error while reading at byte {}: {error}", range.start);
            return Err(Failure::new(text));
        }
        for start in (0..buf.len() as u64).step_by(to_usize(SECTOR)) {
            let part = buf.slice(to_usize(start)..to_usize((start + SECTOR).min(buf.len() as u64)));
            if let Err(error) = source.root.read(at + start, part.clone()).await {
                let at = range.start + start;
                crate::say(&format!("warning: error while reading offset {at}: {error}"));
                part.fill_zero();
            }
        }
        Ok(buf)
    }

    /// Writes a piece; runs of zeroes in it become holes.
    async fn write(&self, at: u64, buf: &IoBuf) -> Result<()> {
        if self.copy.compressed {
            return self.put(at, buf.clone()).await;
        }
        let mut start = 0;
        while start < buf.len() {
            let (zero, end) = run(buf, start, to_usize(self.copy.sparse));
            let range = at + start as u64..at + end as u64;
            match zero {
                true => self.zeroes(range).await?,
                false => self.put(range.start, buf.slice(start..end)).await?,
            }
            start = end;
        }
        Ok(())
    }

    async fn put(&self, at: u64, buf: IoBuf) -> Result<()> {
        let flags = if self.copy.compressed { WriteFlags::COMPRESSED } else { WriteFlags::NONE };
        if self.copy.compressed && self.copy.zero && self.copy.sparse != 0 && buf.is_zero() {
            return Ok(());
        }
        let result = self.copy.target.write(at, buf, flags).await;
        result.map_err(|error| Failure::new(format!("error while writing at byte {at}: {error}")))
    }

    async fn zeroes(&self, range: Range<u64>) -> Result<()> {
        let at = range.start;
        if self.copy.zero {
            return Ok(());
        }
        let result = self.copy.target.write_zeroes(range, WriteFlags::UNMAP).await;
        result.map_err(|error| Failure::new(format!("error while writing at byte {at}: {error}")))
    }

    /// Waits until so many bytes may have been done.
    async fn pace(&self, done: u64) {
        let Some(rate) = self.copy.rate.filter(|rate| *rate != 0) else { return };
        let ns = u128::from(done) * 1_000_000_000 / u128::from(rate);
        let due = self.started_at.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX));
        self.executor.sleep_until(due).await;
    }
}

/// The run of zeroes, or of anything else, that starts at `start`: runs of zeroes shorter than
/// `unit` belong to what surrounds them.
fn run(buf: &IoBuf, start: usize, unit: usize) -> (bool, usize) {
    if unit == 0 {
        return (false, buf.len());
    }
    let is_zero = |at: usize| buf.slice(at..(at + unit).min(buf.len())).is_zero();
    let zero = is_zero(start);
    let mut end = start;
    while end < buf.len() && is_zero(end) == zero {
        end = (end + unit).min(buf.len());
    }
    (zero, end)
}

/// A length inside a piece, which fits.
fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
