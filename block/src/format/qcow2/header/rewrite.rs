//! Writing a header over another one so that a crash leaves one of the two.
//!
//! Only a sector survives a crash as a whole, and a header may have more: names, mostly. In the one that this
//! program writes everything that changes while an image is in use is in the first sector. But the header that
//! somebody else has written has another order, and a name may change. So first is written what the old header
//! does not use, and then the first sector, which is the change; or the other way round, if the new header
//! does not use the rest. If both need it there is a header in between that fits into a sector, for it
//! lacks the names of the features. Only for names of several hundred bytes there is none.

use super::super::container::{read_at, write_at};
use super::extension;
use super::fields::Fields;
use super::{Geometry, Header, Incompatible};
use crate::edge::Edge;
use crate::error::Result;

/// Bytes that survive a crash as a whole.
const SECTOR: usize = 512;

/// A piece of the header's cluster, and where it goes.
type Piece = (usize, Vec<u8>);

impl Header {
    /// Makes this the header of the image in `file`, durably, with all that was written before.
    ///
    /// # Errors
    /// It does not fit into a cluster, or a read, a write or a flush failed.
    pub(in super::super) async fn store(&self, file: &Edge) -> Result<()> {
        self.store_as(&self.serialise()?, file).await
    }

    /// The same for who has it [serialised](Header::serialise) already.
    ///
    /// # Errors
    /// As [`store`](Header::store).
    pub(in super::super) async fn store_as(&self, new: &[u8], file: &Edge) -> Result<()> {
        let old = read_at(file, 0, new.len()).await?;
        let pieces = self.pieces(&old, new)?;
        file.flush().await?;
        for (at, bytes) in pieces {
            write_at(file, at as u64, &bytes).await?;
            file.flush().await?;
        }
        Ok(())
    }

    /// What is to be written over the header in `old`, one after the other, each durable before the next.
    fn pieces(&self, old: &[u8], new: &[u8]) -> Result<Vec<Piece>> {
        let (old_end, new_end) = (end(old), end(new));
        let whole = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        // No more sectors than say anything.
        let all = whole(old).max(whole(new)).next_multiple_of(SECTOR).clamp(SECTOR, new.len());
        let first = (0, new[..SECTOR].to_vec());
        let rest = (SECTOR, new[SECTOR..all].to_vec());
        if old.get(SECTOR..all) == Some(&new[SECTOR..all]) {
            return Ok(vec![first]);
        }
        if old_end.is_some_and(|end| end <= SECTOR) {
            return Ok(vec![rest, first]);
        }
        if new_end.is_some_and(|end| end <= SECTOR) {
            return Ok(vec![first, rest]);
        }
        let between = self.serialise_with(false)?;
        if old_end.is_some() && end(&between).is_some_and(|end| end <= SECTOR) {
            return Ok(vec![(0, between[..SECTOR].to_vec()), rest, first]);
        }
        Ok(vec![(0, new[..all].to_vec())])
    }
}

/// The end of what the header in `cluster` uses; `None` if it is none that can be read.
fn end(cluster: &[u8]) -> Option<usize> {
    let fields = Fields::parse(cluster).ok()?;
    let any = Incompatible::NONE;
    let geometry =
        Geometry::new(fields.version, fields.cluster_bits, fields.refcount_order, any).ok()?;
    let area_end = fields.extensions_end(geometry.cluster_size()).ok()?.min(cluster.len());
    let used = extension::used(cluster.get(fields.header_length..area_end)?);
    Some((fields.header_length + used).max(fields.name_end()))
}

#[cfg(test)]
#[path = "../rewrite_tests.rs"]
mod tests;
