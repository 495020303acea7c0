//! Where in its file a qcow2 image keeps a byte of the disk.

use ferry_block::format::qcow2::entry::{Cluster, L1Entry, L2Entry};
use ferry_block::format::qcow2::header::Header;
use ferry_block::format::qcow2::referenced_clusters;
use ferry_block::{Edge, IoBuf};

use crate::failure::Result;
use crate::session::disk_size;

/// The tables of one image, as far as they were needed.
pub(crate) struct Places {
    file: Edge,
    header: Header,
    l1: Vec<u8>,
    hollow: bool,
    /// The L2 table that was looked at last, and its index.
    l2: Option<(u64, Vec<u8>)>,
}

impl Places {
    /// The tables of the disk that `header` describes, in the image in `file`.
    pub(crate) async fn load(file: Edge, header: Header) -> Result<Places> {
        let l1 = read(&file, header.l1.offset, u64::from(header.l1.entries) * 8).await?;
        let hollow = is_hollow(&file, &header).await?;
        Ok(Places { file, header, l1, hollow, l2: None })
    }

    /// Whether much of what the image has given out are holes in the file, as after a preallocation
    /// of the tables alone: only then does `qemu-img` look for holes in data, and so do we.
    pub(crate) fn is_hollow(&self) -> bool {
        self.hollow
    }

    /// Where the byte `at` is, if it is in a cluster of the file as it is, and up to where what was
    /// found out goes.
    pub(crate) async fn find(&mut self, at: u64) -> Result<(Option<u64>, u64)> {
        let geometry = self.header.geometry;
        let index = geometry.l1_index(at);
        let entry = usize::try_from(index * 8).ok().and_then(|start| {
            let bytes = self.l1.get(start..start.checked_add(8)?)?;
            Some(L1Entry(u64::from_be_bytes(bytes.try_into().ok()?)))
        });
        let Some(table) = entry.and_then(L1Entry::offset) else {
            return Ok((None, (index + 1).saturating_mul(geometry.l2_span())));
        };
        if self.l2.as_ref().is_none_or(|(loaded, _)| *loaded != index) {
            let bytes = read(&self.file, table, geometry.cluster_size()).await?;
            self.l2 = Some((index, bytes));
        }
        let end = geometry.cluster_start(at).saturating_add(geometry.cluster_size());
        let Some((_, l2)) = &self.l2 else { return Ok((None, end)) };
        let cluster = L2Entry::get(l2, geometry.l2_index(at), geometry).decode(geometry)?;
        let host = match cluster {
            Cluster::Standard { host, .. } => host,
            Cluster::Compressed(_) => None,
        };
        Ok((host.map(|host| host + geometry.within_cluster(at)), end))
    }
}

async fn is_hollow(file: &Edge, header: &Header) -> Result<bool> {
    let Some(occupied) = disk_size(&file.node()) else { return Ok(false) };
    let clusters = occupied / header.geometry.cluster_size();
    // The threshold is QEMU's.
    let enough = (clusters.saturating_mul(10) / 9).max(clusters + 2);
    Ok(referenced_clusters(file, header, enough).await? >= enough)
}

async fn read(file: &Edge, at: u64, len: u64) -> Result<Vec<u8>> {
    let buf = IoBuf::alloc(usize::try_from(len).unwrap_or(usize::MAX));
    file.read(at, buf.clone()).await?;
    Ok(buf.to_vec())
}
