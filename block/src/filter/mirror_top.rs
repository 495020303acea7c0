//! The filter that a mirror job puts over its source: passes everything on and lets the job see every
//! change.
//!
//! What a change means for the job is in [`crate::job::mirror`]'s `guest` module. The filter has an edge to
//! the target, although it writes there on the job's permissions, so that draining the target waits for
//! guest writes that go to both sides.

use std::ops::Range;
use std::rc::Rc;

use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags};
use crate::edge::{Edge, EdgePerms};
use crate::error::{Error, ErrorKind, Result};
use crate::job::mirror::{Mirror, guest};

/// The filter of one mirror job.
pub(crate) struct MirrorTop {
    source: Edge,
    target: Edge,
    mirror: Rc<Mirror>,
}

impl MirrorTop {
    pub(crate) fn new(source: Edge, target: Edge, mirror: Rc<Mirror>) -> MirrorTop {
        MirrorTop { source, target, mirror }
    }
}

impl BlockDriver for MirrorTop {
    const FORMAT: &'static str = "mirror_top";

    fn limits(&self) -> Limits {
        // The node below aligns and splits; what arrives here is as the guest sent it.
        Limits::NONE
    }

    fn len(&self) -> u64 {
        self.source.len()
    }

    fn filename(&self) -> Option<String> {
        self.source.node().filename()
    }

    fn children(&self) -> Vec<Edge> {
        vec![self.source.clone(), self.target.clone()]
    }

    fn set_permissions(&self, _held: EdgePerms) -> Result<()> {
        Ok(())
    }

    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        self.source.read(at, into).await
    }

    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        guest::write(&self.mirror, &self.source, &self.target, at, from, flags).await
    }

    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        guest::write_zeroes(&self.mirror, &self.source, &self.target, range, flags).await
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        guest::discard(&self.mirror, &self.source, &self.target, range).await
    }

    async fn flush(&self) -> Result<()> {
        self.source.flush().await
    }

    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        self.source.map(range).await
    }

    async fn resize(&self, _len: u64) -> Result<()> {
        let text = "a disk keeps its length while it is mirrored: cancel the job first";
        Err(Error::new(ErrorKind::Busy, text))
    }

    async fn grow(&self, len: u64) -> Result<ExtentKind> {
        self.resize(len).await.map(|()| ExtentKind::Zero)
    }

    async fn refresh(&self) -> Result<()> {
        Ok(())
    }

    async fn activate(&self, _only_if: Option<u64>) -> Result<()> {
        Ok(())
    }

    async fn inactivate(&self) -> Result<()> {
        Ok(())
    }

    async fn generation(&self) -> Result<Option<u64>> {
        self.source.node().generation().await
    }
}
