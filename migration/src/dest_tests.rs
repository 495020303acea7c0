use super::*;

fn error(kind: ErrorKind) -> Error {
    Error::new(kind, format!("{kind:?}"))
}

fn failed() -> Event {
    Event::Failed(error(ErrorKind::Io))
}

fn at(target: State) -> (Handover, Action) {
    let (mut handover, mut action) = Handover::start();
    let mut way = [
        Event::Agreed,
        Event::Loaded,
        Event::Restored,
        Event::Said,
        Event::Committed,
        Event::Activated,
        Event::Said,
        Event::Started,
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
        State::Loading,
        State::Restoring,
        State::SayingPrepared,
        State::AwaitingCommit,
        State::Activating,
        State::SayingRunning,
        State::Starting,
        State::Over(End::Arrived),
    ]
    .into_iter()
    .map(at)
    .map(|(handover, action)| (action, handover.status()))
    .collect();
    assert_eq!(
        seen,
        [
            (Action::Handshake, Status::Setup),
            (Action::Load, Status::Active),
            (Action::Restore, Status::Active),
            (Action::SayPrepared, Status::Active),
            (Action::AwaitCommit, Status::Active),
            (Action::Activate, Status::Active),
            (Action::SayRunning, Status::Active),
            (Action::Start, Status::Active),
            (Action::Finish, Status::Completed),
        ]
    );
}

#[test]
fn before_commit_every_failure_is_told_and_ends_it() {
    for (state, end) in [
        (State::Setup, End::Untouched),
        (State::Loading, End::Failed),
        (State::Restoring, End::Failed),
        (State::SayingPrepared, End::Failed),
        (State::AwaitingCommit, End::Failed),
    ] {
        for last in [Event::Said, failed()] {
            let (mut handover, _) = at(state);
            assert_eq!(handover.on(failed()), Action::SayFailed);
            assert_eq!(handover.on(last), Action::Finish);
            assert_eq!(handover.state(), State::Over(end), "from {state:?}");
            assert_eq!(handover.status(), Status::Failed);
        }
    }
}

#[test]
fn a_cancel_before_commit_ends_as_cancelled() {
    let (mut handover, _) = at(State::Loading);
    handover.on(Event::Failed(error(ErrorKind::Cancelled)));
    handover.on(Event::Said);
    assert_eq!(handover.status(), Status::Cancelled);
}

#[test]
fn disks_that_cannot_be_taken_are_given_back_before_refusing() {
    for last in [Event::Said, failed()] {
        let (mut handover, _) = at(State::Activating);
        assert_eq!(handover.on(failed()), Action::Release);
        assert_eq!(handover.on(Event::Released), Action::SayRefused);
        assert_eq!(handover.on(last), Action::Finish);
        assert_eq!(handover.state(), State::Over(End::Failed));
    }
}

#[test]
fn nothing_is_promised_when_disks_cannot_be_given_back() {
    let (mut handover, _) = at(State::Activating);
    handover.on(failed());
    assert_eq!(handover.on(Event::Failed(error(ErrorKind::Machine))), Action::Finish);
    assert_eq!(handover.state(), State::Over(End::Unreleased));
    assert_eq!(handover.cause().unwrap().report(), "Machine; and they could not be released: Io");
}

#[test]
fn with_the_disks_taken_the_guest_runs_here_whatever_the_source_hears() {
    let (mut handover, _) = at(State::SayingRunning);
    assert_eq!(handover.on(failed()), Action::Start);
    assert_eq!(handover.on(Event::Started), Action::Finish);
    assert_eq!(handover.state(), State::Over(End::Arrived));
    assert!(handover.cause().unwrap().report().contains("could not be told"));
}

#[test]
fn a_guest_that_does_not_start_is_here_all_the_same() {
    let (mut handover, _) = at(State::Starting);
    handover.on(failed());
    assert_eq!(handover.state(), State::Over(End::Arrived));
    assert_eq!(handover.status(), Status::Completed);
}

#[test]
fn an_event_out_of_place_never_takes_the_disks() {
    let every = [
        || Event::Agreed,
        || Event::Loaded,
        || Event::Restored,
        || Event::Said,
        || Event::Committed,
        || Event::Activated,
        || Event::Released,
        || Event::Started,
        failed as fn() -> Event,
    ];
    for state in [State::Setup, State::Loading, State::Restoring, State::SayingPrepared] {
        for event in every {
            let (mut handover, _) = at(state);
            assert_ne!(handover.on(event()), Action::Activate, "from {state:?}");
        }
    }
}
