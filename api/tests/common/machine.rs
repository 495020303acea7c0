//! A machine that answers every command and remembers just enough to make sense.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use ferry_api::{
    Command, Controller, EventKind, LocalBoxFuture, QmpError,
    command::{self, *},
    event::*,
};
use serde_json::{Value, json};

use super::job::{Ending, FakeJob};

/// Size of the fake guest's disk.
pub(crate) const DISK_BYTES: i64 = 64 << 20;
/// What a fake job or migration does in one tick (about a millisecond).
const TICK_BYTES: i64 = 1 << 20;

#[derive(Default)]
pub(crate) struct FakeMachine {
    running: Cell<bool>,
    quit: Cell<bool>,
    nodes: RefCell<Vec<BlockdevOptions>>,
    pivoted: RefCell<Option<String>>,
    job: RefCell<Option<FakeJob>>,
    migration: RefCell<Option<FakeMigration>>,
    send_migration_events: Cell<bool>,
    parameters: RefCell<MigrationParameters>,
    events: RefCell<Vec<EventKind>>,
}

struct FakeMigration {
    status: MigrationStatus,
    sent: i64,
    fail: bool,
    endless: bool,
}

impl FakeMachine {
    pub(crate) fn has_quit(&self) -> bool {
        self.quit.get()
    }

    pub(crate) fn take_events(&self) -> Vec<EventKind> {
        self.events.take()
    }

    fn emit(&self, event: EventKind) {
        self.events.borrow_mut().push(event);
    }

    /// Lets a millisecond pass.
    pub(crate) fn tick(&self) {
        self.tick_job();
        self.tick_migration();
    }

    fn tick_job(&self) {
        let mut slot = self.job.borrow_mut();
        let Some(job) = slot.as_mut() else { return };
        if let Some(ending) = job.ending {
            self.finish_job(job, ending);
            self.end_job(&mut slot);
        } else if job.status == JobStatus::Running {
            let step = if job.speed > 0 { (job.speed / 1000).min(TICK_BYTES) } else { TICK_BYTES };
            job.offset = (job.offset + step).min(DISK_BYTES);
            if job.fail && job.offset > DISK_BYTES / 2 {
                self.status(&job.id, JobStatus::Aborting);
                let error = Some("No space left on device".to_owned());
                self.emit(EventKind::BlockJobCompleted(job.completed(error)));
                self.end_job(&mut slot);
            } else if job.offset == DISK_BYTES {
                job.status = JobStatus::Ready;
                self.status(&job.id, JobStatus::Ready);
                self.emit(EventKind::BlockJobReady(job.data()));
            }
        }
    }

    fn finish_job(&self, job: &FakeJob, ending: Ending) {
        if ending == Ending::Cancel {
            self.status(&job.id, JobStatus::Aborting);
            return self.emit(EventKind::BlockJobCancelled(job.data()));
        }
        self.status(&job.id, JobStatus::Waiting);
        self.status(&job.id, JobStatus::Pending);
        if ending == Ending::Pivot {
            *self.pivoted.borrow_mut() = Some(job.target.clone());
        }
        self.emit(EventKind::BlockJobCompleted(job.completed(None)));
    }

    fn tick_migration(&self) {
        let mut slot = self.migration.borrow_mut();
        let Some(m) = slot.as_mut() else { return };
        let before = m.status;
        match m.status {
            MigrationStatus::Setup => m.status = MigrationStatus::Active,
            MigrationStatus::Cancelling => m.status = MigrationStatus::Cancelled,
            MigrationStatus::Active if m.fail => m.status = MigrationStatus::Failed,
            MigrationStatus::Active => {
                m.sent += TICK_BYTES;
                if m.sent >= DISK_BYTES && !m.endless {
                    m.status = MigrationStatus::Completed;
                    self.running.set(false);
                    self.emit(EventKind::Stop);
                }
            }
            _ => {}
        }
        if m.status != before {
            self.migration_event(m.status);
        }
    }

    fn migration_event(&self, status: MigrationStatus) {
        if self.send_migration_events.get() {
            self.emit(EventKind::Migration(MigrationData { status }));
        }
    }

    fn status(&self, id: &str, status: JobStatus) {
        self.emit(EventKind::JobStatusChange(JobStatusChangeData { id: id.into(), status }));
    }

    fn end_job(&self, slot: &mut Option<FakeJob>) {
        if let Some(job) = slot.take() {
            self.status(&job.id, JobStatus::Concluded);
            self.status(&job.id, JobStatus::Null);
        }
    }

    fn run(&self, command: Command) -> Result<Value, QmpError> {
        match command {
            Command::Process(ProcessCommand::Quit) => {
                let reason = ShutdownCause::HostQmpQuit;
                self.emit(EventKind::Shutdown(ShutdownData { guest: false, reason }));
                self.quit.set(true);
                Ok(json!({}))
            }
            Command::Process(ProcessCommand::QueryChardev) => Ok(json!([])),
            Command::Machine(command) => self.run_machine(command),
            Command::Block(command) => self.run_block(command),
        }
    }

    fn run_machine(&self, command: MachineCommand) -> Result<Value, QmpError> {
        match command {
            MachineCommand::QueryStatus => command::reply(&self.query_status()),
            MachineCommand::Stop => {
                if self.running.replace(false) {
                    self.emit(EventKind::Stop);
                }
                Ok(json!({}))
            }
            MachineCommand::Cont(_) => {
                if !self.running.replace(true) {
                    self.emit(EventKind::Resume);
                }
                Ok(json!({}))
            }
            MachineCommand::SystemReset => {
                let reason = ShutdownCause::HostQmpSystemReset;
                self.emit(EventKind::Reset(ShutdownData { guest: false, reason }));
                Ok(json!({}))
            }
            MachineCommand::SystemPowerdown => {
                self.emit(EventKind::Powerdown);
                Ok(json!({}))
            }
            MachineCommand::QueryName => command::reply(&NameInfo::default()),
            MachineCommand::QueryUuid => {
                let uuid = "00000000-0000-0000-0000-000000000000".to_owned();
                command::reply(&UuidInfo { uuid })
            }
            MachineCommand::QueryKvm => command::reply(&KvmInfo { enabled: false, present: true }),
            other => self.run_migration(other),
        }
    }

    fn query_status(&self) -> StatusInfo {
        let running = self.running.get();
        let migrated = self.migration.borrow().as_ref().map(|m| m.status);
        let status = match (running, migrated) {
            (true, _) => RunState::Running,
            (false, Some(MigrationStatus::Completed)) => RunState::PostMigrate,
            _ => RunState::Prelaunch,
        };
        StatusInfo { running, singlestep: false, status }
    }

    fn run_block(&self, command: BlockCommand) -> Result<Value, QmpError> {
        match command {
            BlockCommand::BlockdevAdd(options) => {
                let Some(name) = options.node_name.clone() else {
                    return Err(QmpError::root_without_name());
                };
                if self.has_node(&name) {
                    let text = format!("Duplicate nodes with node-name='{name}'");
                    return Err(QmpError::generic(text));
                }
                self.nodes.borrow_mut().push(*options);
                Ok(json!({}))
            }
            BlockCommand::BlockdevDel(BlockdevDel { node_name }) => {
                if !self.has_node(&node_name) {
                    return Err(QmpError::node_not_found(&node_name));
                }
                let used = self.job.borrow().as_ref().is_some_and(|j| j.target == node_name);
                if used {
                    return Err(QmpError::generic(format!("Node {node_name} is in use")));
                }
                let named = |o: &BlockdevOptions| o.node_name.as_deref() == Some(&node_name);
                self.nodes.borrow_mut().retain(|o| !named(o));
                Ok(json!({}))
            }
            BlockCommand::QueryBlock => command::reply(&vec![self.disk()]),
            BlockCommand::QueryNamedBlockNodes(_) => command::reply(&self.named_nodes()),
            BlockCommand::QueryBlockstats(_) => Ok(json!([])),
            BlockCommand::BlockdevMirror(arguments) => self.mirror(arguments),
            other => self.run_job(other),
        }
    }

    fn has_node(&self, name: &str) -> bool {
        self.nodes.borrow().iter().any(|o| o.node_name.as_deref() == Some(name))
    }

    fn disk(&self) -> BlockInfo {
        let name = self.pivoted.borrow().clone().unwrap_or_else(|| "disk0-file".to_owned());
        BlockInfo {
            device: "disk0".into(),
            qdev: Some("/machine/peripheral/disk0".into()),
            kind: "unknown".into(),
            removable: false,
            locked: false,
            inserted: Some(node(&name)),
            tray_open: None,
            io_status: Some(IoStatus::Ok),
        }
    }

    fn named_nodes(&self) -> Vec<BlockDeviceInfo> {
        let nodes = self.nodes.borrow();
        nodes.iter().filter_map(|o| o.node_name.as_deref()).map(node).collect()
    }

    fn mirror(&self, arguments: BlockdevMirror) -> Result<Value, QmpError> {
        if arguments.device != "disk0" && !self.has_node(&arguments.device) {
            return Err(QmpError::node_or_device_not_found(&arguments.device));
        }
        if !self.has_node(&arguments.target) {
            return Err(QmpError::node_or_device_not_found(&arguments.target));
        }
        let id = arguments.job_id.unwrap_or(arguments.device);
        self.status(&id, JobStatus::Created);
        self.status(&id, JobStatus::Running);
        let speed = arguments.speed.unwrap_or(0);
        let named = |o: &&BlockdevOptions| o.node_name.as_ref() == Some(&arguments.target);
        // A target whose file has "fail" in its name runs full halfway.
        let fail = self
            .nodes
            .borrow()
            .iter()
            .find(named)
            .is_some_and(|options| serde_json::to_string(options).unwrap().contains("fail"));
        let (status, target, offset) = (JobStatus::Running, arguments.target, 0);
        *self.job.borrow_mut() =
            Some(FakeJob { id, target, status, offset, speed, fail, ending: None });
        Ok(json!({}))
    }

    fn run_job(&self, command: BlockCommand) -> Result<Value, QmpError> {
        match command {
            BlockCommand::QueryJobs => {
                command::reply(&self.job.borrow().iter().map(FakeJob::job_info).collect::<Vec<_>>())
            }
            BlockCommand::QueryBlockJobs => {
                command::reply(&self.job.borrow().iter().map(FakeJob::info).collect::<Vec<_>>())
            }
            BlockCommand::BlockJobComplete(BlockJobDevice { device }) => {
                self.end(&device, "complete", block_job_missing)
            }
            BlockCommand::BlockJobCancel(BlockJobCancel { device, force }) => {
                let verb = if force == Some(true) { "cancel" } else { "soft" };
                self.end(&device, verb, block_job_missing)
            }
            BlockCommand::JobCancel(JobId { id }) => self.end(&id, "cancel", job_missing),
            BlockCommand::JobComplete(JobId { id }) => self.end(&id, "complete", job_missing),
            BlockCommand::BlockJobSetSpeed(BlockJobSetSpeed { device, speed }) => {
                match self.job.borrow_mut().as_mut().filter(|job| job.id == device) {
                    Some(job) => job.speed = speed,
                    None => return Err(block_job_missing(&device)),
                }
                Ok(json!({}))
            }
            BlockCommand::BlockJobPause(a) | BlockCommand::BlockJobResume(a) => {
                Err(block_job_missing(&a.device))
            }
            BlockCommand::JobPause(a)
            | BlockCommand::JobResume(a)
            | BlockCommand::JobFinalize(a)
            | BlockCommand::JobDismiss(a) => Err(job_missing(&a.id)),
            BlockCommand::BlockJobFinalize(a) | BlockCommand::BlockJobDismiss(a) => {
                Err(block_job_missing(&a.id))
            }
            other => Err(QmpError::generic(format!("the fake has no {}", other.name()))),
        }
    }

    fn end(&self, id: &str, verb: &str, missing: fn(&str) -> QmpError) -> Result<Value, QmpError> {
        let mut slot = self.job.borrow_mut();
        let Some(job) = slot.as_mut().filter(|job| job.id == id) else {
            return Err(missing(id));
        };
        let ready = job.status == JobStatus::Ready;
        job.ending = Some(match (verb, ready) {
            ("complete", false) => {
                return Err(QmpError::job_verb(id, job.status.as_str(), "complete"));
            }
            ("complete", true) => Ending::Pivot,
            ("soft", true) => Ending::Keep,
            _ => Ending::Cancel,
        });
        Ok(json!({}))
    }

    fn run_migration(&self, command: MachineCommand) -> Result<Value, QmpError> {
        match command {
            MachineCommand::Migrate(Migrate { uri, .. }) => {
                if !uri.starts_with("tcp:") && !uri.starts_with("unix:") {
                    return Err(QmpError::migration_protocol());
                }
                let (fail, endless) = (uri.contains("fail"), uri.contains("endless"));
                let status = MigrationStatus::Setup;
                self.migration_event(status);
                *self.migration.borrow_mut() =
                    Some(FakeMigration { status, sent: 0, fail, endless });
                Ok(json!({}))
            }
            MachineCommand::MigrateIncoming(_) => Err(QmpError::not_incoming()),
            MachineCommand::MigrateCancel => {
                use MigrationStatus::{Active, Cancelling, Setup};
                if let Some(m) = self.migration.borrow_mut().as_mut()
                    && matches!(m.status, Setup | Active)
                {
                    m.status = Cancelling;
                    self.migration_event(Cancelling);
                }
                Ok(json!({}))
            }
            MachineCommand::QueryMigrate => command::reply(&self.migration_info()),
            MachineCommand::MigrateSetParameters(new) => {
                if new.downtime_limit.is_some_and(|ms| ms > MAX_DOWNTIME_LIMIT_MS) {
                    return Err(QmpError::downtime_limit());
                }
                let mut parameters = self.parameters.borrow_mut();
                parameters.max_bandwidth = new.max_bandwidth.or(parameters.max_bandwidth);
                parameters.downtime_limit = new.downtime_limit.or(parameters.downtime_limit);
                Ok(json!({}))
            }
            MachineCommand::QueryMigrateParameters => command::reply(&*self.parameters.borrow()),
            MachineCommand::MigrateSetCapabilities(new) => {
                for c in new.capabilities {
                    if c.capability == MigrationCapability::Events {
                        self.send_migration_events.set(c.state);
                    }
                }
                Ok(json!({}))
            }
            MachineCommand::QueryMigrateCapabilities => {
                let all = MigrationCapability::ALL.iter().map(|c| MigrationCapabilityStatus {
                    capability: *c,
                    state: *c == MigrationCapability::Events && self.send_migration_events.get(),
                });
                command::reply(&all.collect::<Vec<_>>())
            }
            other => Err(QmpError::generic(format!("the fake has no {}", other.name()))),
        }
    }

    fn migration_info(&self) -> MigrationInfo {
        let slot = self.migration.borrow();
        let Some(m) = slot.as_ref() else { return MigrationInfo::default() };
        let done = m.status == MigrationStatus::Completed;
        let sent = m.sent.min(DISK_BYTES);
        MigrationInfo {
            status: Some(m.status),
            ram: Some(MigrationStats {
                transferred: m.sent,
                remaining: DISK_BYTES - sent,
                total: DISK_BYTES,
                mbps: 8000.0,
                dirty_sync_count: 2,
                page_size: 4096,
                ..MigrationStats::default()
            }),
            total_time: Some(m.sent / TICK_BYTES),
            expected_downtime: (!done).then_some(7),
            downtime: done.then_some(3),
            setup_time: Some(1),
            error_desc: m.fail.then(|| "Unable to write to socket: Broken pipe".to_owned()),
            ..MigrationInfo::default()
        }
    }
}

fn block_job_missing(id: &str) -> QmpError {
    QmpError::block_job_not_found(id)
}

fn job_missing(_id: &str) -> QmpError {
    QmpError::job_not_found()
}

fn node(name: &str) -> BlockDeviceInfo {
    BlockDeviceInfo {
        file: format!("/images/{name}"),
        node_name: Some(name.to_owned()),
        drv: "raw".into(),
        image: ImageInfo {
            filename: format!("/images/{name}"),
            format: "raw".into(),
            actual_size: Some(DISK_BYTES),
            virtual_size: DISK_BYTES,
            ..ImageInfo::default()
        },
        cache: BlockdevCacheInfo { writeback: true, ..BlockdevCacheInfo::default() },
        ..BlockDeviceInfo::default()
    }
}

impl Controller for FakeMachine {
    fn execute(self: Rc<Self>, command: Command) -> LocalBoxFuture<Result<Value, QmpError>> {
        Box::pin(async move { self.run(command) })
    }
}
