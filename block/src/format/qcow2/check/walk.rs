//! Counting the references to every cluster: header, tables, snapshots, bitmaps, guest data.
//!
//! A table that many entries point to is read once and counts as often as it is pointed to. So the
//! time a check takes is bounded by what the file holds, whatever its entries say.

use std::collections::BTreeMap;

use super::super::bitmap::{BitsAt, load_directory};
use super::super::container::{read_at, read_words};
use super::super::entry::{Cluster, L1Entry, L2Entry};
use super::super::geometry::Geometry;
use super::super::header::{Header, MAX_L1_BYTES, Table};
use super::super::snapshot::load_cut;
use super::counts::Counts;
use super::report::CheckReport;
use super::{misplaced, snapshots};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

/// Most L2 tables that are kept track of: 32 TiB of disk at 64 KiB clusters for each 64 K of them.
const MAX_L2_TABLES: usize = 1 << 23;

/// A count of references under way.
pub(super) struct Walk<'a> {
    pub(super) file: &'a Edge,
    pub(super) header: &'a Header,
    pub(super) geometry: Geometry,
    pub(super) file_len: u64,
    pub(super) counts: Counts,
    pub(super) report: CheckReport,
    /// L2 tables with entries that [`super::misplaced`] is for, and how often they are used.
    pub(super) misplaced: Vec<(u64, u64)>,
    /// What is wrong with snapshots that [`snapshots::complete`] is for.
    pub(super) snapshot_faults: Vec<String>,
    l1_tables: BTreeMap<(u64, u32), Uses>,
    l2_tables: BTreeMap<u64, Uses>,
}

/// Who points to a table.
#[derive(Clone, Copy, Default)]
struct Uses {
    times: u64,
    /// The running disk does, not only snapshots.
    active: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(file: &'a Edge, header: &'a Header) -> Walk<'a> {
        let geometry = header.geometry;
        let report = CheckReport {
            total_clusters: geometry.clusters_for(header.size),
            ..CheckReport::default()
        };
        Walk {
            file,
            header,
            geometry,
            file_len: file.len(),
            counts: Counts::default(),
            report,
            misplaced: Vec::new(),
            snapshot_faults: Vec::new(),
            l1_tables: BTreeMap::new(),
            l2_tables: BTreeMap::new(),
        }
    }

    /// Counts everything but the refcount structures.
    pub(super) async fn references(&mut self) -> Result<()> {
        self.count(0, self.geometry.cluster_size(), 1)?;
        self.add_l1("the active L1 table", self.header.l1, true);
        self.snapshots().await?;
        self.bitmaps().await?;
        let l1_tables = std::mem::take(&mut self.l1_tables);
        let in_all: u64 = l1_tables.keys().map(|(_, entries)| u64::from(*entries) * 8).sum();
        if in_all > self.file_len.saturating_add(MAX_L1_BYTES) {
            let text = "the L1 tables together are longer than the file: not all are checked";
            self.report.fail(text);
        }
        let mut budget = self.file_len.saturating_add(MAX_L1_BYTES);
        for ((offset, entries), uses) in l1_tables {
            let bytes = u64::from(entries) * 8;
            if bytes > budget {
                break;
            }
            budget -= bytes;
            self.l1(Table { offset, entries }, uses).await?;
        }
        for (offset, uses) in std::mem::take(&mut self.l2_tables) {
            self.l2(offset, uses).await?;
        }
        Ok(())
    }

    /// `times` references to all clusters of a stretch of the file.
    pub(super) fn count(&mut self, offset: u64, bytes: u64, times: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // The last cluster of a file may be cut off.
        let most = self.file_len.saturating_add(self.geometry.cluster_size());
        let Some(end) = offset.checked_add(bytes).filter(|&end| end < most) else {
            self.report.corrupt(format!(
                "counting reference for region exceeding the end of the file by one cluster or \
                 more: offset {offset:#x} size {bytes:#x}"
            ));
            return Ok(());
        };
        for cluster in self.geometry.cluster_index(offset)..=self.geometry.cluster_index(end - 1) {
            self.counts.add(cluster, times)?;
        }
        Ok(())
    }

    fn add_l1(&mut self, whose: &str, table: Table, active: bool) {
        if table.entries == 0 {
            return;
        }
        if !self.geometry.is_aligned(table.offset) {
            self.report.corrupt(format!(
                "{whose}: l1_offset={:#x}: L1 table is not cluster aligned",
                table.offset
            ));
            return;
        }
        if u64::from(table.entries) * 8 > MAX_L1_BYTES {
            self.report
                .corrupt(format!("{whose}: l1_size={}: L1 table is too large", table.entries));
            return;
        }
        let uses = self.l1_tables.entry((table.offset, table.entries)).or_default();
        uses.times += 1;
        uses.active |= active;
    }

    async fn snapshots(&mut self) -> Result<()> {
        let table = match load_cut(self.file, self.header).await {
            Ok(table) => table,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.report.fail(format!("failed to read the snapshot table: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.snapshot_faults = snapshots::faults(&table, self.geometry.version());
        for fault in &self.snapshot_faults {
            self.report.corrupt(fault);
        }
        for snapshot in &table.snapshots {
            let whose = format!("snapshot {} ({})", snapshot.id, snapshot.name);
            self.add_l1(&whose, snapshot.l1, false);
        }
        self.count(self.header.snapshots.offset, table.bytes, 1)
    }

    async fn bitmaps(&mut self) -> Result<()> {
        let Some(extension) = self.header.bitmaps() else { return Ok(()) };
        self.count(extension.directory_offset, extension.directory_size, 1)?;
        let directory = match load_directory(self.file, extension, self.geometry).await {
            Ok(directory) => directory,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                // What is not known to be theirs would be freed as nobody's.
                self.report.fail(format!("failed to read the bitmap directory: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut budget = self.file_len;
        for bitmap in directory {
            let bytes = u64::from(bitmap.table.entries) * 8;
            self.count(bitmap.table.offset, bytes, 1)?;
            let there = self.file_len.saturating_sub(bitmap.table.offset);
            if bytes > there.min(budget) {
                continue;
            }
            budget -= bytes;
            let entries = bitmap.table.entries as usize;
            for entry in read_words(self.file, bitmap.table.offset, entries).await? {
                match BitsAt::decode(entry, self.geometry) {
                    Ok(BitsAt::Cluster(at)) => self.count(at, self.geometry.cluster_size(), 1)?,
                    Ok(BitsAt::Zeroes | BitsAt::Ones) => {}
                    Err(error) => self.report.corrupt(format!("'{}': {error}", bitmap.name)),
                }
            }
        }
        Ok(())
    }

    async fn l1(&mut self, table: Table, uses: Uses) -> Result<()> {
        let bytes = u64::from(table.entries) * 8;
        self.count(table.offset, bytes, uses.times)?;
        // What is behind the end of the file is zero.
        let there = self.file_len.saturating_sub(table.offset).div_ceil(8).min(bytes / 8);
        let entries = usize::try_from(there).unwrap_or(0);
        for entry in read_words(self.file, table.offset, entries).await? {
            let entry = L1Entry(entry);
            if entry.0 == 0 {
                continue;
            }
            if entry.reserved() != 0 {
                self.report
                    .corrupt(format!("found L1 entry with reserved bits set: {:#x}", entry.0));
            }
            let Some(l2) = entry.offset() else { continue };
            self.count(l2, self.geometry.cluster_size(), uses.times)?;
            if !self.geometry.is_aligned(l2) {
                let text = "Table is not cluster aligned; L1 entry corrupted";
                self.report.corrupt(format!("l2_offset={l2:#x}: {text}"));
            } else if l2 < self.file_len {
                if self.l2_tables.len() >= MAX_L2_TABLES {
                    let context = "the image has too many L2 tables to check";
                    return Err(Error::new(ErrorKind::NoSpace, context));
                }
                let seen = self.l2_tables.entry(l2).or_default();
                seen.times = seen.times.saturating_add(uses.times);
                seen.active |= uses.active;
            }
        }
        Ok(())
    }

    async fn l2(&mut self, offset: u64, uses: Uses) -> Result<()> {
        let geometry = self.geometry;
        let table = read_at(self.file, offset, geometry.cluster_len()).await?;
        let mut next = None;
        for index in 0..usize::try_from(geometry.l2_entries()).unwrap_or(0) {
            let entry = L2Entry::get(&table, index, geometry);
            if entry == L2Entry::default() {
                continue;
            }
            if entry.reserved(geometry) != 0 {
                self.report.corrupt(format!(
                    "found l2 entry with reserved bits set: {:#x}",
                    entry.descriptor
                ));
            }
            if entry.is_compressed() && (entry.is_copied() || entry.bitmap != 0) {
                let text = "compressed cluster with the copied flag or a subcluster bitmap";
                self.report.corrupt(format!("{text}: L2 entry {:#x}", entry.descriptor));
            }
            let cluster = match entry.decode(geometry) {
                Ok(cluster) => cluster,
                Err(error) => {
                    if entry.is_misplaced_reserve(geometry) {
                        self.report.corrupt(misplaced::text(entry));
                        self.misplaced.push((offset, uses.times));
                        self.misplaced.dedup();
                    } else {
                        self.report.corrupt(error.to_string());
                    }
                    // Whatever it is meant to be, nobody else may have those clusters.
                    if let Some(host) = entry.host_bits(geometry) {
                        self.count(host, geometry.cluster_size(), uses.times)?;
                    }
                    continue;
                }
            };
            self.data(cluster, uses, &mut next)?;
        }
        Ok(())
    }

    /// One guest cluster; `next` is where it would be if it followed the one before.
    fn data(&mut self, cluster: Cluster, uses: Uses, next: &mut Option<u64>) -> Result<()> {
        match cluster {
            Cluster::Compressed(data) => {
                if uses.active {
                    self.report.allocated_clusters += 1;
                    self.report.compressed_clusters += 1;
                    // Compressed clusters are fragmented by their nature.
                    self.report.fragmented_clusters += 1;
                }
                self.count(data.offset, data.len, uses.times)
            }
            Cluster::Standard { host: None, .. } => Ok(()),
            Cluster::Standard { host: Some(host), .. } => {
                if uses.active {
                    self.report.allocated_clusters += 1;
                    if next.is_some_and(|next| next != host) {
                        self.report.fragmented_clusters += 1;
                    }
                    *next = host.checked_add(self.geometry.cluster_size());
                }
                if self.geometry.has_external_data() {
                    return Ok(());
                }
                self.count(host, self.geometry.cluster_size(), uses.times)
            }
        }
    }
}
