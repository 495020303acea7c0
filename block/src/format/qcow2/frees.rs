//! Clusters that are to be freed.
//!
//! A cluster goes through three stations, and is nobody else's before it has passed them all:
//!
//! 1. *dropped*: an entry that pointed to it was changed in memory. In the file it may still be
//!    there.
//! 2. *durable*: a flush has made that change durable, so that no crash brings the reference back.
//! 3. *reaped*: all requests that were under way when it was dropped have ended (see `gate`). Now
//!    its refcount is lowered. Once that is zero its space is given back to the host, if that is
//!    wanted, and it may be allocated again.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use super::entry::Compressed;
use super::image::{Condition, Image};
use crate::driver::WriteFlags;
use crate::error::{ErrorKind, Result};
use crate::notify::Notify;

/// So many dropped pieces start a flush that nobody asked for, to bound the list.
const MANY: usize = 4096;

/// Clusters that are freed before others get their turn.
const BATCH: u64 = 1024;

/// Why something is freed; whether its space goes back to the host depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The guest discarded it.
    Request,
    /// Metadata that moved, data that was overwritten elsewhere.
    Other,
}

/// One reference to the clusters in which `host` lies, to be taken away.
#[derive(Clone, Debug)]
struct Free {
    host: Range<u64>,
    why: Why,
    /// Whole clusters, so that it may be joined with its neighbour.
    whole: bool,
}

/// The clusters of an image that are to be freed.
#[derive(Default)]
pub(super) struct Frees {
    dropped: RefCell<Vec<Free>>,
    durable: RefCell<Vec<Free>>,
    reaping: Cell<bool>,
    /// How often the reaper has come to an end.
    rounds: Cell<u64>,
    changed: Notify,
}

/// What a flush takes along.
pub(super) struct Dropped(Vec<Free>);

impl Frees {
    /// A reference to whole clusters is gone from the tables in memory.
    pub(super) fn push_clusters(&self, at: u64, len: u64, why: Why) {
        let mut dropped = self.dropped.borrow_mut();
        match dropped.last_mut() {
            Some(last) if last.host.end == at && last.why == why && last.whole => {
                last.host.end += len;
            }
            _ => dropped.push(Free { host: at..at + len, why, whole: true }),
        }
    }

    /// A reference to compressed data is gone: one for each cluster that it touches, which others
    /// may touch too.
    pub(super) fn push_compressed(&self, data: Compressed, why: Why) {
        let host = data.offset..data.offset + data.len;
        self.dropped.borrow_mut().push(Free { host, why, whole: false });
    }

    /// Whether enough has gathered to start a flush.
    pub(super) fn are_many(&self) -> bool {
        self.dropped.borrow().len() >= MANY
    }

    /// Whether nothing waits to be freed at any station.
    pub(super) fn is_idle(&self) -> bool {
        self.dropped.borrow().is_empty() && self.durable.borrow().is_empty() && !self.reaping.get()
    }

    /// Changes when something was freed.
    pub(super) fn rounds(&self) -> u64 {
        self.rounds.get()
    }

    /// A flush begins: what it will make durable.
    pub(super) fn take_dropped(&self) -> Dropped {
        Dropped(self.dropped.take())
    }

    /// The flush failed.
    pub(super) fn put_back(&self, dropped: Dropped) {
        self.dropped.borrow_mut().extend(dropped.0);
    }

    /// Nothing of this image is to be freed any more.
    pub(super) fn clear(&self) {
        self.dropped.take();
        self.durable.take();
    }
}

impl Image {
    /// A flush has made these drops durable. They are reaped in a task of their own: requests that
    /// wait for a flush must not wait for requests that wait for it.
    pub(super) fn reap(&self, dropped: Dropped) {
        self.frees.durable.borrow_mut().extend(dropped.0);
        if self.frees.durable.borrow().is_empty() || self.frees.reaping.replace(true) {
            return;
        }
        let Some(image) = self.shared() else { return };
        self.executor.spawn(async move {
            loop {
                let batch = image.frees.durable.take();
                if batch.is_empty() {
                    break;
                }
                image.gate.grace().await;
                for free in batch {
                    if image.condition.get() == Condition::Corrupt {
                        // Who else has these clusters nobody knows: they leak.
                        break;
                    }
                    if let Err(error) = image.free(&free).await {
                        tracing::warn!(
                            "{:#x}..{:#x} of {} leaks: {error}",
                            free.host.start,
                            free.host.end,
                            image.name()
                        );
                    }
                }
            }
            image.frees.reaping.set(false);
            image.frees.rounds.set(image.frees.rounds.get() + 1);
            image.frees.changed.notify_all();
        });
    }

    /// Waits until the reaper has nothing to do.
    pub(super) async fn reaped(&self) {
        self.frees.changed.wait_until(|| !self.frees.reaping.get()).await;
    }

    async fn free(&self, free: &Free) -> Result<()> {
        let geometry = self.geometry();
        let packing = self.lock_packing().await;
        let mut run: Option<Range<u64>> = None;
        let clusters =
            geometry.cluster_index(free.host.start)..geometry.clusters_for(free.host.end);
        for (number, cluster) in (1..).zip(clusters) {
            self.pause_after(number).await;
            if self.refcount(cluster).await? != 1 {
                self.drop_reference(cluster).await?;
                continue;
            }
            match &mut run {
                Some(run) if run.end == cluster => run.end += 1,
                _ => {
                    let done = run.replace(cluster..cluster + 1);
                    self.release(done, free.why).await?;
                }
            }
        }
        let result = self.release(run, free.why).await;
        drop(packing);
        result
    }

    /// The last reference to these clusters goes. They keep it until the host has their space
    /// back: nobody may write there before that.
    async fn release(&self, clusters: Option<Range<u64>>, why: Why) -> Result<()> {
        let Some(clusters) = clusters else { return Ok(()) };
        let bits = self.geometry().cluster_bits();
        let host = clusters.start << bits..(clusters.end << bits).min(self.file.len());
        let passed = match why {
            Why::Request => self.behaviour.pass_discard_request,
            Why::Other => self.behaviour.pass_discard_other,
        };
        let zero = passed && !host.is_empty() && self.punch(host.clone()).await;
        let all = clusters.start << bits..clusters.end << bits;
        self.map.slices.forget(all.clone());
        self.refcounts.slices.forget(all.clone());
        self.forget_compressed(&all);
        for (number, cluster) in (1..).zip(clusters) {
            self.pause_after(number).await;
            self.drop_reference(cluster).await?;
            self.regions.remove(cluster << bits);
            // At once: who searches for clusters without references while the next refcount is loaded
            // would find it, and it would be given out first and called free later.
            self.space.add_free(cluster..cluster + 1, zero);
        }
        Ok(())
    }

    /// Lets others go on after so many clusters: there may be very many.
    async fn pause_after(&self, number: u64) {
        if number.is_multiple_of(BATCH) {
            self.executor.yield_now().await;
        }
    }

    /// Gives the space back to the host; whether it reads as zeroes now.
    async fn punch(&self, host: Range<u64>) -> bool {
        let flags = WriteFlags { no_fallback: true, ..WriteFlags::UNMAP };
        match self.file.write_zeroes(host.clone(), flags).await {
            Ok(()) => true,
            Err(error) => {
                if error.kind() != ErrorKind::Unsupported {
                    tracing::debug!("{} keeps {host:#x?}: {error}", self.name());
                }
                false
            }
        }
    }
}
