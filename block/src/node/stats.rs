//! Counters of a node or backend.

use std::cell::Cell;

/// Kinds of requests that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpKind {
    Read,
    Write,
    Flush,
    Discard,
}

/// Counters of one kind of request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpStats {
    /// Requests completed, failed ones too.
    pub ops: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Time they took together, ns, to the resolution of an executor turn.
    pub ns: u64,
    /// Requests that failed.
    pub failed: u64,
}

/// What went through a node or backend so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockStats {
    /// Reads.
    pub read: OpStats,
    /// Writes, of zeroes too.
    pub write: OpStats,
    /// Flushes.
    pub flush: OpStats,
    /// Discards.
    pub discard: OpStats,
    /// End of the highest write, bytes.
    pub write_highest: u64,
}

/// The running counters.
#[derive(Default)]
pub(crate) struct Counters {
    read: Cell<OpStats>,
    write: Cell<OpStats>,
    flush: Cell<OpStats>,
    discard: Cell<OpStats>,
    write_highest: Cell<u64>,
}

impl Counters {
    pub(crate) fn count(&self, kind: OpKind, end: u64, bytes: u64, ns: u64, ok: bool) {
        let cell = match kind {
            OpKind::Read => &self.read,
            OpKind::Write => &self.write,
            OpKind::Flush => &self.flush,
            OpKind::Discard => &self.discard,
        };
        let mut stats = cell.get();
        stats.ops += 1;
        stats.ns += ns;
        if ok {
            stats.bytes += bytes;
            if kind == OpKind::Write {
                self.write_highest.set(self.write_highest.get().max(end));
            }
        } else {
            stats.failed += 1;
        }
        cell.set(stats);
    }

    pub(crate) fn snapshot(&self) -> BlockStats {
        BlockStats {
            read: self.read.get(),
            write: self.write.get(),
            flush: self.flush.get(),
            discard: self.discard.get(),
            write_highest: self.write_highest.get(),
        }
    }
}
