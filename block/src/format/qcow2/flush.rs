//! The flush, and the order that makes crashes harmless.
//!
//! 1. Changed slices of L2 tables, pieces of the L1 table and the list of dropped clusters are
//!    taken as they are at this moment.
//! 2. Refcounts are written, which cover everything those entries point to.
//! 3. `fdatasync`: refcounts, guest data, and what new L2 tables begin with are durable.
//! 4. The entries of step 1 are written.
//! 5. `fdatasync`: what was dropped is unreachable now. It goes to the reaper.
//!
//! An entry made after step 1 waits for the next flush, for its refcount may not be in this one.
//! Steps 4 and 5 are left out when no entry has changed, so that the flush of a disk that is not
//! growing costs one `fdatasync`.
//!
//! One flush runs at a time. Who comes while one runs waits for the next one, together with all who
//! came as well.

use std::cell::{Cell, RefCell};
use std::future::Future;

use super::checksum::Piece;
use super::image::Image;
use super::overlap::Kind;
use crate::error::{ErrorKind, Result};
use crate::notify::Notify;

/// Flushes of an image.
#[derive(Default)]
pub(super) struct Flushes {
    /// Number of the flush that was begun last.
    begun: Cell<u64>,
    /// Number of the flush that ended last, and how.
    ended: RefCell<(u64, Option<crate::error::Error>)>,
    changed: Notify,
    /// When unused slices were given up last, ns.
    trimmed: Cell<u64>,
}

impl Flushes {
    fn is_running(&self) -> bool {
        self.begun.get() != self.ended.borrow().0
    }

    /// Waits until none is running.
    pub(super) async fn over(&self) {
        self.changed.wait_until(|| !self.is_running()).await;
    }
}

impl Image {
    /// Makes everything durable that was done before.
    pub(super) async fn flush(&self) -> Result<()> {
        let flushes = &self.flushes;
        // The one that runs may have begun before what is to be made durable.
        let wanted = flushes.begun.get() + 1;
        // Its end is looked at before the next one ends, which may have begun already: that one's success
        // would hide that it has failed.
        let is_over = || flushes.ended.borrow().0 >= wanted;
        loop {
            flushes.changed.wait_until(|| is_over() || !flushes.is_running()).await;
            if is_over() {
                let (_, error) = &*flushes.ended.borrow();
                return error.clone().map_or(Ok(()), Err);
            }
            self.start_flush();
        }
    }

    /// Writes entries out, so that their slices may be given up.
    pub(super) async fn flush_metadata(&self) -> Result<()> {
        self.flush().await
    }

    /// Begins a flush that nobody waits for, when much has gathered.
    pub(super) fn flush_if_crowded(&self) {
        if (self.map.slices.is_crowded() || self.frees.are_many()) && !self.flushes.is_running() {
            self.start_flush();
        }
    }

    /// Makes a request that changes the disk. If there is no room for it while something waits to be freed, it is made
    /// again after that. It holds no pass meanwhile, for which the reaper would wait.
    pub(super) async fn with_room<R>(&self, request: impl Fn() -> R) -> Result<()>
    where
        R: Future<Output = Result<()>>,
    {
        let rounds = self.frees.rounds();
        let may_help = || !self.frees.is_idle() || self.frees.rounds() != rounds;
        match request().await {
            Err(error) if error.kind() == ErrorKind::NoSpace && may_help() => {
                Box::pin(async {
                    self.flush().await?;
                    self.reaped().await;
                    request().await
                })
                .await
            }
            result => result,
        }
    }

    /// Begins a flush, as a task of its own: it ends even if nobody waits for it any more.
    fn start_flush(&self) {
        let Some(image) = self.shared() else { return };
        self.flushes.begun.set(self.flushes.begun.get() + 1);
        self.executor.spawn(async move {
            let result = image.write_out().await;
            image.trim_caches();
            let number = image.flushes.begun.get();
            image.flushes.ended.replace((number, result.err()));
            image.flushes.changed.notify_all();
        });
    }

    async fn write_out(&self) -> Result<()> {
        // Also a read may begin this, for what is in its way, and an image that is damaged is left as it is.
        self.has_begun()?;
        let (l2, l1) = (self.map.slices.take_dirty(), self.map.l1.take_dirty());
        let dropped = self.frees.take_dropped();
        let result = self.write_in_order(&l2, &l1).await;
        self.map.slices.written(&l2, result.is_ok());
        if let Err(error) = result {
            self.map.l1.put_back(&l1);
            self.frees.put_back(dropped);
            return Err(error);
        }
        self.reap(dropped);
        Ok(())
    }

    async fn write_in_order(&self, l2: &[Piece], l1: &[Piece]) -> Result<()> {
        self.settle_header().await?;
        if !self.has_lazy_refcounts() {
            self.write_refcounts().await?;
        }
        self.file.flush().await?;
        if let Some(data) = &self.data {
            data.flush().await?;
        }
        if l2.is_empty() && l1.is_empty() {
            return Ok(());
        }
        self.write_tables(l2, Kind::ActiveL2).await?;
        self.write_tables(l1, Kind::ActiveL1).await?;
        self.file.flush().await
    }

    /// Gives up what was not used for the interval that the user set. Looked at after flushes: a
    /// timer would only wake a disk that nobody uses.
    fn trim_caches(&self) {
        let (now, interval) = (self.executor.turn_time(), self.behaviour.clean_interval);
        if interval != 0 && now.saturating_sub(self.flushes.trimmed.get()) >= interval {
            self.flushes.trimmed.set(now);
            self.map.slices.trim();
            self.refcounts.slices.trim();
        }
    }
}
