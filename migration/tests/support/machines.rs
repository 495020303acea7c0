//! A source and a destination with a fault at any step.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use ferry_migration::handshake::{DiskFact, Facts};
use ferry_migration::machine::{
    DestMachine, DirtySource, Ownership, SourceMachine, TakeBack, TookBack,
};
use ferry_migration::ram::{GuestRam, PageBitmap};
use ferry_migration::state::{Sections, State};
use ferry_migration::stats::Status;
use ferry_migration::{Error, ErrorKind, Result, Session};
use serde::{Deserialize, Serialize};

use super::Shared;
use super::guest::{Guest, Workload};
use super::ram::FakeRam;

/// The one disk, seen by both sides.
#[derive(Debug, Default)]
pub struct World {
    pub lock: Option<Owner>,
    pub generation: u64,
    pub source_runs: bool,
    pub dest_runs: bool,
}

impl World {
    fn check(&self) {
        assert!(!(self.source_runs && self.dest_runs), "two guests run");
        assert!(!self.source_runs || self.lock == Some(Owner::Source), "source without its lock");
        assert!(!self.dest_runs || self.lock == Some(Owner::Dest), "destination without its lock");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Source,
    Dest,
}

/// What happens at a step.
#[derive(Clone, Default)]
pub enum Fault {
    #[default]
    None,
    /// The step fails.
    Fail(&'static str),
    /// The process dies there: the thread unwinds and takes its connection along.
    Die(&'static str),
    /// Somebody cancels there.
    Cancel(&'static str, Arc<Mutex<Option<Result<bool>>>>),
    /// This end of the connection is shut there, in this direction.
    Cut(&'static str, Arc<UnixStream>, Shutdown),
}

impl Fault {
    fn at(&self, step: &'static str, session: Option<&Session>) -> Result<()> {
        match self {
            Fault::Fail(at) if *at == step => {
                Err(Error::new(ErrorKind::Machine, format!("fault at {step}")))
            }
            // No message on the way out: this is what the test wants.
            Fault::Die(at) if *at == step => std::panic::resume_unwind(Box::new("killed")),
            Fault::Cancel(at, outcome) if *at == step => {
                outcome.lock().unwrap().get_or_insert_with(|| session.expect("watched").cancel());
                Ok(())
            }
            Fault::Cut(at, wire, how) if *at == step => {
                wire.shutdown(*how).unwrap();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct CpuState {
    writes: u64,
    blob: Vec<u8>,
}

impl State for CpuState {
    const KIND: &'static str = "fake-cpu";
    const VERSION: u16 = 1;
    type Older = Self;
}

pub fn facts(ram: &FakeRam) -> Facts {
    Facts {
        software: "fake".into(),
        machine: "pc-1".into(),
        page_size: 4096,
        vcpus: 1,
        memory: ram.layout(),
        devices: vec![],
        disks: vec![DiskFact { id: "disk".into(), size: 1 << 20, read_only: false }],
    }
}

pub struct FakeSource {
    pub guest: Arc<Guest>,
    pub world: Shared,
    pub fault: Fault,
    pub calls: Vec<&'static str>,
    pub statuses: Vec<Status>,
    pub passes: u64,
    /// Do the disks keep generation marks?
    pub marks: bool,
    /// Bytes of device state.
    pub state_len: usize,
    was_running: bool,
    session: Option<Session>,
}

impl FakeSource {
    pub fn new(ram: FakeRam, running: bool) -> FakeSource {
        let world = World { lock: Some(Owner::Source), source_runs: running, ..World::default() };
        FakeSource {
            guest: Guest::new(ram, running),
            world: Arc::new(Mutex::new(world)),
            fault: Fault::None,
            calls: vec![],
            statuses: vec![],
            passes: 0,
            marks: true,
            state_len: 1000,
            was_running: running,
            session: None,
        }
    }

    pub fn working(self, load: Workload) -> FakeSource {
        self.guest.work(load);
        self
    }

    pub fn faulty(mut self, fault: Fault) -> FakeSource {
        self.fault = fault;
        self
    }

    pub fn watch(&mut self, session: &Session) {
        self.session = Some(session.clone());
    }

    /// An empty machine for this guest to arrive in.
    pub fn destination(&self) -> FakeDest {
        let ram = &self.guest.ram;
        let low = ram.layout()[0].len / 4096;
        FakeDest {
            guest: Guest::new(FakeRam::new(low, ram.pages() - low), false),
            world: Arc::clone(&self.world),
            fault: Fault::None,
            calls: vec![],
            statuses: vec![],
            machine_type: "pc-1".into(),
            session: None,
        }
    }

    fn step(&mut self, step: &'static str) -> Result<()> {
        self.calls.push(step);
        self.fault.at(step, self.session.as_ref())
    }
}

impl Drop for FakeSource {
    fn drop(&mut self) {
        self.guest.end();
    }
}

impl DirtySource for FakeSource {
    fn start(&mut self) -> Result<()> {
        self.step("start")
    }

    fn sync(&mut self, dirty: &mut PageBitmap) -> Result<()> {
        self.step("sync")?;
        self.guest.fetch_dirty(dirty);
        Ok(())
    }

    fn stop(&mut self) {
        self.calls.push("stop");
    }
}

impl SourceMachine for FakeSource {
    fn facts(&self) -> Facts {
        facts(&self.guest.ram)
    }

    fn ram(&self) -> Arc<dyn GuestRam> {
        Arc::<FakeRam>::clone(&self.guest.ram)
    }

    fn stop_guest(&mut self) -> Result<()> {
        self.was_running = self.guest.is_running();
        self.guest.set_running(false);
        self.world.lock().unwrap().source_runs = false;
        self.step("stop_guest")
    }

    fn was_running(&self) -> bool {
        self.was_running
    }

    fn save(&mut self) -> Result<Sections> {
        self.step("save")?;
        let mut sections = Sections::new();
        let writes = self.guest.writes.load(std::sync::atomic::Ordering::Relaxed);
        for cpu in ["0", "1"] {
            sections.save(cpu, &CpuState { writes, blob: vec![7; self.state_len] })?;
        }
        Ok(sections)
    }

    fn inactivate(&mut self) -> Result<Ownership> {
        self.world.lock().unwrap().lock = None;
        self.step("inactivate")?;
        let mark = self.marks.then(|| self.world.lock().unwrap().generation);
        Ok(Ownership { marks: vec![("disk".into(), mark)] })
    }

    fn take_back(&mut self, rule: TakeBack, ownership: &Ownership) -> TookBack {
        self.calls.push("take_back");
        let mut world = self.world.lock().unwrap();
        if world.lock == Some(Owner::Dest) {
            return TookBack::HeldElsewhere("'disk' is locked".into());
        }
        let unchanged = ownership.is_provable() && ownership.marks[0].1 == Some(world.generation);
        if rule == TakeBack::OnlyIfUnchanged && !unchanged {
            return TookBack::NoProof("'disk' may have been written".into());
        }
        world.lock = Some(Owner::Source);
        TookBack::Ours
    }

    fn resume_guest(&mut self) -> Result<()> {
        self.step("resume_guest")?;
        {
            let mut world = self.world.lock().unwrap();
            world.source_runs = self.was_running;
            world.check();
        }
        self.guest.set_running(self.was_running);
        Ok(())
    }

    fn forget(&mut self) {
        self.calls.push("forget");
    }

    fn status(&mut self, status: Status) {
        self.statuses.push(status);
    }

    fn pass(&mut self, pass: u64) {
        self.passes += 1;
        assert_eq!(pass, self.passes);
    }
}

pub struct FakeDest {
    pub guest: Arc<Guest>,
    pub world: Shared,
    pub fault: Fault,
    pub calls: Vec<&'static str>,
    pub statuses: Vec<Status>,
    pub machine_type: String,
    pub session: Option<Session>,
}

impl FakeDest {
    pub fn faulty(mut self, fault: Fault) -> FakeDest {
        self.fault = fault;
        self
    }

    fn step(&mut self, step: &'static str) -> Result<()> {
        self.calls.push(step);
        self.fault.at(step, self.session.as_ref())
    }
}

impl Drop for FakeDest {
    // A process that dies loses its locks, and its guest.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut world = self.world.lock().unwrap();
            world.dest_runs = false;
            if world.lock == Some(Owner::Dest) {
                world.lock = None;
            }
        }
    }
}

impl DestMachine for FakeDest {
    fn facts(&self) -> Facts {
        Facts { machine: self.machine_type.clone(), ..facts(&self.guest.ram) }
    }

    fn ram(&self) -> Arc<dyn GuestRam> {
        Arc::<FakeRam>::clone(&self.guest.ram)
    }

    fn restore(&mut self, mut sections: Sections) -> Result<()> {
        self.step("restore")?;
        for cpu in ["0", "1"] {
            let state: CpuState = sections.load(cpu)?;
            if state.blob.iter().any(|b| *b != 7) {
                return Err(Error::state("the blob is damaged"));
            }
        }
        sections.finish()
    }

    fn activate(&mut self) -> Result<()> {
        {
            let mut world = self.world.lock().unwrap();
            if world.lock.is_some() {
                return Err(Error::new(ErrorKind::Machine, "'disk' is locked"));
            }
            world.lock = Some(Owner::Dest);
            world.generation += 1;
        }
        self.step("activate")
    }

    fn release(&mut self) -> Result<()> {
        self.step("release")?;
        let mut world = self.world.lock().unwrap();
        if world.lock == Some(Owner::Dest) {
            world.lock = None;
        }
        Ok(())
    }

    fn run_guest(&mut self, run: bool) -> Result<()> {
        self.step("run_guest")?;
        let mut world = self.world.lock().unwrap();
        world.dest_runs = run;
        world.check();
        Ok(())
    }

    fn status(&mut self, status: Status) {
        self.statuses.push(status);
    }
}
