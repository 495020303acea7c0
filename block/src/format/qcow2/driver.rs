//! [`Qcow2Driver`]: the image as a driver of a node, and what only qcow2 can do.

use std::future::Future;
use std::ops::Range;
use std::rc::Rc;

use super::bitmap::{BitmapEntry, ToStore, load_bitmaps, load_directory, store_bitmaps};
use super::header::Header;
use super::image::{Condition, Image};
use super::open::beside;
use super::snapshot::{Snapshot, load_snapshots};
use super::tighten::tighten;
use crate::bitmap::DirtyBitmap;
use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags};
use crate::edge::{Edge, EdgePerms};
use crate::error::{Error, ErrorKind, Result};
use crate::open::protocol_name;

/// Longest write of zeroes or discard in one call, bytes: a bound on the work between two others.
const MAX_ZEROES: u64 = 1 << 40;

/// A qcow2 image in use. [`crate::BlockNode::driver`] finds it behind a node.
pub struct Qcow2Driver {
    pub(super) image: Rc<Image>,
}

impl Qcow2Driver {
    pub(super) fn new(image: Rc<Image>) -> Qcow2Driver {
        Qcow2Driver { image }
    }

    /// The header as it is now.
    pub fn header(&self) -> Header {
        self.image.header.borrow().clone()
    }

    /// The edge to the image file.
    pub fn file(&self) -> Edge {
        self.image.file.clone()
    }

    /// The edge to what is below the image, if there is anything.
    pub fn backing(&self) -> Option<Edge> {
        self.image.backing()
    }

    /// The name of the backing file that the image gives, seen from the working directory.
    pub fn full_backing_file(&self) -> Option<String> {
        let name = self.image.header.borrow().backing_file.clone()?;
        if name.starts_with("json:") || protocol_name(&name).is_some() {
            return Some(name);
        }
        let image = self.image.file.node().filename();
        beside(image.as_deref(), &name).ok()
    }

    /// Whether what is below the image is what that name means, and nothing that somebody put there instead.
    pub fn names_backing(&self) -> bool {
        self.image.names_backing.get()
    }

    /// Puts another node below the image, or none. The caller has drained the node and knows that
    /// the disk reads the same.
    pub fn set_backing(&self, backing: Option<Edge>) {
        self.image.names_backing.set(false);
        self.image.backing.replace(backing);
    }

    /// Whether the image may be written from its next activation on. It is inactive now.
    pub(crate) fn set_read_only(&self, read_only: bool) {
        self.image.read_only.set(read_only);
    }

    /// Bytes of the image file up to the end of the last cluster that is in use. Ahead of it the
    /// file may have been grown.
    pub fn end_offset(&self) -> u64 {
        self.image.space.end() << self.image.geometry().cluster_bits()
    }

    /// Gives a place in the file to every cluster of a range of the disk, without writing to it; with
    /// `space` the host's room for it is taken, too. What is there stays.
    ///
    /// # Errors
    /// As for a write.
    pub async fn preallocate(&self, range: Range<u64>, space: bool) -> Result<()> {
        self.image.preallocate(range, space).await
    }

    /// Makes the image hold nothing of the disk, so that the image below shows everywhere. Snapshots
    /// and bitmaps stay.
    ///
    /// # Errors
    /// As for a discard.
    pub async fn make_empty(&self) -> Result<()> {
        self.image
            .run(|image| async move {
                let closed = image.make_empty().await?;
                let result = give_back(&image, 0).await;
                drop(closed);
                result
            })
            .await
    }

    /// Whether something in the image was found to be wrong, so that it is not written any more.
    pub fn is_corrupt(&self) -> bool {
        self.image.condition.get() == Condition::Corrupt
    }

    /// Runs an operation on the image file itself (a check, a repair, snapshots, stored bitmaps,
    /// changes of the header) while the image is in use: waits for all requests, writes everything
    /// out, lets `work` do to the file what it likes, then reads everything anew. Requests that
    /// come meanwhile wait. Once begun it goes on to its end, also when the caller gives it up.
    ///
    /// # Errors
    /// Those of `work`, and of writing the image out; `Inactive` if it is not ours, `Corrupt` if it is damaged. After a
    /// failure of `work` the file is read anew just the same.
    pub async fn offline<T: 'static, F>(&self, work: impl FnOnce(Edge) -> F + 'static) -> Result<T>
    where
        F: Future<Output = Result<T>> + 'static,
    {
        self.image
            .run(|image| async move {
                let closed = image.close().await?;
                let result = at_rest(&image, work).await;
                drop(closed);
                result
            })
            .await
    }
}

/// [`Qcow2Driver::offline`] for who has closed the gate, in a task of its own: half of what writes the image
/// out, or a write of `work` that the kernel has already, must not be left to itself.
async fn at_rest<T, F>(image: &Rc<Image>, work: impl FnOnce(Edge) -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    // Refused if it is corrupt, for its refcounts do not say what is free, and if it was given up while this waited for
    // the gate: by now somebody else may own it.
    image.begin_change(None).await?;
    image.come_to_rest().await?;
    image.gate.set_stale(true);
    let result = work(image.file.clone()).await;
    if let Err(error) = image.reread().await {
        // What was done is done. The next request tries again, or fails.
        tracing::warn!("{} cannot be read again: {error}", image.name());
    }
    result
}

/// Gives back the tables behind the first `keep` entries of the L1 table, which have no
/// clusters any more. What cannot be given back leaks, and the disk is as it should be.
async fn give_back(image: &Rc<Image>, keep: u64) -> Result<()> {
    let tighten = |file: Edge| async move {
        if let Err(error) = tighten(&file, keep).await {
            tracing::warn!("the tables of a shorter disk are not given back: {error}");
        }
        Ok(())
    };
    at_rest(image, tighten).await
}

impl Qcow2Driver {
    /// The internal snapshots, as the image lists them.
    ///
    /// # Errors
    /// `Corrupt` when the list makes no sense.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let pass = self.image.enter().await?;
        let table = load_snapshots(&self.image.file, &self.header()).await;
        drop(pass);
        Ok(table?.snapshots)
    }

    /// The bitmaps in the image as it is now: those in use are stored when it is given up.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported` when their directory makes no sense.
    pub async fn bitmap_entries(&self) -> Result<Vec<BitmapEntry>> {
        let pass = self.image.enter().await?;
        let entries = match self.header().bitmaps() {
            Some(extension) => {
                load_directory(&self.image.file, extension, self.image.geometry()).await
            }
            None => Ok(Vec::new()),
        };
        drop(pass);
        entries
    }

    /// Says in the image that its bitmaps are in use, as before a first write: what changes one of them by itself would
    /// be lost with a crash, and the image would call the one that it has whole.
    pub(crate) async fn mark_bitmaps_in_use(&self) -> Result<()> {
        self.image.enter_to_change().await.map(drop)
    }

    /// The bitmaps stored in the image, by name.
    ///
    /// # Errors
    /// Their directory or one of them makes no sense, or their bits take more than 1 GiB.
    pub(crate) async fn load_bitmaps(&self) -> Result<Vec<(String, DirtyBitmap)>> {
        let header = self.header();
        load_bitmaps(&self.image.file, &header).await
    }

    /// Makes `bitmaps` those stored in the image, with nothing in flight. The next write marks them
    /// as in use again.
    pub(crate) async fn store_bitmaps(&self, bitmaps: Vec<(String, DirtyBitmap)>) -> Result<()> {
        if bitmaps.is_empty() && self.header().bitmaps().is_none() {
            return Ok(());
        }
        let is_clean = self.image.condition.get() == Condition::Clean;
        if is_clean && self.load_bitmaps().await.is_ok_and(|stored| stored == bitmaps) {
            // Neither the disk nor what was known of it has changed: nor does the file.
            return Ok(());
        }
        let store = |file: Edge| async move {
            let bitmaps: Vec<_> =
                bitmaps.iter().map(|(name, bits)| ToStore::Bits { name, bits }).collect();
            store_bitmaps(&file, &bitmaps).await
        };
        let stored = self.offline(store).await;
        match self.image.condition.get() {
            // Somebody else has given it up meanwhile, and has stored them before.
            Condition::Inactive => Ok(()),
            _ => stored,
        }
    }
}

impl BlockDriver for Qcow2Driver {
    const FORMAT: &'static str = "qcow2";

    fn limits(&self) -> Limits {
        let cluster = u32::try_from(self.image.geometry().cluster_size()).unwrap_or(u32::MAX);
        Limits { discard_granularity: cluster, max_zeroes: MAX_ZEROES, ..Limits::NONE }
    }

    fn len(&self) -> u64 {
        self.image.size.get()
    }

    fn filename(&self) -> Option<String> {
        self.image.file.node().filename()
    }

    fn children(&self) -> Vec<Edge> {
        let image = &self.image;
        let edges = [Some(image.file.clone()), image.data.clone(), image.backing()];
        edges.into_iter().flatten().collect()
    }

    fn set_permissions(&self, _held: EdgePerms) -> Result<()> {
        Ok(())
    }

    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        self.image.read(at, into).await
    }

    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        self.image.with_room(|| self.image.write(at, from.clone(), flags)).await
    }

    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        self.image.with_room(|| self.image.write_zeroes(range.clone(), flags)).await
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.image.discard(range).await
    }

    async fn flush(&self) -> Result<()> {
        let image = &self.image;
        let result = match image.condition.get() {
            Condition::Changed => image.flush().await,
            Condition::Inactive | Condition::Clean => Ok(()),
            Condition::Corrupt => {
                let text = format!("{} is marked corrupt", image.name());
                Err(Error::new(ErrorKind::Corrupt, text))
            }
        };
        if image.condition.get() == Condition::Corrupt {
            // The flush before an image is given up is the last that anybody waits for.
            image.come_to_a_halt().await;
        }
        result
    }

    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        self.image.map_extent(range.start, range.end - range.start).await
    }

    async fn resize(&self, len: u64) -> Result<()> {
        self.image
            .run(move |image| async move {
                let old = image.size.get();
                let closed = image.resize(len).await?;
                if len < old {
                    give_back(&image, image.geometry().l1_entries_for(len)).await?;
                }
                drop(closed);
                if len > old && image.header.borrow().is_data_file_raw() {
                    // Who reads the data file by itself must see what the image shows: all has its place there.
                    image.preallocate(old..len, false).await?;
                }
                Ok(())
            })
            .await
    }

    async fn grow(&self, len: u64) -> Result<ExtentKind> {
        self.resize(len).await.map(|()| ExtentKind::Zero)
    }

    async fn refresh(&self) -> Result<()> {
        if self.image.condition.get() != Condition::Inactive {
            return Ok(());
        }
        let closed = self.image.gate.close().await;
        let reread = self.image.reread().await;
        drop(closed);
        reread
    }

    async fn activate(&self, only_if: Option<u64>) -> Result<()> {
        self.image.activate(only_if).await
    }

    async fn inactivate(&self) -> Result<()> {
        self.image.inactivate().await
    }

    async fn generation(&self) -> Result<Option<u64>> {
        self.image.generation().await
    }
}
