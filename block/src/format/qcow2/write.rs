//! Writes.
//!
//! A write takes the first of these ways that is open to it:
//!
//! - *In place*: the clusters are there and nobody else's. Straight to the file, no lock, nothing
//!   changed.
//! - *Fresh*: the clusters read as zeroes and so does the place that they are given. The entries
//!   are changed first, all at once and without an await; then the write is one in place. Whatever
//!   a crash leaves, the rest of these clusters reads as zeroes, as before. Others that write to
//!   the same clusters need not wait.
//! - *Slowly* (see `cow`): the place must be filled with what the write does not cover. A task of
//!   its own does that, under the lock of these clusters, and changes the entries last.

use super::alloc::{Need, full};
use super::entry::{Cluster, L2Entry, Parts};
use super::gate::Pass;
use super::image::{Condition, Image};
use super::map::{Mapping, Place, What};
use super::read::all;
use crate::buf::IoBuf;
use crate::driver::{LocalBoxFuture, WriteFlags};
use crate::error::Result;
use crate::executor::Carried;

impl Image {
    /// Writes `from` at `at`.
    pub(super) async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        let is_changed = || self.condition.get() == Condition::Changed;
        let pass = match self.gate.try_enter().filter(|_| is_changed()) {
            Some(pass) => pass,
            None => Box::pin(self.enter_to_change()).await?,
        };
        self.check_end(at + from.len() as u64)?;
        if flags.compressed {
            Box::pin(self.write_compressed(at, from, pass)).await?;
            return if flags.fua { Box::pin(self.flush()).await } else { Ok(()) };
        }
        let result = match self.ready_place(at, from.len() as u64)? {
            Some((host, len)) if len == from.len() as u64 => {
                // Durable by itself if the entries are.
                let fua = flags.fua && !self.map.is_dirty();
                let how = WriteFlags { fua, ..WriteFlags::NONE };
                self.write_in_place(host, from, how, &pass)?.await?;
                if flags.fua && !fua { Box::pin(self.flush()).await } else { Ok(()) }
            }
            _ => Box::pin(self.write_pieces(at, from, flags, &pass)).await,
        };
        drop(pass);
        result
    }

    fn write_in_place(
        &self,
        host: u64,
        from: IoBuf,
        flags: WriteFlags,
        pass: &Pass,
    ) -> Result<Carried<Result<()>>> {
        let end = host + from.len() as u64;
        if self.data.is_none() {
            self.check_overlap(&(host..end), None)?;
        }
        let edge = self.data_edge().clone();
        let longer = if end > edge.len() { self.shared() } else { None };
        let pass = pass.again();
        Ok(Carried::new(&self.executor, async move {
            let longer = match longer {
                Some(image) => Box::pin(image.extend_data(end)).await,
                None => Ok(()),
            };
            let result = match longer {
                Ok(()) => edge.write(host, from, flags).await,
                error => error,
            };
            drop(pass);
            result
        }))
    }

    /// Entries may point behind the end of the file, which ends somewhere in its last cluster.
    pub(super) async fn extend_data(&self, end: u64) -> Result<()> {
        match &self.data {
            None => self.reserve_file(end).await,
            Some(data) if data.len() < end => self.grow_data(end).await,
            Some(_) => Ok(()),
        }
    }

    /// Makes the data file at least so long, one request after the other.
    async fn grow_data(&self, end: u64) -> Result<()> {
        self.run(move |image| async move {
            let guard = image.growing.lock(0..1, true).await;
            let grown = match &image.data {
                Some(data) if data.len() < end => data.grow(end).await.map(drop).map_err(full),
                _ => Ok(()),
            };
            drop(guard);
            grown
        })
        .await
    }

    async fn write_pieces(
        &self,
        at: u64,
        from: IoBuf,
        flags: WriteFlags,
        pass: &Pass,
    ) -> Result<()> {
        let mut pieces: Vec<LocalBoxFuture<'_, Result<()>>> = Vec::new();
        let mut done = 0;
        while done < from.len() {
            let (start, left) = (at + done as u64, from.len() - done);
            let ready = match self.ready_place(start, left as u64)? {
                None => {
                    // The slice may only have to be loaded.
                    self.load_entry(start).await?;
                    self.ready_place(start, left as u64)?
                }
                ready => ready,
            };
            let Some((host, len)) = ready else {
                // All that follows goes this way too: most often it has to.
                let (part, pass) = (from.slice(done..from.len()), pass.again());
                pieces.push(Box::pin(self.run(move |image| async move {
                    let result = image.write_slowly(start, part).await;
                    drop(pass);
                    result
                })));
                break;
            };
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let part = from.slice(done..done + len);
            pieces.push(Box::pin(self.write_in_place(host, part, WriteFlags::NONE, pass)?));
            done += len;
        }
        all(pieces).await?;
        self.flush_if_crowded();
        if flags.fua { self.flush().await } else { Ok(()) }
    }

    /// Where up to `len` bytes from `at` can be written at once, and how many; `None` if that is
    /// not known yet, or needs more than a write.
    fn ready_place(&self, at: u64, len: u64) -> Result<Option<(u64, u64)>> {
        let Some(Mapping { what, len }) = self.lookup(at, len)? else { return Ok(None) };
        match what {
            What::Data { host, own: true } => Ok(Some((host, len))),
            What::Zero | What::Absent => self.fresh_place(at, len),
            _ => Ok(None),
        }
    }

    /// Gives fresh clusters to the first of `len` bytes from `at`, which have no data.
    pub(super) fn fresh_place(&self, at: u64, len: u64) -> Result<Option<(u64, u64)>> {
        let geometry = self.geometry();
        let first = geometry.cluster_start(at);
        let end = at + len;
        if self.data.is_some() {
            return Ok(None);
        }
        let range = first..end.next_multiple_of(geometry.cluster_size());
        if !self.locks.is_empty() && self.locks.overlaps(&range) {
            return Ok(None);
        }
        let Place::Slice { key, index, own: true } = self.place(first)? else { return Ok(None) };
        let zero_below = self.is_zero_below(first);
        // A host cluster that is there already may hold anything.
        let is_vacant = |slice: &[u8], index: usize| {
            let entry = L2Entry::get(slice, index, geometry).decode(geometry);
            let Ok(Cluster::Standard { host: None, parts }) = entry else { return false };
            zero_below || parts.zero == Parts::all(geometry)
        };
        let count = usize::try_from(geometry.clusters_for(end - first)).unwrap_or(usize::MAX);
        let vacant = self.map.slices.read(key, |slice| {
            let last = index.saturating_add(count).min(geometry.l2_entries_in(slice.len()));
            (index..last).take_while(|index| is_vacant(slice, *index)).count()
        });
        let Some(vacant @ 1..) = vacant else { return Ok(None) };
        let Some(run) = self.try_allocate(vacant as u64, Need::Zeroes)? else { return Ok(None) };
        let size = geometry.cluster_size();
        for number in 0..run.clusters {
            let data = Cluster::data(geometry, run.host + number * size);
            self.set_entry(first + number * size, L2Entry::encode(data, true, geometry)?)?;
        }
        let covered = (first + run.clusters * size).min(end) - at;
        Ok(Some((run.host + geometry.within_cluster(at), covered)))
    }
}
