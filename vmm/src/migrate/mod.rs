//! Live migration of this machine: joins `migration`, which knows how guests move, with the machine,
//! its disks and QMP.
//!
//! A migration runs on a thread of its own and blocks there; whatever touches the machine it asks the
//! control thread to do ([`source`] and [`dest`] are these requests). [`command`] is the QMP side.

mod command;
mod dest;
mod facts;
mod source;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ferry_api::EventKind;
use ferry_api::command::{MigrationCapability, MigrationStatus};
use ferry_api::event::{MigrationData, MigrationPassData};
use ferry_migration::Session;
use ferry_migration::session::Tuning;
use ferry_migration::stats::Status;
use ferry_migration::transport::{Listener, Uri};
use ferry_storage::signed;

use crate::control::{Change, Control};
use crate::error::{Error, ErrorKind, Result};
use crate::exit::Ending;

/// What this process knows of migrations: parameters, and the one that runs or ran last.
pub(crate) struct Migrations {
    tuning: Tuning,
    capabilities: RefCell<Vec<MigrationCapability>>,
    session: RefCell<Option<Session>>,
    /// Where an incoming migration listens.
    listening: RefCell<Option<Uri>>,
    /// Started to receive a guest, and nobody said yet where from.
    awaits_uri: Cell<bool>,
    /// Whether a guest that ran at the source runs here as soon as it has arrived.
    start_on_arrival: Cell<bool>,
    /// Held from the moment an outgoing migration stops the guest until its fate is known.
    change: RefCell<Option<Change>>,
}

impl Migrations {
    /// None yet. `incoming`: this process was started to receive a guest; `paused`: and to keep it so.
    pub(crate) fn new(incoming: bool, paused: bool) -> Migrations {
        Migrations {
            tuning: Tuning::default(),
            capabilities: RefCell::default(),
            session: RefCell::default(),
            listening: RefCell::default(),
            awaits_uri: Cell::new(incoming),
            start_on_arrival: Cell::new(!paused),
            change: RefCell::default(),
        }
    }

    /// Whether the guest shall run when it arrives.
    pub(crate) fn set_start_on_arrival(&self, start: bool) {
        self.start_on_arrival.set(start);
    }

    /// Gives up whatever can still be given up: the process ends.
    pub(crate) fn cancel_for_the_end(&self) {
        if let Some(session) = &*self.session.borrow()
            && let Err(error) = session.cancel()
        {
            tracing::info!("{error}");
        }
    }

    fn is_busy(&self) -> bool {
        self.status().is_busy()
    }

    fn status(&self) -> Status {
        let session = self.session.borrow();
        session.as_ref().map_or(Status::None, |session| session.stats.snapshot().status)
    }

    /// `cancelling` was announced: of what was on its way then, only the end is still news.
    fn is_cancelling(&self) -> bool {
        self.status() == Status::Cancelling
    }

    fn begin(&self) -> Result<Session> {
        let session = Session::new(self.tuning.clone())?;
        self.session.replace(Some(session.clone()));
        Ok(session)
    }

    fn has(&self, capability: MigrationCapability) -> bool {
        self.capabilities.borrow().contains(&capability)
    }
}

impl Control {
    /// Listens at `uri` for a guest and lets it in.
    pub(crate) fn receive(self: &Rc<Self>, uri: &str) -> Result<()> {
        if !self.migrations.awaits_uri.get() {
            let text = "The incoming migration has already been started";
            return Err(Error::new(ErrorKind::RunState, text));
        }
        let listener = Listener::bind(&Uri::parse(uri)?)?;
        let session = self.migrations.begin()?;
        self.migrations.listening.replace(Some(listener.uri()?));
        self.migrations.awaits_uri.set(false);
        self.migration_status(Status::Setup);
        let mut machine = dest::Dest::new(self)?;
        let door = self.door();
        start_thread("migrate-in", move || {
            let failed = dest::receive(listener, &mut machine, &session);
            door.post(move |control| {
                control.migrations.listening.replace(None);
                if let Some(error) = failed {
                    let context = "the incoming migration failed";
                    let error = Error::because(ErrorKind::State, context, error);
                    control.end(Ending::Failed(error));
                }
            });
        })
    }

    /// Starts to send the guest to `uri`. How it goes is in `query-migrate` and in events.
    fn send(self: &Rc<Self>, uri: Uri) -> Result<()> {
        let session = self.migrations.begin()?;
        self.migration_status(Status::Setup);
        let mut machine = source::Source::new(self)?;
        start_thread("migrate-out", move || source::send(uri, &mut machine, &session))
    }

    /// Emits `MIGRATION`, if somebody wants to hear it.
    fn migration_status(&self, status: Status) {
        if self.migrations.has(MigrationCapability::Events) {
            self.event(EventKind::Migration(MigrationData { status: qmp_status(status) }));
        }
    }

    /// Emits `MIGRATION_PASS`, if somebody wants to hear it.
    fn migration_pass(&self, pass: u64) {
        if self.migrations.has(MigrationCapability::Events) {
            self.event(EventKind::MigrationPass(MigrationPassData { pass: signed(pass) }));
        }
    }
}

/// Starts the thread of a migration; it reports its own end.
fn start_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map(drop)
        .map_err(|e| Error::host("start a thread for the migration", e))
}

fn qmp_status(status: Status) -> MigrationStatus {
    match status {
        Status::None => MigrationStatus::None,
        Status::Setup => MigrationStatus::Setup,
        Status::Active => MigrationStatus::Active,
        Status::Device => MigrationStatus::Device,
        Status::Completed => MigrationStatus::Completed,
        Status::Failed => MigrationStatus::Failed,
        Status::Cancelling => MigrationStatus::Cancelling,
        Status::Cancelled => MigrationStatus::Cancelled,
    }
}
