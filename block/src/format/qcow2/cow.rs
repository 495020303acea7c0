//! Writes to clusters that need more than the bytes of the guest: copy on write.
//!
//! A cluster that gets a place of its own, or the first bytes of a part that it has a place for,
//! must be filled with what it read as before: from the backing file, from a cluster that a snapshot
//! keeps, from compressed data, or with zeroes. The write goes out together with what is around it,
//! in one piece; then the entries change.

use std::ops::Range;

use super::entry::{Cluster, L2Entry, Parts};
use super::frees::Why;
use super::geometry::Geometry;
use super::image::Image;
use super::map::What;
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::Result;

/// Most guest bytes that are written in one step.
const MAX_STEP: u64 = 4 << 20;

/// How a stretch of clusters is to be written.
struct Step {
    /// What is written: the guest's bytes and what must be around them.
    filled: Range<u64>,
    /// Where the first cluster of the stretch goes.
    host: u64,
    /// The place is new; otherwise it is the one that the only cluster has.
    is_new: bool,
}

impl Image {
    /// Writes under the lock of the clusters, in a task of its own.
    pub(super) async fn write_slowly(self: std::rc::Rc<Self>, at: u64, from: IoBuf) -> Result<()> {
        let geometry = self.geometry();
        let end = at + from.len() as u64;
        let clusters = geometry.cluster_start(at)..end.next_multiple_of(geometry.cluster_size());
        let guard = self.locks.lock(clusters, true).await;
        let result = self.write_locked(at, from).await;
        drop(guard);
        result
    }

    /// Writes to clusters that the caller has locked.
    pub(super) async fn write_locked(&self, at: u64, from: IoBuf) -> Result<()> {
        let mut done = 0;
        while done < from.len() {
            let start = at + done as u64;
            self.entry_to_change(start).await?;
            let left = (from.len() - done) as u64;
            let mapping = self.find(start, left).await?;
            let len = match mapping.what {
                What::Data { host, own: true } => {
                    let len = usize::try_from(mapping.len).unwrap_or(usize::MAX);
                    let part = from.slice(done..done + len);
                    self.write_data(host, part).await?;
                    mapping.len
                }
                _ => self.write_step(start, from.slice(done..from.len())).await?,
            };
            done += usize::try_from(len).unwrap_or(usize::MAX);
        }
        Ok(())
    }

    /// Writes guest data to a place that is known to be ours.
    async fn write_data(&self, host: u64, from: IoBuf) -> Result<()> {
        let end = host + from.len() as u64;
        if self.data.is_none() {
            self.check_overlap(&(host..end), None)?;
        }
        self.extend_data(end).await?;
        self.data_edge().write(host, from, WriteFlags::NONE).await
    }

    /// Writes the first clusters of what is left, as many as go the same way; how many bytes.
    async fn write_step(&self, at: u64, from: IoBuf) -> Result<u64> {
        let geometry = self.geometry();
        let first = geometry.cluster_start(at);
        let entry = self.entry_to_change(at).await?;
        let cluster = self.decode(entry)?;
        let step = match cluster {
            Cluster::Standard { host: Some(host), parts } if entry.is_copied() => {
                let end = (at + from.len() as u64).min(first + geometry.cluster_size());
                let mut filled = fill_parts(geometry, parts, at..end);
                if self.data.is_some() {
                    filled.end = self.end_in_data(filled.end, end);
                }
                Step { filled, host, is_new: false }
            }
            _ => self.new_place(at, from.len() as u64, cluster).await?,
        };
        let size = geometry.cluster_size();
        let end = (at + from.len() as u64).min(step.filled.end);
        let len = end - at;
        let result = self.fill_and_write(&step, at, from.slice(0..length(len))).await;
        if let Err(error) = result {
            if step.is_new && self.data.is_none() {
                let clusters = geometry.clusters_for(end - first);
                self.frees.push_clusters(step.host, clusters * size, Why::Other);
            }
            return Err(error);
        }
        let mut guest = first;
        while guest < end {
            let host = step.host + (guest - first);
            self.adopt(guest, host, &step).await?;
            guest += size;
        }
        Ok(len)
    }

    /// In a data file the last cluster ends with the disk: the end of what is filled for a write that ends at
    /// `end` of what would be filled up to `whole`.
    fn end_in_data(&self, whole: u64, end: u64) -> u64 {
        whole.min(self.size.get().max(end))
    }

    /// A new place for the cluster at `at`, and for those that follow it if they need one too.
    async fn new_place(&self, at: u64, len: u64, cluster: Cluster) -> Result<Step> {
        let geometry = self.geometry();
        let first = geometry.cluster_start(at);
        let size = geometry.cluster_size();
        let end = at + len.min(MAX_STEP);
        if self.data.is_some() {
            let end = end.min(first + size);
            let unit = geometry.subcluster_size();
            let whole = self.end_in_data(end.next_multiple_of(unit), end);
            let filled = at - at % unit..whole;
            return Ok(Step { filled, host: first, is_new: true });
        }
        let has_data = |cluster: Cluster| match cluster {
            Cluster::Compressed(_) => true,
            Cluster::Standard { parts, .. } => parts.allocated != 0,
        };
        let mut clusters = 1;
        if !has_data(cluster) || !geometry.has_extended_l2() {
            while first + clusters * size < end && self.needs_place(first + clusters * size)? {
                clusters += 1;
            }
        }
        let run = self.allocate(clusters).await?;
        let end = end.min(first + run.clusters * size);
        let unit = if has_data(cluster) { size } else { geometry.subcluster_size() };
        let mut filled = at - at % unit..end.next_multiple_of(unit);
        // A place that reads as zeroes has what belongs around the write already.
        if run.zero && !has_data(cluster) && self.reads_zero(filled.clone()).await? {
            filled = at..end;
        }
        Ok(Step { filled, host: run.host, is_new: true })
    }

    /// Whether the cluster at `guest` is to get a new place when it is written, in the same table
    /// slice as the one before it.
    fn needs_place(&self, guest: u64) -> Result<bool> {
        let Some(entry) = self.own_entry(guest)? else { return Ok(false) };
        Ok(match self.decode(entry)? {
            Cluster::Compressed(_) => !self.geometry().has_extended_l2(),
            Cluster::Standard { host, parts } => {
                let plain = !self.geometry().has_extended_l2() || parts.allocated == 0;
                plain && (host.is_none() || !entry.is_copied())
            }
        })
    }

    /// Whether the disk reads as zeroes there because nothing says otherwise.
    async fn reads_zero(&self, range: Range<u64>) -> Result<bool> {
        let mut at = range.start;
        while at < range.end {
            let mapping = self.find(at, range.end - at).await?;
            match mapping.what {
                What::Zero => {}
                What::Absent if self.is_zero_below(at) => {}
                _ => return Ok(false),
            }
            at += mapping.len;
        }
        Ok(true)
    }

    /// Writes `from`, with what the disk reads as around it.
    async fn fill_and_write(&self, step: &Step, at: u64, from: IoBuf) -> Result<()> {
        let end = at + from.len() as u64;
        let host = step.host + (step.filled.start - self.geometry().cluster_start(at));
        let (head, tail) = (step.filled.start..at, end..step.filled.end);
        if head.is_empty() && tail.is_empty() {
            return self.write_data(host, from).await;
        }
        let around = |range: Range<u64>| IoBuf::alloc(length(range.end - range.start));
        let (head_buf, tail_buf) = (around(head.clone()), around(tail.clone()));
        self.read_pieces(head.start, head_buf.clone()).await?;
        self.read_pieces(tail.start, tail_buf.clone()).await?;
        self.write_data(host, IoBuf::concat(&[head_buf, from, tail_buf])).await
    }

    /// Makes the entries of `range` point to its place in the data file, where the caller, who has
    /// locked its clusters, has written it.
    pub(super) async fn adopt_data(&self, range: Range<u64>) -> Result<()> {
        let mut guest = self.geometry().cluster_start(range.start);
        let step = Step { filled: range, host: guest, is_new: true };
        while guest < step.filled.end {
            self.adopt(guest, guest, &step).await?;
            guest += self.geometry().cluster_size();
        }
        Ok(())
    }

    /// Makes the entry of a guest cluster point to what was just written.
    async fn adopt(&self, guest: u64, host: u64, step: &Step) -> Result<()> {
        let geometry = self.geometry();
        let old = self.entry_to_change(guest).await?;
        let before = self.decode(old)?;
        let size = geometry.cluster_size();
        let (start, end) = (step.filled.start.max(guest), step.filled.end.min(guest + size));
        let written = parts_of(geometry, start - guest..end - guest);
        let parts = match before {
            Cluster::Standard { parts, .. } => {
                Parts { allocated: parts.allocated | written, zero: parts.zero & !written }
            }
            Cluster::Compressed(_) => Parts { allocated: Parts::all(geometry), zero: 0 },
        };
        let cluster = Cluster::Standard { host: Some(host), parts };
        self.set_entry(guest, L2Entry::encode(cluster, true, geometry)?)?;
        if step.is_new {
            self.drop_old(before);
        }
        Ok(())
    }

    /// What an entry pointed to loses that reference.
    pub(super) fn drop_old(&self, cluster: Cluster) {
        self.drop_for(cluster, Why::Other);
    }

    /// The same, with the reason.
    pub(super) fn drop_for(&self, cluster: Cluster, why: Why) {
        match cluster {
            Cluster::Compressed(data) => self.frees.push_compressed(data, why),
            Cluster::Standard { host: Some(host), .. } if self.data.is_none() => {
                self.frees.push_clusters(host, self.geometry().cluster_size(), why);
            }
            Cluster::Standard { .. } => {}
        }
    }

    /// What an entry says; nonsense marks the image corrupt.
    pub(super) fn decode(&self, entry: L2Entry) -> Result<Cluster> {
        entry.decode(self.geometry()).map_err(|error| self.corrupt(&error.to_string()))
    }
}

/// The parts of a cluster that a write of `range` must fill because they have no bytes yet: whole
/// parts at its ends, unless those are there. What is there is left alone, for others may be
/// writing to it.
fn fill_parts(geometry: Geometry, parts: Parts, range: Range<u64>) -> Range<u64> {
    let unit = geometry.subcluster_size();
    let is_there = |at: u64| parts.allocated >> geometry.subcluster_index(at) & 1 != 0;
    let start = if is_there(range.start) { range.start } else { range.start - range.start % unit };
    let last = range.end - 1;
    let end = if is_there(last) { range.end } else { range.end.next_multiple_of(unit) };
    start..end
}

/// The parts that a range within a cluster touches.
fn parts_of(geometry: Geometry, range: Range<u64>) -> u32 {
    let unit = geometry.subcluster_size();
    let (first, last) = (range.start / unit, range.end.div_ceil(unit));
    (first..last).fold(0, |set, part| set | 1 << part)
}

/// A length within one request.
fn length(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
