//! The records that a Linux guest appends, flushes and acknowledges, and their examination afterwards.

use anyhow::{Result, bail};

use crate::pattern::mix;

/// Bytes of a record: one sector.
pub const RECORD: usize = 512;
const MAGIC: &[u8; 8] = b"ferryrec";
const BODY: usize = RECORD - 4;

/// Record number `sequence` (from 1).
pub fn record(sequence: u64) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    for (index, word) in bytes[16..BODY].chunks_mut(8).enumerate() {
        let value = mix(sequence.wrapping_mul(1000) + index as u64 + 1).to_le_bytes();
        word.copy_from_slice(&value[..word.len()]);
    }
    let sum = crc32fast::hash(&bytes[..BODY]);
    bytes[BODY..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Counts the whole records at the start of a journal. The record behind the last acknowledged one may be
/// torn or absent; none before it may.
///
/// # Errors
///
/// When an acknowledged record is missing or damaged.
pub fn verify(journal: &[u8], acknowledged: u64) -> Result<u64> {
    let mut whole = 0;
    for (found, sequence) in journal.chunks_exact(RECORD).zip(1..) {
        if found != record(sequence) {
            break;
        }
        whole = sequence;
    }
    if whole < acknowledged {
        bail!("record {} is lost or damaged; {acknowledged} were acknowledged", whole + 1);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(records: u64) -> Vec<u8> {
        (1..=records).flat_map(record).collect()
    }

    #[test]
    fn whole_journal_counts() {
        assert_eq!(verify(&journal(5), 5).unwrap(), 5);
        assert_eq!(verify(&journal(6), 5).unwrap(), 6);
    }

    #[test]
    fn lost_and_damaged_records_are_named() {
        assert!(verify(&journal(4), 5).unwrap_err().to_string().contains("record 5"));
        let mut damaged = journal(5);
        damaged[2 * RECORD + 100] ^= 1;
        assert!(verify(&damaged, 5).unwrap_err().to_string().contains("record 3"));
    }
}
