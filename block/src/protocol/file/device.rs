//! Devices of the host: their length is somebody else's to change.

use std::os::fd::BorrowedFd;

use super::{FileDriver, FileKind, length};
use crate::driver::BlockDriver;
use crate::error::{Error, ErrorKind, Result};
use crate::node::BlockNode;

/// Asks the device that `node` passes everything to how long it is now, for [`BlockNode::resize`] to go
/// by: a volume may have been extended. Files are left alone.
///
/// # Errors
/// The host cannot tell.
pub async fn look_again(node: &BlockNode) -> Result<()> {
    for node in std::iter::successors(Some(node.clone()), BlockNode::filtered) {
        if let Some(device) = node.driver::<FileDriver>().filter(|file| file.is_device()) {
            device.ask_length().await?;
        }
    }
    Ok(())
}

impl FileDriver {
    /// Whether it is a device, which keeps its length and what it held before.
    pub fn is_device(&self) -> bool {
        self.kind == FileKind::BlockDevice
    }

    async fn ask_length(&self) -> Result<()> {
        let ask = |fd: BorrowedFd<'_>| length(fd, FileKind::BlockDevice);
        let len = self.io.blocking(ask).await;
        self.device_len.set(len.map_err(|error| self.failed("read the length of", error))?);
        Ok(())
    }

    /// Takes the length over that the device has; no other can be had.
    pub(super) fn follow_device(&self, len: u64) -> Result<()> {
        let there = self.device_len.get();
        if len == there {
            self.len.set(len);
            return Ok(());
        }
        let name = self.filename().unwrap_or_default();
        let context = format!("'{name}' is a device of {there} bytes and keeps its size");
        Err(Error::new(ErrorKind::Unsupported, context))
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
