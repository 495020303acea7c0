//! Ownership: reading everything anew when this process takes the image over, leaving it clean when
//! it gives it up.

use super::bytes::Reader;
use super::check::recount;
use super::container;
use super::entry::{L1Entry, MAX_HOST_OFFSET, RefcountTableEntry, refcount};
use super::header::{Header, Incompatible, MAX_L1_BYTES, Version};
use super::image::{Condition, Image};
use super::overlap::Kind;
use super::snapshot::{load_header, load_snapshots};
use crate::error::{Error, ErrorKind, Result};

/// Refcount blocks that are read to find where the used part of the file ends.
const MAX_END_BLOCKS: usize = 16;

impl Image {
    /// Forgets everything that was read before, and reads what is always in memory.
    pub(super) async fn reload(&self) -> Result<()> {
        let header = load_header(&self.file, self.snapshot.as_ref()).await?;
        header.check_against(self.file.len())?;
        let refuse = |what: &str| {
            let text = format!("{} has {what} than when it was opened", self.name());
            Err(Error::new(ErrorKind::Corrupt, text))
        };
        if header.geometry.cluster_bits() != self.geometry().cluster_bits() {
            return refuse("another cluster size");
        }
        // Guest data would go to where the image file has its tables.
        if header.geometry.has_external_data() != self.data.is_some() {
            return refuse("its data elsewhere");
        }
        let (l1_at, l1_bytes) = (header.l1.offset, u64::from(header.l1.entries) * 8);
        let (table_at, table_bytes) = (header.refcount_table_offset, header.refcount_table_bytes());
        let l1 = self.read_table(l1_at, l1_bytes).await?;
        let table = self.read_table(table_at, table_bytes).await?;
        self.adopt_header(header);
        self.regions.set_range(Kind::ActiveL1, l1_at..l1_at + l1_bytes);
        self.regions.set_range(Kind::RefcountTable, table_at..table_at + table_bytes);
        self.add_bitmaps();
        for at in l1.iter().filter_map(|entry| L1Entry(*entry).offset()) {
            self.regions.add(at, Kind::ActiveL2);
        }
        for at in table.iter().filter_map(|entry| RefcountTableEntry(*entry).offset()) {
            self.regions.add(at, Kind::RefcountBlock);
        }
        self.map.reset(l1_at, l1);
        self.refcounts.reset(table_at, table);
        self.frees.clear();
        self.reset_compressed();
        Ok(())
    }

    /// Where persistent bitmaps are. Those that somebody made void by a write may be anything by now.
    fn add_bitmaps(&self) {
        let header = self.header.borrow();
        if let Some(bitmaps) = header.bitmaps() {
            let at = bitmaps.directory_offset;
            self.regions.set_range(Kind::BitmapDirectory, at..at + bitmaps.directory_size);
        }
    }

    async fn read_table(&self, at: u64, bytes: u64) -> Result<Vec<u64>> {
        // The header's limits bound both tables.
        let bytes = self.read_file(at, usize::try_from(bytes).unwrap_or(0)).await?;
        let mut reader = Reader::new(&bytes);
        Ok(std::iter::from_fn(|| reader.u64()).collect())
    }

    /// Reads everything again after an operation on the image file, or after one that failed half
    /// way. Until this has worked no request goes by what is in memory.
    pub(super) async fn reread(&self) -> Result<()> {
        self.gate.set_stale(true);
        self.reload().await?;
        if matches!(self.condition.get(), Condition::Clean | Condition::Changed) {
            match self.make_writable().await {
                // What comes next is the first change again: to lazy refcounts, and to bitmaps.
                Ok(()) => self.condition.set(Condition::Clean),
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    drop(self.corrupt(&error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        self.gate.set_stale(false);
        Ok(())
    }

    /// Takes the image over: believes nothing that was read before, and makes it writable.
    pub(super) async fn activate(&self, only_if: Option<u64>) -> Result<()> {
        self.run(move |image| async move {
            let closed = image.gate.close().await;
            if image.condition.get() == Condition::Changed {
                // It is ours already, and the file has not everything yet.
                return Ok(());
            }
            image.reload().await?;
            if let Some(expected) = only_if {
                image.check_mark(expected)?;
            }
            if !image.read_only.get() {
                image.make_writable().await?;
                image.condition.set(Condition::Clean);
            }
            image.gate.set_stale(false);
            drop(closed);
            Ok(())
        })
        .await
    }

    fn check_mark(&self, expected: u64) -> Result<()> {
        let refuse = |text: String| Err(Error::new(ErrorKind::OwnershipUnknown, text));
        match self.mark() {
            Some(mark) if mark == expected => Ok(()),
            Some(_) => refuse(format!(
                "another process has written to {} since it was handed over",
                self.name()
            )),
            None => refuse(format!("{} keeps no generation mark", self.name())),
        }
    }

    /// The generation mark as it was read last; version 2 has no place for one.
    fn mark(&self) -> Option<u64> {
        let header = self.header.borrow();
        let is_v2 = header.geometry.version() == Version::V2;
        (!is_v2).then(|| header.extensions.generation.unwrap_or(0))
    }

    /// The generation mark as it is in the file now.
    pub(super) async fn generation(&self) -> Result<Option<u64>> {
        let header = Header::load(&self.file).await?;
        let is_v2 = header.geometry.version() == Version::V2;
        Ok((!is_v2).then(|| header.extensions.generation.unwrap_or(0)))
    }

    async fn make_writable(&self) -> Result<()> {
        let incompatible = self.header.borrow().incompatible;
        if incompatible.contains(Incompatible::CORRUPT) {
            let text = format!(
                "{}: Image is corrupt; cannot be opened read/write: repair it first",
                self.name()
            );
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        if incompatible.contains(Incompatible::DIRTY) {
            self.repair_refcounts().await?;
        }
        self.find_space().await
    }

    /// Finds out where there is room, and what must not be touched.
    pub(super) async fn find_space(&self) -> Result<()> {
        self.add_snapshots().await?;
        let end = self.find_end().await?;
        self.space.reset(end, self.file.len());
        Ok(())
    }

    /// Refcounts may be wrong: they are counted anew.
    async fn repair_refcounts(&self) -> Result<()> {
        self.gate.set_stale(true);
        recount(&self.file).await?;
        self.reload().await
    }

    /// Where the tables of snapshots are.
    async fn add_snapshots(&self) -> Result<()> {
        let header = self.header.borrow().clone();
        let wanted = [Kind::SnapshotTable, Kind::InactiveL1, Kind::InactiveL2];
        if header.snapshots.entries == 0 || !wanted.iter().any(|kind| self.regions.wants(*kind)) {
            return Ok(());
        }
        let table = load_snapshots(&self.file, &header).await?;
        let at = header.snapshots.offset;
        self.regions.set_range(Kind::SnapshotTable, at..at + table.bytes);
        for snapshot in &table.snapshots {
            let (at, bytes) = (snapshot.l1.offset, u64::from(snapshot.l1.entries) * 8);
            if bytes > MAX_L1_BYTES {
                let text = format!("the L1 table of snapshot '{}' is too large", snapshot.name);
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
            self.regions.add_range(Kind::InactiveL1, at..at.saturating_add(bytes));
            if self.regions.wants(Kind::InactiveL2) {
                let l1 = self.read_table(at, bytes).await?;
                for table in l1.iter().filter_map(|entry| L1Entry(*entry).offset()) {
                    self.regions.add(table, Kind::InactiveL2);
                }
            }
        }
        Ok(())
    }

    /// Number of the first cluster behind all that have references.
    async fn find_end(&self) -> Result<u64> {
        let geometry = self.geometry();
        let per_block = geometry.refcount_block_entries();
        let mut table = self.entries_of(&self.refcounts.table, Kind::RefcountTable)?;
        // No address reaches further: what is said of clusters behind that is nonsense.
        let most = (MAX_HOST_OFFSET >> geometry.cluster_bits()) + 1;
        table.truncate(usize::try_from(most.div_ceil(per_block)).unwrap_or(usize::MAX));
        let blocks = table.iter().enumerate().rev();
        let blocks =
            blocks.filter_map(|(i, entry)| Some((i, RefcountTableEntry(*entry).offset()?)));
        for (number, (index, at)) in blocks.enumerate() {
            let first = index as u64 * per_block;
            if number >= MAX_END_BLOCKS {
                // So many empty ones: nobody needs to know exactly.
                return Ok(most.min(first + per_block));
            }
            let block = self.read_file(at, geometry.cluster_len()).await?;
            let entries = usize::try_from(per_block).unwrap_or(0);
            let last = (0..entries).rev().find(|index| refcount(&block, *index, geometry) != 0);
            if let Some(last) = last {
                return Ok(most.min(first + last as u64 + 1));
            }
        }
        Ok(1)
    }

    /// Leaves the image at rest and gives it up.
    pub(super) async fn inactivate(&self) -> Result<()> {
        self.run(|image| async move {
            let closed = image.gate.close().await;
            match image.condition.get() {
                // What is stale is at rest in the file.
                _ if image.gate.is_stale() => {}
                Condition::Changed => image.come_to_rest().await?,
                Condition::Clean => image.settle_header().await?,
                Condition::Corrupt => image.come_to_a_halt().await,
                Condition::Inactive => {}
            }
            image.condition.set(Condition::Inactive);
            drop(closed);
            Ok(())
        })
        .await
    }

    /// Writes everything out and leaves the image as a program likes to find it; no request is under
    /// way.
    pub(super) async fn come_to_rest(&self) -> Result<()> {
        self.settle().await?;
        if self.has_lazy_refcounts() {
            let clean = |header: &mut Header| {
                header.incompatible = header.incompatible.with(Incompatible::DIRTY, false);
            };
            self.change_header(clean).await?;
        }
        self.trim_file().await
    }

    /// Writes everything out, refcounts of what was freed too.
    async fn settle(&self) -> Result<()> {
        loop {
            self.flush().await?;
            self.reaped().await;
            self.write_refcounts().await?;
            if self.frees.is_idle() && !self.map.is_dirty() && !self.refcounts.is_dirty() {
                return self.file.flush().await;
            }
        }
    }

    /// Gives back what the file grew by in advance and was not used.
    async fn trim_file(&self) -> Result<()> {
        let end = self.space.end() << self.geometry().cluster_bits();
        container::cut(&self.file, end.max(self.space.least_len())).await
    }
}
