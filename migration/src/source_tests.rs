use super::*;

fn error(kind: ErrorKind) -> Error {
    Error::new(kind, format!("{kind:?}"))
}

fn failed() -> Event {
    Event::Failed(error(ErrorKind::Io))
}

fn cancelled() -> Event {
    Event::Failed(error(ErrorKind::Cancelled))
}

fn ownership() -> Ownership {
    Ownership { marks: vec![("disk".into(), Some(7))] }
}

/// The good way, up to `target`; the machine and its outstanding action.
fn at(target: State) -> (Handover, Action) {
    let (mut handover, mut action) = Handover::start();
    let mut way = [
        Event::Ready,
        Event::Converged,
        Event::Stopped,
        Event::RestSent,
        Event::Prepared,
        Event::Inactivated(ownership()),
        Event::Committed,
        Event::Running,
        Event::Forgotten,
    ]
    .into_iter();
    while handover.state() != target {
        action = handover.on(way.next().expect("the target is on the way"));
    }
    (handover, action)
}

#[test]
fn the_good_way_has_qemus_statuses() {
    let seen: Vec<(Action, Status)> = [
        State::Setup,
        State::Copying,
        State::Stopping,
        State::SendingRest,
        State::AwaitingPrepared,
        State::Inactivating,
        State::Committing,
        State::AwaitingVerdict,
        State::Forgetting,
        State::Over(End::Moved),
    ]
    .into_iter()
    .map(at)
    .map(|(handover, action)| (action, handover.status()))
    .collect();
    assert_eq!(
        seen,
        [
            (Action::Prepare, Status::Setup),
            (Action::CopyRounds, Status::Active),
            (Action::StopGuest, Status::Active),
            (Action::SendRest, Status::Device),
            (Action::AwaitPrepared, Status::Device),
            (Action::Inactivate, Status::Device),
            (Action::Commit, Status::Device),
            (Action::AwaitVerdict, Status::Device),
            (Action::Forget, Status::Device),
            (Action::Finish, Status::Completed),
        ]
    );
}

#[test]
fn a_failure_while_the_guest_runs_leaves_it_alone() {
    for state in [State::Setup, State::Copying] {
        let (mut handover, _) = at(state);
        assert_eq!(handover.on(failed()), Action::Finish);
        assert_eq!(handover.state(), State::Over(End::Stayed));
        assert_eq!(handover.status(), Status::Failed);
        let (mut handover, _) = at(state);
        handover.on(cancelled());
        assert_eq!(handover.state(), State::Over(End::Cancelled));
        assert_eq!(handover.status(), Status::Cancelled);
    }
}

#[test]
fn a_failure_with_the_guest_stopped_resumes_it() {
    for state in [State::Stopping, State::SendingRest, State::AwaitingPrepared] {
        for (event, end) in [(failed(), End::Stayed), (cancelled(), End::Cancelled)] {
            let (mut handover, _) = at(state);
            assert_eq!(handover.on(event), Action::Resume);
            assert_eq!(handover.on(Event::Resumed(Ok(()))), Action::Finish);
            assert_eq!(handover.state(), State::Over(end));
        }
    }
}

#[test]
fn a_failure_with_the_disks_given_up_takes_them_back_first() {
    for state in [State::Inactivating, State::Committing] {
        for (event, end) in [(failed(), End::Stayed), (cancelled(), End::Cancelled)] {
            let (mut handover, _) = at(state);
            assert_eq!(handover.on(event), Action::TakeBack(TakeBack::Freely));
            assert_eq!(handover.on(Event::TookBack(TookBack::Ours)), Action::Resume);
            handover.on(Event::Resumed(Ok(())));
            assert_eq!(handover.state(), State::Over(end));
        }
    }
}

#[test]
fn refused_takes_the_disks_back_without_looking_at_marks() {
    let (mut handover, _) = at(State::AwaitingVerdict);
    let refused = Event::Refused(error(ErrorKind::Remote));
    assert_eq!(handover.on(refused), Action::TakeBack(TakeBack::Freely));
    handover.on(Event::TookBack(TookBack::Ours));
    handover.on(Event::Resumed(Ok(())));
    assert_eq!(handover.state(), State::Over(End::Stayed));
}

/// After Commit without an answer.
fn in_doubt() -> Handover {
    let (mut handover, _) = at(State::AwaitingVerdict);
    let action = handover.on(Event::NoAnswer(error(ErrorKind::Disconnected)));
    assert_eq!(action, Action::TakeBack(TakeBack::OnlyIfUnchanged));
    assert_eq!(handover.ownership(), &ownership());
    handover
}

#[test]
fn no_answer_asks_the_disks() {
    let mut ours = in_doubt();
    assert_eq!(ours.on(Event::TookBack(TookBack::Ours)), Action::Resume);

    let mut theirs = in_doubt();
    let held = Event::TookBack(TookBack::HeldElsewhere("'disk' is locked".into()));
    assert_eq!(theirs.on(held), Action::Forget);
    theirs.on(Event::Forgotten);
    assert_eq!(theirs.state(), State::Over(End::Moved));
    assert_eq!(
        theirs.cause().unwrap().report(),
        "the destination did not confirm, but it holds the disks: 'disk' is locked: Disconnected"
    );

    for outcome in [TookBack::NoProof("x".into()), TookBack::Failed(error(ErrorKind::Io))] {
        let mut nobody_knows = in_doubt();
        assert_eq!(nobody_knows.on(Event::TookBack(outcome)), Action::Finish);
        assert_eq!(nobody_knows.state(), State::Over(End::OwnershipUnknown));
        assert_eq!(nobody_knows.status(), Status::Failed);
        assert!(nobody_knows.cause().unwrap().report().contains("ownership unknown"));
    }
}

#[test]
fn disks_that_cannot_be_taken_back_leave_the_guest_paused() {
    for outcome in [
        TookBack::HeldElsewhere("x".into()),
        TookBack::NoProof("x".into()),
        TookBack::Failed(error(ErrorKind::Io)),
    ] {
        let (mut handover, _) = at(State::Inactivating);
        handover.on(failed());
        assert_eq!(handover.on(Event::TookBack(outcome)), Action::Finish);
        assert_eq!(handover.state(), State::Over(End::StayedPaused));
        assert_eq!(handover.status(), Status::Failed);
        assert!(handover.cause().unwrap().report().ends_with(": Io"), "the first cause is kept");
    }
}

#[test]
fn vcpus_that_do_not_start_leave_the_guest_paused() {
    let (mut handover, _) = at(State::Stopping);
    handover.on(failed());
    handover.on(Event::Resumed(Err(error(ErrorKind::Machine))));
    assert_eq!(handover.state(), State::Over(End::StayedPaused));
}

#[test]
fn an_event_out_of_place_never_moves_the_guest() {
    let every = || {
        [
            Event::Ready,
            Event::Converged,
            Event::Stopped,
            Event::RestSent,
            Event::Prepared,
            Event::Inactivated(ownership()),
            Event::Committed,
            Event::Running,
            Event::Refused(error(ErrorKind::Remote)),
            Event::NoAnswer(error(ErrorKind::Io)),
            Event::TookBack(TookBack::Ours),
            Event::Resumed(Ok(())),
            Event::Forgotten,
            Event::Failed(error(ErrorKind::Io)),
        ]
    };
    for state in [
        State::Setup,
        State::Copying,
        State::Stopping,
        State::SendingRest,
        State::AwaitingPrepared,
        State::Inactivating,
        State::Committing,
    ] {
        for event in every() {
            let (mut handover, _) = at(state);
            handover.on(event);
            assert_ne!(handover.state(), State::Forgetting, "from {state:?}");
            assert_ne!(handover.state(), State::Over(End::Moved), "from {state:?}");
        }
    }
    for event in every() {
        let moves = matches!(event, Event::Running);
        let freely = matches!(event, Event::Refused(_));
        let (mut handover, _) = at(State::AwaitingVerdict);
        let action = handover.on(event);
        let expected = match (moves, freely) {
            (true, _) => Action::Forget,
            (_, true) => Action::TakeBack(TakeBack::Freely),
            _ => Action::TakeBack(TakeBack::OnlyIfUnchanged),
        };
        assert_eq!(action, expected);
    }
}
