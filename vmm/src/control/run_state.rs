//! Starting, stopping, resetting and ending the guest by command.
//!
//! Each of these takes several steps with waiting in between, and two at once would mix: whoever
//! changes the run state holds a [`Change`].

use std::rc::Rc;

use ferry_api::command::{RunState as QmpRunState, ShutdownCause};
use ferry_api::event::ShutdownData;
use ferry_api::{EventKind, QmpError};

use super::Control;
use crate::error::{Error, Result};
use crate::exit::Ending;
use crate::lifecycle::RunState;

/// The right to change the run state.
pub(crate) struct Change(Rc<Control>);

impl Drop for Change {
    fn drop(&mut self) {
        self.0.changing.set(false);
        self.0.changed.notify_all();
    }
}

impl Control {
    /// Waits until nobody else changes the run state.
    pub(crate) async fn change(self: &Rc<Self>) -> Change {
        self.changed.wait_until(|| !self.changing.get()).await;
        self.changing.set(true);
        Change(Rc::clone(self))
    }

    /// `stop`
    pub(super) async fn stop(self: &Rc<Self>) -> std::result::Result<(), QmpError> {
        let change = self.change().await;
        if self.machine.run_state() == RunState::InMigrate {
            self.migrations.set_start_on_arrival(false);
        }
        if self.machine.run_state() == RunState::Running {
            self.halt(&change, RunState::Paused).await.map_err(machine_error)?;
        }
        Ok(())
    }

    /// `cont`
    pub(super) async fn cont(self: &Rc<Self>, force: bool) -> std::result::Result<(), QmpError> {
        if self.machine.run_state() == RunState::FinishMigrate {
            // Not worth waiting for: what comes next is not the caller's to decide.
            return Err(QmpError::generic("Migration is not finalized yet"));
        }
        let change = self.change().await;
        match self.machine.run_state() {
            RunState::Running => Ok(()),
            RunState::InMigrate => {
                self.migrations.set_start_on_arrival(true);
                Ok(())
            }
            state if state.needs_reset() => {
                Err(QmpError::generic("Resetting the Virtual Machine is required"))
            }
            RunState::PostMigrate if !force => Err(QmpError::generic(
                "This guest was migrated away and runs elsewhere: two running copies would destroy \
                 its disks. If you know that the destination is gone, use cont with \
                 \"__org.ferry_force\": true",
            )),
            _ => {
                self.own_disks().await?;
                self.go(&change).map_err(machine_error)
            }
        }
    }

    /// Takes the disks back, if a migration gave them up.
    async fn own_disks(&self) -> std::result::Result<(), QmpError> {
        let activate =
            |graph: ferry_block::BlockGraph| async move { graph.activate_all(None).await };
        let taken = self.blocks().call(activate).await.and_then(|taken| taken);
        taken.map_err(|error| QmpError::generic(error.to_string()))
    }

    /// `quit`
    pub(super) async fn quit(self: &Rc<Self>) -> std::result::Result<(), QmpError> {
        self.announce_shutdown(false, ShutdownCause::HostQmpQuit);
        self.wind_up(Ending::Quit).await;
        Ok(())
    }

    /// `system_powerdown`
    pub(super) fn power_down(&self) -> std::result::Result<(), QmpError> {
        self.event(EventKind::Powerdown);
        if !self.machine.press_power_button() {
            tracing::info!("the guest does not listen to its power button");
        }
        Ok(())
    }

    /// `system_reset`
    pub(super) async fn system_reset(self: &Rc<Self>) -> std::result::Result<(), QmpError> {
        self.reset(false, ShutdownCause::HostQmpSystemReset).await.map_err(machine_error)
    }

    /// Resets the guest; a running one starts again.
    pub(super) async fn reset(self: &Rc<Self>, guest: bool, reason: ShutdownCause) -> Result<()> {
        let change = self.change().await;
        let state = self.machine.run_state();
        if matches!(state, RunState::InMigrate | RunState::FinishMigrate | RunState::PostMigrate) {
            let why = format!("a machine in state '{state}' cannot be reset");
            return Err(Error::new(crate::ErrorKind::RunState, why));
        }
        self.machine.reset().await?;
        self.event(EventKind::Reset(ShutdownData { guest, reason }));
        drop(change);
        Ok(())
    }

    /// Stops vCPUs and disks and makes everything written durable. When a disk cannot be flushed the
    /// guest is stopped all the same.
    ///
    /// # Errors
    /// The run state does not allow it, or a disk could not be flushed.
    pub(crate) async fn halt(self: &Rc<Self>, _change: &Change, to: RunState) -> Result<()> {
        let was_running = self.machine.run_state() == RunState::Running;
        self.machine.pause(to)?;
        // What ends for good was announced as that.
        if was_running && to != RunState::Shutdown {
            self.event(EventKind::Stop);
        }
        self.machine.quiesce_disks().await;
        self.machine.flush_disks().await
    }

    /// Lets the guest run.
    pub(crate) fn go(self: &Rc<Self>, _change: &Change) -> Result<()> {
        // The event first: a guest can end its own life before we come back.
        self.event(EventKind::Resume);
        self.machine.resume()
    }

    /// Says that the end is near.
    pub(super) fn announce_shutdown(&self, guest: bool, reason: ShutdownCause) {
        self.event(EventKind::Shutdown(ShutdownData { guest, reason }));
    }

    /// Somebody on the host ends the process.
    pub(super) fn host_ends(self: &Rc<Self>, ending: Ending) {
        let reason = match ending {
            Ending::Signal(_) => ShutdownCause::HostSignal,
            _ => ShutdownCause::HostUi,
        };
        self.announce_shutdown(false, reason);
        let this = Rc::clone(self);
        drop(self.executor.spawn(async move { this.wind_up(ending).await }));
    }

    /// Stops everything in order, then ends the process.
    pub(super) async fn wind_up(self: &Rc<Self>, why: Ending) {
        self.migrations.cancel_for_the_end();
        let change = self.change().await;
        self.storage.cancel_jobs().await;
        if self.machine.run_state() == RunState::Running
            && let Err(error) = self.halt(&change, RunState::Shutdown).await
        {
            tracing::error!("{}", error.line());
        }
        // Images have things to write when they are given up: bitmaps, and that they are clean.
        if let Err(error) = self.storage.close().await {
            tracing::error!("{error}");
        }
        self.end(why);
    }
}

/// What a client reads of an error of the machine.
pub(crate) fn machine_error(error: Error) -> QmpError {
    QmpError::generic(error.line())
}

/// The run state in QMP's words.
pub(super) fn qmp_run_state(state: RunState) -> QmpRunState {
    match state {
        RunState::Prelaunch => QmpRunState::Prelaunch,
        RunState::Running => QmpRunState::Running,
        RunState::Paused => QmpRunState::Paused,
        RunState::InMigrate => QmpRunState::InMigrate,
        RunState::FinishMigrate => QmpRunState::FinishMigrate,
        RunState::PostMigrate => QmpRunState::PostMigrate,
        RunState::Shutdown => QmpRunState::Shutdown,
        RunState::GuestPanicked => QmpRunState::GuestPanicked,
        RunState::InternalError => QmpRunState::InternalError,
        RunState::IoError => QmpRunState::IoError,
    }
}
