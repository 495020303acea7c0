//! Both state machines against each other, in every possible world: each action may succeed or fail,
//! each message may arrive, be lost with the connection, or never be read because a process died, and
//! a cancel may come at any point. Checked in every one of them: never two owners, and no owner lost
//! for nothing.

use crate::dest;
use crate::error::{Error, ErrorKind};
use crate::machine::{Ownership, TakeBack, TookBack};
use crate::source;

/// The decisions of one world, replayed from the start each time: a depth-first walk of all of them.
#[derive(Default)]
struct Choices {
    taken: Vec<(usize, usize)>,
    next: usize,
}

impl Choices {
    fn choose(&mut self, options: usize) -> usize {
        if self.next == self.taken.len() {
            self.taken.push((0, options));
        }
        let (choice, known) = self.taken[self.next];
        assert_eq!(known, options, "a world must replay alike");
        self.next += 1;
        choice
    }

    /// Moves on to the next world; false when all were seen.
    fn advance(&mut self) -> bool {
        self.next = 0;
        while let Some((choice, options)) = self.taken.pop() {
            if choice + 1 < options {
                self.taken.push((choice + 1, options));
                return true;
            }
        }
        false
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Nobody,
    Source,
    Destination,
}

/// Which messages are on their way, and whether more can be.
#[derive(Debug, Default)]
struct Wire {
    cut: bool,
    commit: bool,
    running: bool,
    refused: bool,
    failed: bool,
}

struct World {
    choices: Choices,
    /// Do the disks keep generation marks?
    marks: bool,
    /// The lock on the one disk that both see.
    lock: Holder,
    generation: u64,
    wire: Wire,
    source_runs: bool,
    dest_runs: bool,
    dest_dead: bool,
    faults: u32,
}

const MAX_FAULTS: u32 = 3;

impl World {
    /// Does a fault happen here? Bounded, so that the walk ends.
    fn fault(&mut self) -> bool {
        if self.faults == MAX_FAULTS {
            return false;
        }
        let fault = self.choices.choose(2) == 1;
        self.faults += u32::from(fault);
        fault
    }

    /// The kernel closes its connection and drops its locks.
    fn kill_destination(&mut self) {
        self.dest_dead = true;
        self.dest_runs = false;
        self.wire.cut = true;
        if self.lock == Holder::Destination {
            self.lock = Holder::Nobody;
        }
    }

    fn check(&self) {
        assert!(!(self.source_runs && self.dest_runs), "two guests run");
        assert!(!self.source_runs || self.lock == Holder::Source, "the source runs unlocked");
        assert!(
            !self.dest_runs || self.dest_dead || self.lock == Holder::Destination,
            "the destination runs unlocked"
        );
    }
}

fn broken() -> Error {
    Error::new(ErrorKind::Disconnected, "cut")
}

fn wrong() -> Error {
    Error::new(ErrorKind::Machine, "fault")
}

/// One step of the source. `None` while it waits for the destination.
fn source_step(world: &mut World, action: source::Action) -> Option<source::Event> {
    use source::{Action, Event};
    let event = match action {
        Action::Prepare | Action::CopyRounds if world.wire.cut => Event::Failed(broken()),
        Action::Prepare => Event::Ready,
        Action::CopyRounds => Event::Converged,
        Action::StopGuest => {
            world.source_runs = false;
            if world.fault() { Event::Failed(wrong()) } else { Event::Stopped }
        }
        Action::SendRest if world.wire.cut => Event::Failed(broken()),
        Action::SendRest => Event::RestSent,
        Action::AwaitPrepared if world.wire.failed || world.wire.cut => Event::Failed(broken()),
        // The walk starts where the destination has loaded everything.
        Action::AwaitPrepared => Event::Prepared,
        Action::Inactivate => {
            world.lock = Holder::Nobody;
            let mark = world.marks.then_some(world.generation);
            let marks = vec![("disk".to_owned(), mark)];
            if world.fault() {
                Event::Failed(wrong())
            } else {
                Event::Inactivated(Ownership { marks })
            }
        }
        // A cancel, or a write that the kernel did not take.
        Action::Commit if world.fault() => Event::Failed(broken()),
        Action::Commit => {
            world.wire.commit = true;
            Event::Committed
        }
        Action::AwaitVerdict if world.wire.running => Event::Running,
        Action::AwaitVerdict if world.wire.refused || world.wire.failed => Event::Refused(wrong()),
        Action::AwaitVerdict if world.wire.cut => Event::NoAnswer(broken()),
        // The destination hangs: time is up. It may still be alive.
        Action::AwaitVerdict if world.fault() => Event::NoAnswer(broken()),
        Action::AwaitVerdict => return None,
        Action::TakeBack(rule) => {
            world.wire.cut = true;
            Event::TookBack(take_back(world, rule))
        }
        Action::Resume => {
            world.source_runs = true;
            Event::Resumed(Ok(()))
        }
        Action::Forget | Action::Finish => Event::Forgotten,
    };
    Some(event)
}

fn take_back(world: &mut World, rule: TakeBack) -> TookBack {
    match (world.lock, rule) {
        (Holder::Destination, _) => TookBack::HeldElsewhere("disk".into()),
        (_, TakeBack::Freely) => {
            world.lock = Holder::Source;
            TookBack::Ours
        }
        // The source's own mark when it gave the disk up was 0.
        (_, TakeBack::OnlyIfUnchanged) if world.marks && world.generation == 0 => {
            world.lock = Holder::Source;
            TookBack::Ours
        }
        _ => TookBack::NoProof("disk".into()),
    }
}

/// One step of the destination. `None` while it waits for the source.
fn dest_step(world: &mut World, action: dest::Action) -> Option<dest::Event> {
    use dest::{Action, Event};
    let event = match action {
        Action::Handshake => Event::Agreed,
        Action::Load => Event::Loaded,
        Action::Restore => Event::Restored,
        Action::SayPrepared => Event::Said,
        // What was sent before the cut still arrives.
        Action::AwaitCommit if world.wire.commit => Event::Committed,
        Action::AwaitCommit if world.wire.cut => Event::Failed(broken()),
        // It may give up by itself, as on `quit`.
        Action::AwaitCommit if world.fault() => Event::Failed(wrong()),
        Action::AwaitCommit => return None,
        Action::Activate => {
            if world.lock == Holder::Source || world.fault() {
                Event::Failed(wrong())
            } else {
                world.lock = Holder::Destination;
                world.generation += 1;
                if world.fault() { Event::Failed(wrong()) } else { Event::Activated }
            }
        }
        Action::Release if world.fault() => Event::Failed(wrong()),
        Action::Release => {
            if world.lock == Holder::Destination {
                world.lock = Holder::Nobody;
            }
            Event::Released
        }
        Action::SayRefused | Action::SayRunning | Action::SayFailed if world.wire.cut => {
            Event::Failed(broken())
        }
        Action::SayRefused => {
            world.wire.refused = true;
            Event::Said
        }
        Action::SayRunning => {
            world.wire.running = true;
            Event::Said
        }
        Action::SayFailed => {
            world.wire.failed = true;
            Event::Said
        }
        Action::Start => {
            world.dest_runs = true;
            Event::Started
        }
        Action::Finish => Event::Said,
    };
    Some(event)
}

/// What became of a world.
struct Outcome {
    source: source::State,
    dest: dest::State,
    dest_dead: bool,
}

/// Runs one world to its end, interleaving both sides in every order.
fn run(choices: Choices, marks: bool) -> (Choices, Outcome) {
    let mut world = World {
        choices,
        marks,
        lock: Holder::Source,
        generation: 0,
        wire: Wire::default(),
        source_runs: true,
        dest_runs: false,
        dest_dead: false,
        faults: 0,
    };
    let (mut source, mut source_action) = source::Handover::start();
    let (mut dest, mut dest_action) = dest::Handover::start();
    // Up to Prepared there is nothing that both sides share.
    while dest.state() != dest::State::AwaitingCommit {
        let event = dest_step(&mut world, dest_action).unwrap();
        dest_action = dest.on(event);
    }
    // A side that waits is not asked again before something has happened.
    let (mut source_waits, mut dest_waits) = (false, false);
    for _ in 0..100 {
        let source_over = matches!(source.state(), source::State::Over(_));
        let dest_over = world.dest_dead || matches!(dest.state(), dest::State::Over(_));
        if source_over && dest_over {
            let (source, dest, dest_dead) = (source.state(), dest.state(), world.dest_dead);
            return (world.choices, Outcome { source, dest, dest_dead });
        }
        if !world.dest_dead && world.fault() {
            world.kill_destination();
            source_waits = false;
            continue;
        }
        let (source_can, dest_can) = (!source_over && !source_waits, !dest_over && !dest_waits);
        if !world.wire.cut && (!(source_can || dest_can) || world.fault()) {
            world.wire.cut = true;
            (source_waits, dest_waits) = (false, false);
            continue;
        }
        if source_can && (!dest_can || world.choices.choose(2) == 0) {
            match source_step(&mut world, source_action) {
                Some(event) => {
                    source_action = source.on(event);
                    dest_waits = false;
                }
                None => source_waits = true,
            }
        } else {
            match dest_step(&mut world, dest_action) {
                Some(event) => {
                    dest_action = dest.on(event);
                    // A process that is over closes its connection.
                    world.wire.cut |= matches!(dest.state(), dest::State::Over(_));
                    source_waits = false;
                }
                None => dest_waits = true,
            }
        }
        world.check();
    }
    panic!("a world without end: {:?} {:?}", source.state(), dest.state());
}

/// Walks all worlds; returns their number.
fn walk(marks: bool, mut judge: impl FnMut(&Outcome)) -> u64 {
    let mut choices = Choices::default();
    let mut worlds = 0;
    loop {
        let (used, outcome) = run(choices, marks);
        judge(&outcome);
        worlds += 1;
        choices = used;
        if !choices.advance() {
            return worlds;
        }
    }
}

fn judge(outcome: &Outcome) {
    let arrived = outcome.dest == dest::State::Over(dest::End::Arrived);
    let source::State::Over(end) = outcome.source else { panic!("the source is not over") };
    match end {
        source::End::Stayed | source::End::Cancelled => {
            assert!(!arrived, "the guest is on both sides");
        }
        // Where the destination is dead its guest died with it: that is no fault of the hand-over.
        source::End::Moved => assert!(
            arrived
                || outcome.dest_dead
                || outcome.dest == dest::State::Over(dest::End::Unreleased)
                || outcome.dest == dest::State::Over(dest::End::Failed),
            "moved to nowhere: {:?}",
            outcome.dest
        ),
        source::End::StayedPaused | source::End::OwnershipUnknown => {}
    }
}

#[test]
fn no_world_has_two_owners_with_marks() {
    let mut ends = std::collections::HashMap::new();
    let worlds = walk(true, |outcome| {
        judge(outcome);
        *ends.entry(outcome.source).or_insert(0u64) += 1;
    });
    println!("{worlds} worlds: {ends:?}");
    assert!(worlds > 10_000, "only {worlds} worlds");
    for end in [source::End::Moved, source::End::Stayed, source::End::OwnershipUnknown] {
        assert!(ends.contains_key(&source::State::Over(end)), "{end:?} was never reached");
    }
}

#[test]
fn no_world_has_two_owners_without_marks() {
    walk(false, judge);
}
