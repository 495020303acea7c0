//! Requests that a driver cannot take as they are: bounced, split, or read, modified and written.

use std::ops::Range;

use super::BlockNode;
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::{ErrorKind, Result};
use crate::executor::Carried;
use crate::open::DiscardMode;
use crate::ranges::RangeGuard;

/// Largest bounce buffer and largest piece of explicit zeroes, bytes.
const BOUNCE_LIMIT: u64 = 1 << 20;

/// One piece of a split request: what is asked for and the aligned range around it.
struct Piece {
    wanted: Range<u64>,
    aligned: Range<u64>,
}

impl Piece {
    fn is_aligned(&self) -> bool {
        self.wanted == self.aligned
    }
}

impl BlockNode {
    /// Whether the driver can take this request as it is.
    pub(super) fn is_simple(&self, at: u64, buf: &IoBuf) -> bool {
        let limits = &self.0.limits;
        let len = buf.len() as u64;
        (at | len) & (u64::from(limits.request_alignment) - 1) == 0
            && len <= limits.max_transfer
            && (limits.memory_alignment == 1 || buf.is_aligned(limits.memory_alignment as usize))
    }

    /// Cuts `range` into pieces that fit the driver when rounded out to its alignment.
    fn pieces(&self, range: Range<u64>, longest: u64) -> impl Iterator<Item = Piece> + use<> {
        let alignment = u64::from(self.0.limits.request_alignment);
        let longest = (longest & !(alignment - 1)).max(alignment);
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let end = range.end.min((at & !(alignment - 1)).saturating_add(longest));
            let piece = Piece { wanted: at..end, aligned: touched(&(at..end), alignment) };
            at = end;
            Some(piece)
        })
    }

    pub(super) async fn read_unaligned(&self, at: u64, into: IoBuf) -> Result<()> {
        let range = at..at + into.len() as u64;
        for piece in self.pieces(range, self.0.limits.max_transfer) {
            let part = into.slice(span(&piece.wanted, at));
            if piece.is_aligned() && self.is_simple(piece.wanted.start, &part) {
                self.0.driver.read(piece.wanted.start, part).await?;
                continue;
            }
            for piece in self.pieces(piece.wanted, BOUNCE_LIMIT.min(self.0.limits.max_transfer)) {
                let bounce = IoBuf::alloc(length(&piece.aligned));
                self.0.driver.read(piece.aligned.start, bounce.clone()).await?;
                let inner = bounce.slice(span(&piece.wanted, piece.aligned.start));
                into.slice(span(&piece.wanted, at)).copy_from_buf(&inner);
            }
        }
        Ok(())
    }

    /// A write that is not simple, or to a node on which somebody else's write may not be.
    pub(super) async fn write_aligned(
        &self,
        at: u64,
        from: IoBuf,
        flags: WriteFlags,
    ) -> Result<()> {
        let range = at..at + from.len() as u64;
        for piece in self.pieces(range, self.0.limits.max_transfer) {
            let part = from.slice(span(&piece.wanted, at));
            if piece.is_aligned() && self.is_simple(piece.wanted.start, &part) {
                let guard = self.lock_write(piece.aligned, false).await;
                self.0.driver.write(piece.wanted.start, part, flags).await?;
                drop(guard);
                continue;
            }
            for piece in self.pieces(piece.wanted, BOUNCE_LIMIT.min(self.0.limits.max_transfer)) {
                let part = from.slice(span(&piece.wanted, at));
                self.write_bounced(piece, part, flags).await?;
            }
        }
        Ok(())
    }

    /// Writes one piece from a buffer of our own, with what surrounds it on the disk.
    async fn write_bounced(&self, piece: Piece, from: IoBuf, flags: WriteFlags) -> Result<()> {
        let alignment = u64::from(self.0.limits.request_alignment);
        let Piece { wanted, aligned } = piece;
        let bounce = IoBuf::alloc(length(&aligned));
        // Nobody else may write to the blocks that we read and write back.
        let guard = self.lock_write(aligned.clone(), wanted != aligned).await;
        let (head, tail) = (wanted.start != aligned.start, wanted.end != aligned.end);
        if head {
            let block = aligned.start..aligned.start + alignment;
            self.read_block(&bounce, &aligned, block).await?;
        }
        let last = aligned.end - alignment;
        if tail && !(head && last == aligned.start) {
            self.read_block(&bounce, &aligned, last..aligned.end).await?;
        }
        bounce.slice(span(&wanted, aligned.start)).copy_from_buf(&from);
        let node = self.clone();
        // Given up, it would put back what was around it over what others write there meanwhile. But only the
        // write goes on: what was given up before that must not begin to write when the node is no longer ours.
        Carried::new(&self.0.executor, async move {
            let result = node.0.driver.write(aligned.start, bounce, flags).await;
            drop(guard);
            result
        })
        .await
    }

    async fn read_block(&self, into: &IoBuf, whole: &Range<u64>, block: Range<u64>) -> Result<()> {
        self.0.driver.read(block.start, into.slice(span(&block, whole.start))).await
    }

    /// Keeps others off the blocks that `range` touches.
    pub(super) async fn lock_blocks(&self, range: Range<u64>) -> Option<RangeGuard> {
        let alignment = u64::from(self.0.limits.request_alignment);
        self.lock_write(touched(&range, alignment), true).await
    }

    /// The blocks that lie wholly inside `range`, if any does.
    fn whole_blocks(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let alignment = u64::from(self.0.limits.request_alignment);
        let (start, end) = (range.start.next_multiple_of(alignment), range.end & !(alignment - 1));
        (start < end).then_some(start..end)
    }

    async fn lock_write(&self, range: Range<u64>, exclusive: bool) -> Option<RangeGuard> {
        if self.0.limits.request_alignment == 1 {
            return None;
        }
        Some(self.0.writes.lock(range, exclusive).await)
    }

    /// Writes zeroes by the driver where it can, by hand where it cannot.
    pub(super) async fn zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        let flags = WriteFlags {
            may_unmap: flags.may_unmap && self.0.options.discard == DiscardMode::Unmap,
            ..flags
        };
        for piece in self.pieces(range, self.0.limits.max_zeroes) {
            // The whole blocks inside, and what is left of it at both ends.
            let Some(Range { start, end }) = self.whole_blocks(&piece.wanted) else {
                self.write_zero_bytes(piece.wanted, flags).await?;
                continue;
            };
            self.write_zero_bytes(piece.wanted.start..start, flags).await?;
            let guard = self.lock_write(start..end, false).await;
            let result = self.0.driver.write_zeroes(start..end, flags).await;
            drop(guard);
            match result {
                Err(error) if error.kind() == ErrorKind::Unsupported && !flags.no_fallback => {
                    self.write_zero_bytes(start..end, flags).await?;
                }
                other => other?,
            }
            self.write_zero_bytes(end..piece.wanted.end, flags).await?;
        }
        Ok(())
    }

    async fn write_zero_bytes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let flags = WriteFlags { fua: flags.fua, opaque: flags.opaque, ..WriteFlags::NONE };
        let longest = BOUNCE_LIMIT.min(self.0.limits.max_transfer);
        // A piece has a whole block at least, however long that is.
        let most = longest.max(u64::from(self.0.limits.request_alignment));
        let zeroes = IoBuf::alloc(length(&(0..(range.end - range.start).min(most))));
        for piece in self.pieces(range, longest) {
            let part = zeroes.slice(0..length(&piece.wanted));
            self.write_aligned(piece.wanted.start, part, flags).await?;
        }
        Ok(())
    }

    /// Discards the whole blocks inside `range`; what is left at the ends keeps its content.
    pub(super) async fn discard_aligned(&self, range: Range<u64>) -> Result<()> {
        for piece in self.pieces(range, self.0.limits.max_zeroes) {
            let Some(blocks) = self.whole_blocks(&piece.wanted) else { continue };
            let guard = self.lock_write(blocks.clone(), false).await;
            let result = self.0.driver.discard(blocks).await;
            drop(guard);
            match result {
                Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(()),
                other => other?,
            }
        }
        Ok(())
    }
}

/// The blocks that `range` touches.
fn touched(range: &Range<u64>, alignment: u64) -> Range<u64> {
    range.start & !(alignment - 1)..range.end.next_multiple_of(alignment)
}

/// Where `range` lies in a buffer that starts at `base`.
fn span(range: &Range<u64>, base: u64) -> Range<usize> {
    let start = length(&(base..range.start));
    start..start + length(range)
}

/// Length of a range inside one buffer, which therefore fits.
#[expect(clippy::cast_possible_truncation, reason = "the range lies in a buffer of this process")]
fn length(range: &Range<u64>) -> usize {
    (range.end - range.start) as usize
}

#[cfg(test)]
#[path = "align_tests.rs"]
mod tests;
