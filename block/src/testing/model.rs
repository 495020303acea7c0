//! What a disk must hold: the bytes that were written to it, kept beside it.

use std::ops::Range;

use crate::buf::IoBuf;
use crate::driver::{ExtentKind, WriteFlags};
use crate::edge::ChildRole;
use crate::error::Result;
use crate::node::BlockNode;

/// A node, or a part of it, with a copy of what it must hold. Every read is compared.
///
/// # Panics
/// All methods panic when the node holds anything else.
pub struct Model {
    node: BlockNode,
    start: u64,
    bytes: Vec<u8>,
}

impl Model {
    /// The model of the bytes `range` of `node`, learned by reading them.
    pub async fn learn(node: &BlockNode, range: Range<u64>) -> Model {
        let len = usize::try_from(range.end - range.start).expect("a part that fits in memory");
        let mut model = Model { node: node.clone(), start: range.start, bytes: vec![0; len] };
        model.bytes = model.fetch(0..len).await;
        model
    }

    /// Bytes of the part.
    #[expect(clippy::len_without_is_empty, reason = "a part without bytes is not tested")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What it must hold.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    async fn fetch(&self, range: Range<usize>) -> Vec<u8> {
        let buf = IoBuf::alloc(range.len());
        let at = self.start + range.start as u64;
        self.node.read(at, buf.clone()).await.expect("a read in range");
        buf.to_vec()
    }

    fn on_node(&self, range: &Range<usize>) -> Range<u64> {
        self.start + range.start as u64..self.start + range.end as u64
    }

    /// Reads `range` and compares.
    pub async fn check(&self, range: Range<usize>) {
        let got = self.fetch(range.clone()).await;
        let wrong = got.iter().zip(&self.bytes[range.clone()]).position(|(got, want)| got != want);
        if let Some(at) = wrong {
            let at = range.start + at;
            let (got, want) = (got[at - range.start], self.bytes[at]);
            panic!("byte {at} of {range:?} reads as {got:#04x}, was written as {want:#04x}");
        }
    }

    /// Writes `bytes` at `at`.
    pub async fn write(&mut self, at: usize, bytes: &[u8], flags: WriteFlags) -> Result<()> {
        self.write_buf(at, IoBuf::from_vec(bytes), flags).await
    }

    /// Writes a buffer of any shape.
    pub async fn write_buf(&mut self, at: usize, buf: IoBuf, flags: WriteFlags) -> Result<()> {
        let bytes = buf.to_vec();
        self.node.write(self.start + at as u64, buf, flags).await?;
        self.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    /// Makes `range` zero.
    pub async fn write_zeroes(&mut self, range: Range<usize>, flags: WriteFlags) -> Result<()> {
        self.node.write_zeroes(self.on_node(&range), flags).await?;
        self.bytes[range].fill(0);
        Ok(())
    }

    /// Discards `range`: it must read as what it was or as zeroes, and stay so.
    pub async fn discard(&mut self, range: Range<usize>) -> Result<()> {
        self.node.discard(self.on_node(&range)).await?;
        let got = self.fetch(range.clone()).await;
        for (at, byte) in range.zip(got) {
            let old = self.bytes[at];
            assert!(byte == 0 || byte == old, "byte {at} reads as {byte:#04x} after a discard");
            self.bytes[at] = byte;
        }
        Ok(())
    }

    /// Walks the whole part with `map`: what it calls zero must be zero.
    pub async fn check_map(&self) {
        let backed = self.node.children().iter().any(|edge| edge.role() == ChildRole::Backing);
        let mut at = 0;
        while at < self.bytes.len() {
            let extent = self.node.map(self.on_node(&(at..self.bytes.len()))).await.expect("a map");
            let len = usize::try_from(extent.len).expect("an extent in range");
            assert!((1..=self.bytes.len() - at).contains(&len), "map at {at} says {len} bytes");
            let zero = match extent.kind {
                ExtentKind::Zero => true,
                ExtentKind::Absent => !backed,
                ExtentKind::Data => false,
            };
            let is_zero = self.bytes[at..at + len].iter().all(|byte| *byte == 0);
            assert!(!zero || is_zero, "map calls {at}..{} zero, and it is not", at + len);
            at += len;
        }
    }
}
