//! Devices of the host: their length is somebody else's to change.

use std::ops::RangeInclusive;

use super::{FileDriver, FileKind, length};
use crate::driver::BlockDriver;
use crate::error::{Error, ErrorKind, Result};

impl FileDriver {
    /// Whether it is a device, which keeps its length and what it held before.
    pub fn is_device(&self) -> bool {
        self.kind == FileKind::BlockDevice
    }

    /// Takes the length over that the device has now, if it is `wanted`; no other can be had.
    pub(super) async fn follow_device(&self, wanted: RangeInclusive<u64>) -> Result<()> {
        let there = self.io.blocking(|fd| length(fd, FileKind::BlockDevice)).await;
        let there = there.map_err(|error| self.failed("read the length of", error))?;
        if wanted.contains(&there) {
            self.len.set(there);
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
