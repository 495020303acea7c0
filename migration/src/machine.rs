//! What a virtual machine must offer to be moved: the traits that the monitor implements.
//!
//! [`source::run`](crate::source::run()) and [`dest::run`](crate::dest::run()) call them, one call at a
//! time, from the one thread that runs the migration, and decide alone what comes next. Every call may
//! block; none is ever repeated after it succeeded.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::handshake::Facts;
use crate::ram::{GuestRam, PageBitmap};
use crate::state::Sections;
use crate::stats::Status;

/// Where the dirty pages come from.
pub trait DirtySource {
    /// Starts recording which pages change, whoever writes them: vCPUs and our own devices.
    /// Pages that change from the moment this returns are reported by the next `sync`.
    fn start(&mut self) -> Result<()>;

    /// Adds every page changed since the last call to `dirty` and forgets it, such that a change
    /// after this call is reported by the next. Bits are page numbers of
    /// [`RamMap`](crate::ram::RamMap).
    fn sync(&mut self, dirty: &mut PageBitmap) -> Result<()>;

    /// Stops recording. Called once at the end whatever happened, also when `start` failed or was
    /// never called; what cannot be undone is for the log.
    fn stop(&mut self);
}

/// The machine that a guest leaves.
///
/// Order of calls, without a fault:
/// `facts`, `ram`, `start`, `sync`*, `stop_guest`, `sync`, `save`, `inactivate`, `forget`, `stop`.
///
/// With a fault before the commit point `take_back` (only after `inactivate` was called) and
/// `resume_guest` (only after `stop_guest` was called) lead back to where it was.
pub trait SourceMachine: DirtySource {
    /// What the destination must match.
    fn facts(&self) -> Facts;

    /// The guest's memory; stays mapped where it is until the run is over.
    fn ram(&self) -> Arc<dyn GuestRam>;

    /// Stops every vCPU, drains every device and flushes every node, so that nothing of the guest
    /// changes any more. Remembers whether it ran. After an error `resume_guest` is called.
    fn stop_guest(&mut self) -> Result<()>;

    /// Did the guest run when it was stopped? A paused guest arrives paused.
    fn was_running(&self) -> bool;

    /// All device and CPU state. The guest is stopped.
    fn save(&mut self) -> Result<Sections>;

    /// Gives every writable disk up: everything written out, metadata clean, locks dropped. Returns
    /// what is needed to prove later that nobody wrote since. After an error `take_back` is called
    /// for whatever had been given up by then.
    fn inactivate(&mut self) -> Result<Ownership>;

    /// Takes all disks back. With [`TakeBack::Freely`] the locks suffice; with
    /// [`TakeBack::OnlyIfUnchanged`] every disk must also still carry the mark in `ownership`.
    /// `ownership` is empty when `inactivate` failed. All or nothing: after anything but
    /// [`TookBack::Ours`] no lock may be held. Take the disks in the order of their names, as the
    /// destination does, so that one side wins them all. While a lock is held elsewhere this is called
    /// again for a second: a peer that died may hold its locks a moment longer than its connection.
    fn take_back(&mut self, rule: TakeBack, ownership: &Ownership) -> TookBack;

    /// Lets the guest go on where `stop_guest` found it (paused stays paused). An error leaves it
    /// paused and is reported.
    fn resume_guest(&mut self) -> Result<()>;

    /// The destination has the guest: mark this one as migrated away, such that `cont` is refused.
    fn forget(&mut self);

    /// The status changed; for the `MIGRATION` event. Called in order, before the step begins.
    fn status(&mut self, status: Status);

    /// Round `pass` of copying RAM begins, from 1; for the `MIGRATION_PASS` event.
    fn pass(&mut self, pass: u64);
}

/// The machine that a guest arrives in: built, empty, all disks open but inactive.
///
/// Order of calls without a fault: `facts`, `ram`, `restore`, `activate`, `run_guest`.
pub trait DestMachine {
    /// What the source must match.
    fn facts(&self) -> Facts;

    /// The memory to fill. It must be all zero: pages of zeros are not sent.
    fn ram(&self) -> Arc<dyn GuestRam>;

    /// Loads and validates everything, and calls [`Sections::finish`]. After an error no vCPU of
    /// this machine may ever run.
    fn restore(&mut self, sections: Sections) -> Result<()>;

    /// Takes every disk, in the order of their names: locks, all mutable metadata read again, generation
    /// marks advanced. All that
    /// can fail in starting the guest must fail here. After an error `release` is called.
    fn activate(&mut self) -> Result<()>;

    /// Gives back whatever a failed `activate` took. When this fails the source is told nothing, and
    /// finds out through the locks; the process should then end, which frees them.
    fn release(&mut self) -> Result<()>;

    /// The guest is ours. With `run` its vCPUs start now, else it stays paused as it was at the
    /// source. An error leaves it paused; the guest stays here all the same.
    fn run_guest(&mut self, run: bool) -> Result<()>;

    /// The status changed; for the `MIGRATION` event.
    fn status(&mut self, status: Status);
}

/// The generation marks of all writable disks as they were when the source gave them up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    /// Node name, and its mark where the image keeps one.
    pub marks: Vec<(String, Option<u64>)>,
}

impl Ownership {
    /// Can it be proved later that nobody wrote? Only when every disk has a mark, and there is one.
    pub fn is_provable(&self) -> bool {
        !self.marks.is_empty() && self.marks.iter().all(|(_, mark)| mark.is_some())
    }
}

/// What the source must see before it may take its disks back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeBack {
    /// The destination never owned them, or said that it has nothing: the locks suffice.
    Freely,
    /// The destination may have run: locks **and** unchanged generation marks.
    OnlyIfUnchanged,
}

/// What became of taking the disks back.
#[derive(Debug)]
pub enum TookBack {
    /// They are ours and nobody wrote.
    Ours,
    /// Somebody holds a lock; the text names the disk. Under [`TakeBack::OnlyIfUnchanged`] that is
    /// the destination, running.
    HeldElsewhere(String),
    /// The locks were free, but a mark changed or there is none to look at; the text says which.
    /// The locks must have been dropped again.
    NoProof(String),
    /// Something else failed.
    Failed(Error),
}
