//! How often each cluster of the file is referenced, in memory that follows what is referenced.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};

/// Clusters in one piece of memory.
const CHUNK: u64 = 4096;
/// Stands for a count that is too large for a byte and kept apart.
const MANY: u8 = u8::MAX;
/// Most memory for counts, in bytes: enough for 64 TiB of 64 KiB clusters.
const MEMORY: usize = 1 << 30;

/// A count for each cluster. One byte serves most clusters, and pieces without references take no
/// memory: a sparse file of enormous length costs nothing.
#[derive(Default)]
pub(super) struct Counts {
    chunks: BTreeMap<u64, Box<[u8]>>,
    many: BTreeMap<u64, u64>,
}

impl Counts {
    /// Counts `times` more references to `cluster`; answers how many there are now.
    pub(super) fn add(&mut self, cluster: u64, times: u64) -> Result<u64> {
        let full = self.chunks.len().saturating_mul(4096) + self.many.len().saturating_mul(64);
        if full > MEMORY {
            let context = "checking this image would need more than 1 GiB of memory";
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        let new = self.get(cluster).saturating_add(times);
        let chunk = self.chunks.entry(cluster / CHUNK);
        let chunk = chunk.or_insert_with(|| vec![0; 4096].into_boxed_slice());
        let small = u8::try_from(new).unwrap_or(MANY);
        chunk[place(cluster)] = small;
        if small == MANY {
            self.many.insert(cluster, new);
        }
        Ok(new)
    }

    /// References to `cluster`.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let Some(chunk) = self.chunks.get(&(cluster / CHUNK)) else { return 0 };
        match chunk[place(cluster)] {
            MANY => self.many.get(&cluster).copied().unwrap_or(0),
            small => small.into(),
        }
    }

    /// The clusters of `range` that are referenced, in order.
    pub(super) fn used(&self, range: Range<u64>) -> impl Iterator<Item = u64> {
        let chunks = range.start / CHUNK..range.end.div_ceil(CHUNK).max(range.start / CHUNK);
        self.chunks
            .range(chunks)
            .flat_map(|(&number, chunk)| {
                let used = chunk.iter().enumerate().filter(|(_, count)| **count != 0);
                used.map(move |(index, _)| number * CHUNK + index as u64)
            })
            .filter(move |cluster| range.contains(cluster))
    }

    /// One past the last cluster that is referenced.
    pub(super) fn end(&self) -> u64 {
        let Some((number, chunk)) = self.chunks.last_key_value() else { return 0 };
        let last = chunk.iter().rposition(|&count| count != 0);
        last.map_or(0, |index| number * CHUNK + index as u64 + 1)
    }
}

fn place(cluster: u64) -> usize {
    usize::try_from(cluster % CHUNK).unwrap_or(0)
}
