//! Compressed clusters: reading them, and writing whole clusters compressed.
//!
//! Compressed data starts anywhere in the file, so several clusters share a host cluster; each
//! holds one reference to every host cluster that it touches. It is never changed: a write to the
//! guest cluster gives it a place of its own.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};

use super::entry::{Cluster, Compressed, L2Entry};
use super::frees::Why;
use super::gate::Pass;
use super::header::Compression;
use super::image::Image;
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::{Error, ErrorKind, Result};
use crate::ranges::RangeLocks;

/// The window of QEMU's inflate, as a power of two: no match may reach further back.
const WINDOW_BITS: u8 = 12;
/// Largest window that a zstd frame may ask for, as a power of two: memory for a cluster, not more.
const ZSTD_WINDOW_BITS: u32 = 22;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;
/// Clusters that are kept decompressed.
const KEPT: usize = 4;
/// Clusters of this many bytes or more are worth the way to another thread.
const OFFLOAD: usize = 16 << 10;

/// Decompressed clusters, and the place where compressed ones go.
#[derive(Default)]
pub(super) struct Decompressed {
    /// By the place of the compressed data, the one used last at the end.
    kept: RefCell<VecDeque<(u64, Rc<Vec<u8>>)>>,
    loading: RangeLocks,
    /// Behind the compressed data that was written last, in a cluster with room left.
    open: Cell<Option<u64>>,
    /// Held while that place, or the references to its cluster, are changed.
    packing: RangeLocks,
}

impl Image {
    /// The content of a compressed cluster.
    pub(super) async fn decompress(&self, data: Compressed) -> Result<Rc<Vec<u8>>> {
        if let Some(found) = self.decompressed.find(data.offset) {
            return Ok(found);
        }
        // Requests for neighbouring bytes come together.
        let guard = self.decompressed.loading.lock(data.offset..data.offset + 1, true).await;
        if let Some(found) = self.decompressed.find(data.offset) {
            return Ok(found);
        }
        let bytes = self.read_file(data.offset, to_usize(data.len)).await?;
        let (kind, len) = (self.header.borrow().compression, self.geometry().cluster_len());
        let cluster = self.offload(len, move || decompress(kind, &bytes, len)).await?;
        let Some(cluster) = cluster else {
            let text = format!("{}: compressed data at {:#x} is damaged", self.name(), data.offset);
            return Err(Error::new(ErrorKind::Io, text));
        };
        let cluster = Rc::new(cluster);
        self.decompressed.keep(data.offset, Rc::clone(&cluster));
        drop(guard);
        Ok(cluster)
    }

    /// Work of some length for the processor, elsewhere unless the way is longer.
    async fn offload<R: Send + 'static>(
        &self,
        len: usize,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R> {
        if len < OFFLOAD {
            return Ok(work());
        }
        let done = self.executor.engine().blocking(move || Ok(work())).await;
        done.map_err(|error| Error::from_io(error, "cannot compress or decompress"))
    }

    /// Forgets what was decompressed from there, and does not put anything there any more.
    pub(super) fn forget_compressed(&self, host: &Range<u64>) {
        self.decompressed.kept.borrow_mut().retain(|(at, _)| !host.contains(at));
        if self.decompressed.open.get().is_some_and(|at| host.contains(&at)) {
            self.decompressed.open.set(None);
        }
    }

    /// Forgets everything.
    pub(super) fn reset_compressed(&self) {
        self.forget_compressed(&(0..u64::MAX));
    }

    /// While this is held no compressed data gets a place.
    pub(super) async fn lock_packing(&self) -> crate::ranges::RangeGuard {
        self.decompressed.packing.lock(0..1, true).await
    }

    /// Writes whole clusters compressed, and the rest as it is.
    pub(super) async fn write_compressed(&self, at: u64, from: IoBuf, pass: Pass) -> Result<()> {
        self.run(|image| async move {
            let size = image.geometry().cluster_size();
            let end = at + from.len() as u64;
            let mut start = at;
            while start < end {
                let next = (start - start % size + size).min(end);
                let part = from.slice(to_usize(start - at)..to_usize(next - at));
                let whole = start.is_multiple_of(size)
                    && (next.is_multiple_of(size) || next == image.size.get());
                if !(whole && image.data.is_none() && image.write_cluster(start, &part).await?) {
                    Rc::clone(&image).write_slowly(start, part).await?;
                }
                start = next;
            }
            drop(pass);
            Ok(())
        })
        .await?;
        self.flush_if_crowded();
        Ok(())
    }

    /// Writes one cluster compressed; `false` if that would not save anything.
    async fn write_cluster(&self, guest: u64, from: &IoBuf) -> Result<bool> {
        let geometry = self.geometry();
        let mut bytes = from.to_vec();
        bytes.resize(geometry.cluster_len(), 0);
        let kind = self.header.borrow().compression;
        let packed = self.offload(bytes.len(), move || compress(kind, &bytes)).await?;
        let Some(packed) = packed else { return Ok(false) };
        let offset = self.allocate_bytes(packed.len() as u64).await?;
        let data = Compressed { offset, len: packed.len() as u64 };
        let Ok(entry) = L2Entry::encode(Cluster::Compressed(data), false, geometry) else {
            self.frees.push_compressed(data, Why::Other);
            return Ok(false);
        };
        let guard = self.locks.lock(guest..guest + geometry.cluster_size(), true).await;
        let written = self.write_packed(guest, data, entry, &packed).await;
        drop(guard);
        if written.is_err() {
            self.frees.push_compressed(data, Why::Other);
        }
        written.map(|()| true)
    }

    /// Writes compressed data to its place and points the entry of its cluster, which is locked, there.
    async fn write_packed(
        &self,
        guest: u64,
        data: Compressed,
        entry: L2Entry,
        packed: &[u8],
    ) -> Result<()> {
        let end = data.offset + data.len;
        self.check_overlap(&(data.offset..end), None)?;
        self.reserve_file(end).await?;
        self.file.write(data.offset, IoBuf::from_vec(packed), WriteFlags::NONE).await?;
        let old = self.entry_to_change(guest).await?;
        let old = self.decode(old)?;
        self.set_entry(guest, entry)?;
        self.drop_old(old);
        Ok(())
    }

    /// A place for so many bytes, behind the last ones where that is possible.
    async fn allocate_bytes(&self, len: u64) -> Result<u64> {
        let geometry = self.geometry();
        let size = geometry.cluster_size();
        let guard = self.lock_packing().await;
        let open = self.decompressed.open.take();
        let mut place = None;
        if let Some(at) = open {
            let fits = at + len <= geometry.cluster_start(at) + size;
            // The cluster may have as many references as its refcount can count.
            if fits && self.add_reference(geometry.cluster_index(at)).await.is_ok() {
                place = Some(at);
            }
        }
        let at = match place {
            Some(at) => at,
            None => self.allocate_behind(open).await?,
        };
        let end = at + len;
        self.decompressed.open.set(Some(end).filter(|end| !geometry.is_aligned(*end)));
        drop(guard);
        Ok(at)
    }

    /// A new cluster; if it follows the open one, the data begins in that.
    async fn allocate_behind(&self, open: Option<u64>) -> Result<u64> {
        let geometry = self.geometry();
        let run = self.allocate(1).await?;
        let Some(at) = open else { return Ok(run.host) };
        let follows = geometry.cluster_start(at) + geometry.cluster_size() == run.host;
        if follows && self.add_reference(geometry.cluster_index(at)).await.is_ok() {
            return Ok(at);
        }
        Ok(run.host)
    }
}

impl Decompressed {
    fn find(&self, at: u64) -> Option<Rc<Vec<u8>>> {
        let mut kept = self.kept.borrow_mut();
        let place = kept.iter().position(|(key, _)| *key == at)?;
        let found = kept.remove(place)?;
        let cluster = Rc::clone(&found.1);
        kept.push_back(found);
        Some(cluster)
    }

    fn keep(&self, at: u64, cluster: Rc<Vec<u8>>) {
        let mut kept = self.kept.borrow_mut();
        while kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back((at, cluster));
    }
}

/// A whole cluster from compressed data, which is followed by anything; `None` if it is damaged.
fn decompress(kind: Compression, data: &[u8], len: usize) -> Option<Vec<u8>> {
    match kind {
        Compression::Zlib => {
            let mut cluster = Vec::with_capacity(len);
            let mut inflate = Decompress::new(false);
            let finish = FlushDecompress::Finish;
            // An error after the last byte of the cluster is none of ours.
            let _status = inflate.decompress_vec(data, &mut cluster, finish);
            (cluster.len() == len).then_some(cluster)
        }
        Compression::Zstd => unpack_zstd(data, len).ok().flatten(),
    }
}

fn unpack_zstd(data: &[u8], len: usize) -> std::io::Result<Option<Vec<u8>>> {
    use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(ZSTD_WINDOW_BITS))?;
    let mut cluster = vec![0; len];
    let (mut input, mut output) = (InBuffer::around(data), OutBuffer::around(&mut cluster[..]));
    while output.pos() < len {
        let before = (input.pos(), output.pos());
        decoder.run(&mut input, &mut output)?;
        if (input.pos(), output.pos()) == before {
            return Ok(None);
        }
    }
    Ok(Some(cluster))
}

/// A cluster, compressed; `None` if it would not become smaller.
fn compress(kind: Compression, cluster: &[u8]) -> Option<Vec<u8>> {
    // A host cluster less one byte: what takes more is stored as it is.
    let most = cluster.len() - 1;
    match kind {
        Compression::Zlib => {
            let mut packed = Vec::with_capacity(most);
            let level = flate2::Compression::default();
            let mut deflate = Compress::new_with_window_bits(level, false, WINDOW_BITS);
            let status = deflate.compress_vec(cluster, &mut packed, FlushCompress::Finish).ok()?;
            (status == Status::StreamEnd).then_some(packed)
        }
        Compression::Zstd => {
            let packed = zstd::bulk::compress(cluster, ZSTD_LEVEL).ok()?;
            (packed.len() <= most).then_some(packed)
        }
    }
}

fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[path = "compress_tests.rs"]
mod tests;
