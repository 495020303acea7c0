//! The machine that a guest arrives in, as the migration thread sees it.

use std::sync::Arc;

use ferry_block::BlockGraph;
use ferry_migration::dest::run;
use ferry_migration::handshake::Facts;
use ferry_migration::machine::DestMachine;
use ferry_migration::ram::GuestRam;
use ferry_migration::state::Sections;
use ferry_migration::stats::Status;
use ferry_migration::transport::Listener;
use ferry_migration::{Error, ErrorKind, Session};

use super::facts;
use super::source::ask;
use crate::control::{Control, ControlDoor};
use crate::error::Result;
use crate::lifecycle::RunState;
use crate::memory::Ram;

type MigrationResult<T> = ferry_migration::Result<T>;

/// The machine of the control thread behind `door`.
pub(super) struct Dest {
    door: ControlDoor,
    ram: Arc<Ram>,
    facts: Facts,
}

/// Waits for a guest and takes it in; blocks until it is here or certainly not. Returns why not.
pub(super) fn receive(listener: Listener, machine: &mut Dest, session: &Session) -> Option<Error> {
    let stream = match listener.accept(&session.canceller) {
        Ok(stream) => stream,
        Err(error) => return Some(error),
    };
    // There is one guest to take in: nobody else shall wait for an answer, and the address is free again.
    drop(listener);
    let (end, error) = run(stream, machine, session);
    match (end, error) {
        (ferry_migration::dest::End::Arrived, None) => tracing::info!("the guest has arrived"),
        (ferry_migration::dest::End::Arrived, Some(error)) => {
            tracing::warn!("the guest has arrived, but: {error}");
        }
        (_, Some(error)) => return Some(error),
        (end, None) => {
            return Some(Error::new(ErrorKind::Machine, format!("it ended in {end:?}")));
        }
    }
    None
}

impl Dest {
    pub(super) fn new(control: &Control) -> Result<Dest> {
        Ok(Dest {
            door: control.door(),
            ram: Arc::new(control.machine.ram().clone()),
            facts: facts::of(&control.machine),
        })
    }
}

impl DestMachine for Dest {
    /// The disks as the source has them by now: it may have resized one since we opened it.
    fn facts(&self) -> Facts {
        let look = ask(&self.door, |control| async move {
            let refresh = |graph: BlockGraph| async move { graph.refresh().await };
            control.blocks().call(refresh).await.and_then(|done| done)?;
            Ok(facts::of(&control.machine))
        });
        look.unwrap_or_else(|error: ferry_migration::Error| {
            tracing::warn!("the disks are taken to be as they were: {error}");
            self.facts.clone()
        })
    }

    fn ram(&self) -> Arc<dyn GuestRam> {
        self.ram.clone()
    }

    fn restore(&mut self, mut sections: Sections) -> MigrationResult<()> {
        ask(&self.door, move |control| async move {
            control.machine.restore_state(&mut sections)?;
            Ok(sections.finish()?)
        })
    }

    fn activate(&mut self) -> MigrationResult<()> {
        ask(&self.door, |control| async move {
            let take = |graph: BlockGraph| async move { graph.activate_all(None).await };
            Ok(control.blocks().call(take).await.and_then(|taken| taken)?)
        })
    }

    fn release(&mut self) -> MigrationResult<()> {
        ask(&self.door, |control| async move {
            let give_up = |graph: BlockGraph| async move { graph.inactivate_all().await };
            Ok(control.blocks().call(give_up).await.and_then(|given| given)?)
        })
    }

    fn run_guest(&mut self, run: bool) -> MigrationResult<()> {
        ask(&self.door, move |control| async move {
            let change = control.change().await;
            if run && control.migrations.start_on_arrival.get() {
                return control.go(&change);
            }
            control.machine.set_run_state(RunState::Paused)?;
            Ok(())
        })
    }

    fn status(&mut self, status: Status) {
        // `setup` was announced when listening began.
        if status != Status::Setup && status != Status::Device {
            self.door.post(move |control| control.migration_status(status));
        }
    }
}
