//! Giving back the tables of a disk that has become shorter, and the end of the file behind them.
//!
//! The clusters of the guest are freed one by one by whoever shortens the disk, as for a discard.
//! What is left then is what described them: L2 tables without entries, refcount blocks that say of
//! nothing but themselves that it is in use.

use super::at_rest::AtRest;
use super::container::write_words;
use super::snapshot::{load_l1, share};
use crate::edge::Edge;
use crate::error::Result;

/// Frees what hangs on the entries of the active L1 table from number `keep` on, and every refcount
/// block that is not needed any more; then cuts the file off behind its last cluster in use.
pub(super) async fn tighten(file: &Edge, keep: u64) -> Result<()> {
    let mut image = AtRest::open(file).await?;
    let active = image.header.l1;
    let mut l1 = load_l1(&image, active).await?;
    let keep = usize::try_from(keep).unwrap_or(usize::MAX).min(l1.len());
    let gone = l1.split_off(keep);
    if gone.iter().any(|entry| *entry != 0) {
        write_words(file, active.offset + keep as u64 * 8, &vec![0; gone.len()]).await?;
        file.flush().await?;
        // No crash brings these references back.
        share(&mut image, &gone, false).await?;
        image.write_refcounts().await?;
    }
    image.drop_empty_blocks().await?;
    image.trim_file().await
}

#[cfg(test)]
#[path = "tighten_tests.rs"]
mod tests;
