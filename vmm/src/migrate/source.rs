//! The machine that a guest leaves, as the migration thread sees it.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use ferry_block::{BlockGraph, ErrorKind as BlockErrorKind, Generations};
use ferry_migration::handshake::Facts;
use ferry_migration::machine::{DirtySource, Ownership, SourceMachine, TakeBack, TookBack};
use ferry_migration::ram::{GuestRam, PageBitmap, RamMap};
use ferry_migration::source::{Peer, run};
use ferry_migration::state::Sections;
use ferry_migration::stats::Status;
use ferry_migration::transport::Uri;
use ferry_migration::{Error as MigrationError, ErrorKind as MigrationErrorKind, Session};

use super::facts;
use crate::control::{Control, ControlDoor};
use crate::error::{Error, Result};
use crate::lifecycle::RunState;
use crate::memory::Ram;

type MigrationResult<T> = ferry_migration::Result<T>;

/// The machine of the control thread behind `door`.
pub(super) struct Source {
    door: ControlDoor,
    ram: Arc<Ram>,
    map: RamMap,
    facts: Facts,
    /// What the guest was doing when it was stopped.
    stopped_from: RunState,
    /// The marks of the disks as they were when they were given up.
    generations: Option<Generations>,
}

/// Sends the guest to `uri`; blocks until it is there or certainly not.
pub(super) fn send(uri: Uri, machine: &mut Source, session: &Session) {
    let (end, error) = run(Peer::Uri(uri), machine, session);
    match error {
        Some(error) => tracing::warn!("outgoing migration: {end:?}: {error}"),
        None => tracing::info!("outgoing migration: {end:?}"),
    }
}

impl Source {
    pub(super) fn new(control: &Control) -> Result<Source> {
        let ram = Arc::new(control.machine.ram().clone());
        Ok(Source {
            door: control.door(),
            map: RamMap::new(ram.clone())?,
            ram,
            facts: facts::of(&control.machine),
            stopped_from: RunState::Running,
            generations: None,
        })
    }

    /// Has the control thread do something to the machine.
    fn ask<R, F, Fut>(&self, call: F) -> MigrationResult<R>
    where
        R: Send + 'static,
        F: FnOnce(Rc<Control>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R>> + 'static,
    {
        ask(&self.door, call)
    }
}

/// Has the control thread behind `door` do something.
pub(super) fn ask<R, F, Fut>(door: &ControlDoor, call: F) -> MigrationResult<R>
where
    R: Send + 'static,
    F: FnOnce(Rc<Control>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<R>> + 'static,
{
    let answer = door.call_blocking(call);
    let ended = || MigrationError::new(MigrationErrorKind::Machine, "the machine has ended");
    answer.ok_or_else(ended)?.map_err(machine_error)
}

/// An error of the machine as the migration reports it: the whole story in one line.
pub(super) fn machine_error(error: Error) -> MigrationError {
    MigrationError::new(MigrationErrorKind::Machine, error.line())
}

impl DirtySource for Source {
    fn start(&mut self) -> MigrationResult<()> {
        self.ram.start_dirty_log().map_err(machine_error)
    }

    fn sync(&mut self, dirty: &mut PageBitmap) -> MigrationResult<()> {
        self.ram.take_dirty(&self.map, dirty).map_err(machine_error)
    }

    fn stop(&mut self) {
        if let Err(error) = self.ram.stop_dirty_log() {
            tracing::warn!("{}", error.line());
        }
    }
}

impl SourceMachine for Source {
    fn facts(&self) -> Facts {
        self.facts.clone()
    }

    fn ram(&self) -> Arc<dyn GuestRam> {
        self.ram.clone()
    }

    fn stop_guest(&mut self) -> MigrationResult<()> {
        self.stopped_from = self.ask(|control| async move {
            // What changes the graph ends first: the guest would stand still for as long as that takes.
            let wait = |graph: BlockGraph| async move { drop(graph.turn().await) };
            control.blocks().call(wait).await?;
            let change = control.change().await;
            let was = control.machine.run_state();
            let halted = control.halt(&change, RunState::FinishMigrate).await;
            control.migrations.change.replace(Some(change));
            halted.map(|()| was)
        })?;
        Ok(())
    }

    fn was_running(&self) -> bool {
        self.stopped_from == RunState::Running
    }

    fn save(&mut self) -> MigrationResult<Sections> {
        self.ask(|control| async move {
            let mut sections = Sections::new();
            control.machine.save_state(&mut sections)?;
            Ok(sections)
        })
    }

    fn inactivate(&mut self) -> MigrationResult<Ownership> {
        let generations = self.ask(|control| async move {
            let give_up = |graph: BlockGraph| async move { graph.hand_over().await };
            Ok(control.blocks().call(give_up).await.and_then(|given| given)?)
        })?;
        let marks = generations.iter().map(|(name, mark)| (name.to_owned(), mark)).collect();
        self.generations = Some(generations);
        Ok(Ownership { marks })
    }

    fn take_back(&mut self, rule: TakeBack, _ownership: &Ownership) -> TookBack {
        // Without marks to compare the graph finds no proof and says so.
        let only_if = match rule {
            TakeBack::Freely => None,
            TakeBack::OnlyIfUnchanged => Some(self.generations.clone().unwrap_or_default()),
        };
        let taken = self.ask(|control| async move {
            let take =
                |graph: BlockGraph| async move { graph.activate_all(only_if.as_ref()).await };
            Ok(control.blocks().call(take).await.and_then(|taken| taken))
        });
        match taken {
            Ok(Ok(())) => TookBack::Ours,
            Ok(Err(error)) => match error.kind() {
                BlockErrorKind::Locked => TookBack::HeldElsewhere(error.to_string()),
                BlockErrorKind::OwnershipUnknown => TookBack::NoProof(error.to_string()),
                _ => TookBack::Failed(machine_error(error.into())),
            },
            Err(error) => TookBack::Failed(error),
        }
    }

    fn resume_guest(&mut self) -> MigrationResult<()> {
        let state = self.stopped_from;
        self.ask(move |control| async move {
            let Some(change) = control.migrations.change.take() else { return Ok(()) };
            if control.machine.run_state() != RunState::FinishMigrate {
                return Ok(());
            }
            if state == RunState::Running {
                return control.go(&change);
            }
            control.machine.set_run_state(state)?;
            Ok(())
        })
    }

    fn forget(&mut self) {
        self.door.post(|control| {
            if let Err(error) = control.machine.set_run_state(RunState::PostMigrate) {
                tracing::error!("{error}");
            }
            control.migrations.change.take();
        });
    }

    fn status(&mut self, status: Status) {
        match status {
            // Announced by the command, so that it comes before the command's reply.
            Status::Setup => {}
            Status::Active => self.door.post(|control| {
                if !control.migrations.is_cancelling() {
                    control.migration_status(Status::Active);
                }
            }),
            // Clients know it as the state after a pause before the switch, which nobody asked for.
            Status::Device => {}
            status => self.door.post(move |control| {
                control.migration_status(status);
                if !status.is_busy() {
                    release(control);
                }
            }),
        }
    }

    fn pass(&mut self, pass: u64) {
        self.door.post(move |control| control.migration_pass(pass));
    }
}

/// The migration is over: commands may change the run state again. A guest that neither left nor was
/// resumed stands still, because nobody knows whether the destination runs it. It counts as migrated
/// away, so that only an operator who says `force` can start it here.
fn release(control: &Control) {
    if control.machine.run_state() == RunState::FinishMigrate {
        tracing::error!(
            "it is unknown whether the destination runs the guest: make sure that it does not before \
             you start it here with cont and \"__org.ferry_force\": true"
        );
        if let Err(error) = control.machine.set_run_state(RunState::PostMigrate) {
            tracing::error!("{error}");
        }
    }
    control.migrations.change.take();
}
