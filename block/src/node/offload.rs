//! Copying from one node to another without moving the bytes through this process.

use super::{BlockNode, OpKind};
use crate::driver::LocalBoxFuture;
use crate::error::{Error, ErrorKind, Result};
use crate::format::raw::RawDriver;
use crate::protocol::file::FileDriver;

impl BlockNode {
    /// Copies `len` bytes at `from` of `source` to `at` where the kernel can do it by itself
    /// (`copy_file_range(2)`): between files of the host, raw images included. A file system may
    /// let both files share the blocks.
    ///
    /// # Errors
    /// `Unsupported` where it cannot; some of the bytes may have been copied then.
    pub fn copy_range<'a>(
        &'a self,
        at: u64,
        source: &'a BlockNode,
        from: u64,
        len: usize,
    ) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            source.check_range("copy", from, len)?;
            if let Some(raw) = source.driver::<RawDriver>() {
                let (below, from) = raw.place(from)?;
                return self.copy_range(at, &below, from, len).await;
            }
            let range = self.check_range("copy", at, len)?;
            self.check_writable("copy")?;
            let op = self.begin(OpKind::Write, &range);
            let result = if let Some(raw) = self.driver::<RawDriver>() {
                let (below, at) = raw.place(at)?;
                below.copy_range(at, source, from, len).await
            } else if let (Some(target), Some(source)) = (self.driver(), source.driver()) {
                // Who writes a part of a block puts back what was around it.
                let guard = self.lock_blocks(range.clone()).await;
                let copied = FileDriver::copy_from(target, at, source, from, len).await;
                drop(guard);
                copied
            } else {
                let text = "only files of the host are copied by the kernel";
                Err(Error::new(ErrorKind::Unsupported, text))
            };
            op.finish(result, "copy to")
        })
    }
}

#[cfg(test)]
#[path = "offload_tests.rs"]
mod tests;
