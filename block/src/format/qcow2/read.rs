//! Reads. Nothing here changes anything, so a read may be given up at any time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::image::{Image, read_clamped};
use super::map::{Mapping, What};
use crate::buf::IoBuf;
use crate::driver::{Extent, ExtentKind, LocalBoxFuture};
use crate::error::Result;

/// Most pieces of one request that are under way at once.
const MAX_PIECES: usize = 64;

impl Image {
    /// Fills `into` with the bytes of the disk from `at`.
    pub(super) async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        let pass = match self.gate.try_enter() {
            Some(pass) => pass,
            None => Box::pin(self.enter()).await?,
        };
        let len = into.len() as u64;
        self.check_end(at + len)?;
        let mapping = match self.lookup(at, len)? {
            Some(mapping) => mapping,
            None => self.find(at, len).await?,
        };
        let result = match mapping {
            // By far the commonest: straight to the file, with the buffer as it came.
            Mapping { what: What::Data { host, .. }, len: all } if all == len => {
                read_clamped(self.data_edge(), host, into).await
            }
            _ => Box::pin(self.read_pieces(at, into)).await,
        };
        drop(pass);
        result
    }

    /// Reads piece by piece, many of them at once.
    pub(super) async fn read_pieces(&self, at: u64, into: IoBuf) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            let mut pieces: Vec<LocalBoxFuture<'_, Result<()>>> = Vec::new();
            while done < into.len() && pieces.len() < MAX_PIECES {
                let from = at + done as u64;
                let mapping = self.find(from, (into.len() - done) as u64).await?;
                let len = usize::try_from(mapping.len).unwrap_or(usize::MAX);
                let part = into.slice(done..done + len);
                pieces.push(Box::pin(self.read_piece(from, part, mapping.what)));
                done += len;
            }
            all(pieces).await?;
        }
        Ok(())
    }

    async fn read_piece(&self, at: u64, into: IoBuf, what: What) -> Result<()> {
        match what {
            What::Data { host, .. } => read_clamped(self.data_edge(), host, into).await,
            What::Zero => {
                into.fill_zero();
                Ok(())
            }
            What::Absent => match self.backing() {
                Some(backing) => read_clamped(&backing, at, into).await,
                None => {
                    into.fill_zero();
                    Ok(())
                }
            },
            What::Compressed(data) => {
                let cluster = self.decompress(data).await?;
                let geometry = self.geometry();
                let start = usize::try_from(geometry.within_cluster(at)).unwrap_or(usize::MAX);
                into.copy_from(&cluster[start..start + into.len()]);
                Ok(())
            }
        }
    }

    /// What the bytes at the start of a range are.
    pub(super) async fn map_extent(&self, at: u64, len: u64) -> Result<Extent> {
        let pass = self.enter().await?;
        let mut kind = None;
        let mut done = 0;
        while done < len {
            let Mapping { what, len: more } = self.find(at + done, len - done).await?;
            let next = match what {
                What::Data { .. } | What::Compressed(_) => ExtentKind::Data,
                What::Zero => ExtentKind::Zero,
                What::Absent => ExtentKind::Absent,
            };
            if *kind.get_or_insert(next) != next {
                break;
            }
            done += more;
        }
        drop(pass);
        Ok(Extent { kind: kind.unwrap_or(ExtentKind::Absent), len: done })
    }

    /// Whether these bytes are known to read as zeroes where this image has nothing: there is
    /// nothing below either.
    pub(super) fn is_zero_below(&self, at: u64) -> bool {
        self.backing.borrow().as_ref().is_none_or(|backing| backing.len() <= at)
    }
}

/// Waits for all; the first error, once all have ended.
pub(super) async fn all(mut pieces: Vec<LocalBoxFuture<'_, Result<()>>>) -> Result<()> {
    if pieces.len() == 1
        && let Some(only) = pieces.pop()
    {
        return only.await;
    }
    All { pieces, result: Ok(()) }.await
}

struct All<'a> {
    pieces: Vec<LocalBoxFuture<'a, Result<()>>>,
    result: Result<()>,
}

impl Future for All<'_> {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = &mut *self;
        let result = &mut this.result;
        this.pieces.retain_mut(|piece| match piece.as_mut().poll(cx) {
            Poll::Pending => true,
            Poll::Ready(Ok(())) => false,
            Poll::Ready(Err(error)) => {
                *result = Err(error);
                false
            }
        });
        if this.pieces.is_empty() {
            Poll::Ready(std::mem::replace(&mut this.result, Ok(())))
        } else {
            Poll::Pending
        }
    }
}
