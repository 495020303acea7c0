//! The arrows of the run-state machine.

use super::*;

fn at(state: RunState) -> Lifecycle {
    Lifecycle { state }
}

#[test]
fn a_plain_life_runs_pauses_and_ends() {
    let mut life = Lifecycle::new(false);
    assert_eq!(life.state(), RunState::Prelaunch);
    for step in [RunState::Running, RunState::Paused, RunState::Running, RunState::Shutdown] {
        life.transition(step).unwrap();
    }
    let refused = life.transition(RunState::Running).unwrap_err();
    assert_eq!(refused, BadTransition { from: RunState::Shutdown, to: RunState::Running });
    life.after_reset();
    assert_eq!(life.transition(RunState::Running), Ok(RunState::Prelaunch));
}

#[test]
fn a_migration_leaves_or_comes_back() {
    let mut source = at(RunState::Running);
    source.transition(RunState::FinishMigrate).unwrap();
    source.transition(RunState::Running).unwrap();
    source.transition(RunState::FinishMigrate).unwrap();
    source.transition(RunState::PostMigrate).unwrap();
    assert!(source.transition(RunState::Paused).is_err());

    let mut destination = Lifecycle::new(true);
    assert_eq!(destination.state(), RunState::InMigrate);
    destination.transition(RunState::Running).unwrap();
}

#[test]
fn nothing_starts_waiting_for_a_migration_once_it_has_run() {
    for state in RunState::ALL {
        let allowed = matches!(state, RunState::Prelaunch | RunState::InMigrate);
        assert_eq!(at(state).transition(RunState::InMigrate).is_ok(), allowed, "{state}");
    }
}

#[test]
fn only_a_running_guest_can_fail_or_power_off_by_itself() {
    let by_itself = [RunState::Shutdown, RunState::GuestPanicked, RunState::InternalError];
    for to in by_itself {
        for from in [RunState::Prelaunch, RunState::Paused, RunState::PostMigrate] {
            assert!(at(from).transition(to).is_err(), "{from} -> {to}");
        }
        assert!(at(RunState::Running).transition(to).is_ok());
    }
}

#[test]
fn every_state_but_the_migrating_ones_resets_to_prelaunch_unless_it_runs() {
    for state in RunState::ALL {
        let mut life = at(state);
        life.after_reset();
        let kept =
            matches!(state, RunState::Running | RunState::InMigrate | RunState::FinishMigrate);
        assert_eq!(life.state(), if kept { state } else { RunState::Prelaunch });
    }
}
