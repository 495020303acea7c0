//! Drives the source's state machine: one action after the other, blocking.

use std::time::{Duration, Instant};

use super::rounds::Copier;
use super::{Action, End, Event, Handover, State, link};
use crate::clock::now;
use crate::error::{Error, ErrorKind, Result};
use crate::handshake::{Facts, Prelude};
use crate::machine::{Ownership, SourceMachine, TakeBack, TookBack};
use crate::messages::{self, Prepared, Running, StateEnd};
use crate::ram::RamMap;
use crate::session::Session;
use crate::state::{Section, Sections};
use crate::stats::{Phases, Status, micros, millis};
use crate::stream::{Framed, Kind, Side};
use crate::transport::{self, Stream, Uri};

/// Longest wait for an answer in the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time without progress once the guest is stopped, beyond `downtime-limit`.
const STOPPED_TIMEOUT: Duration = Duration::from_secs(20);
/// A process that dies closes its connection before or after it drops its locks, in no known order: only
/// who holds them longer than this lives.
const LOCKS_SETTLE: Duration = Duration::from_secs(1);
/// Between two looks at the locks.
const LOCKS_PAUSE: Duration = Duration::from_millis(20);
/// Small sections share frames up to about this many bytes.
const STATE_FRAME_LEN: usize = 1 << 20;

/// Whom to send the guest to.
#[derive(Debug)]
pub enum Peer {
    /// Somebody who listens there.
    Uri(Uri),
    /// Somebody at the other end of this connection, made with the session's canceller.
    Stream(Stream),
}

/// Moves the guest of `machine` to `peer`. Blocks until that is done, or undone. How it ended and why is
/// returned, and is in the session's statistics; after [`End::Moved`] an error is a warning.
///
/// Run it on a thread of its own. [`Session::cancel`] stops it from any other.
pub fn run(peer: Peer, machine: &mut dyn SourceMachine, session: &Session) -> (End, Option<Error>) {
    let start = now();
    let driver = Driver {
        machine,
        session,
        peer: Some(peer),
        link: None,
        start,
        stopped_at: start,
        asked_at: start,
        phases: Phases::default(),
    };
    driver.drive()
}

/// What lives as long as the run.
struct Driver<'a> {
    machine: &'a mut dyn SourceMachine,
    session: &'a Session,
    peer: Option<Peer>,
    link: Option<Link>,
    start: Instant,
    stopped_at: Instant,
    /// When the question was sent that is waited for.
    asked_at: Instant,
    phases: Phases,
}

/// What there is once both sides agree.
struct Link {
    framed: Framed,
    copier: Option<Copier>,
}

impl Driver<'_> {
    fn drive(mut self) -> (End, Option<Error>) {
        let (mut handover, mut action) = Handover::start();
        self.machine.status(handover.status());
        loop {
            if let State::Over(end) = handover.state() {
                return self.finish(end, handover);
            }
            let event = match self.perform(action, &handover) {
                Ok(event) => event,
                Err(error) => Event::Failed(self.why(error)),
            };
            tracing::debug!("{:?}: {event:?}", handover.state());
            action = handover.on(event);
            if !matches!(handover.state(), State::Over(_)) {
                self.publish(handover.status());
            }
        }
    }

    fn perform(&mut self, action: Action, handover: &Handover) -> Result<Event> {
        match action {
            Action::Prepare => self.prepare(),
            Action::CopyRounds => self.copy_rounds(),
            Action::StopGuest => self.stop_guest(),
            Action::SendRest => self.send_rest(),
            Action::AwaitPrepared => self.await_prepared(),
            Action::Inactivate => self.inactivate(),
            Action::Commit => self.commit(),
            Action::AwaitVerdict => Ok(self.await_verdict()),
            Action::TakeBack(rule) => Ok(self.take_back(rule, handover)),
            Action::Resume => Ok(Event::Resumed(self.machine.resume_guest())),
            Action::Forget => {
                self.machine.forget();
                Ok(Event::Forgotten)
            }
            // The loop ends before it would get here.
            Action::Finish => Ok(Event::Forgotten),
        }
    }

    /// A cancel explains every failure that follows it; the destination's words explain a lost connection.
    fn why(&mut self, error: Error) -> Error {
        if self.session.canceller.is_cancelled() && error.kind() != ErrorKind::Cancelled {
            return Error::new(ErrorKind::Cancelled, "the migration was cancelled").because(error);
        }
        match &mut self.link {
            Some(link) => link::last_words(&mut link.framed, error),
            None => error,
        }
    }

    fn prepare(&mut self) -> Result<Event> {
        let stream = match self.peer.take() {
            Some(Peer::Stream(stream)) => stream,
            Some(Peer::Uri(uri)) => transport::connect(&uri, &self.session.canceller)?,
            None => return Err(Error::new(ErrorKind::Machine, "prepared twice")),
        };
        let framed = Framed::new(stream, Side::Source);
        let link = self.link.insert(Link { framed, copier: None });
        let facts = self.machine.facts();
        let map = RamMap::new(self.machine.ram())?;
        facts.matches_memory(&map.layout())?;
        let round_trip = agree(&mut link.framed, &facts)?;
        let copier = Copier::start(map, self.machine, round_trip)?;
        self.session.stats.update(|s| s.setup_time = Some(millis(self.start.elapsed())));
        copier.announce(self.machine, self.session);
        link.copier = Some(copier);
        Ok(Event::Ready)
    }

    fn copy_rounds(&mut self) -> Result<Event> {
        let (framed, copier) = parts(&mut self.link)?;
        copier.run(framed, self.machine, self.session)?;
        Ok(Event::Converged)
    }

    fn stop_guest(&mut self) -> Result<Event> {
        let (framed, _) = parts(&mut self.link)?;
        framed.set_patience(STOPPED_TIMEOUT);
        self.stopped_at = now();
        self.machine.stop_guest()?;
        self.phases.stop = micros(self.stopped_at.elapsed());
        Ok(Event::Stopped)
    }

    fn send_rest(&mut self) -> Result<Event> {
        let (framed, copier) = parts(&mut self.link)?;
        self.phases.last_sync = micros(copier.last_sync(self.machine, self.session)?);
        let begin = now();
        copier.send_rest(framed, self.session)?;
        self.phases.last_ram = micros(begin.elapsed());

        let begin = now();
        let sections = self.machine.save()?;
        self.phases.save = micros(begin.elapsed());
        self.asked_at = now();
        send_state(framed, &sections, self.machine.was_running())?;
        Ok(Event::RestSent)
    }

    fn await_prepared(&mut self) -> Result<Event> {
        let (framed, _) = parts(&mut self.link)?;
        let timeout = STOPPED_TIMEOUT + self.session.tuning.downtime_limit();
        let body = link::answer(framed, Kind::Prepared, timeout)?;
        let theirs: Prepared = messages::decode("Prepared", &body)?;
        self.phases.restore = theirs.restore;
        self.phases.prepare = micros(self.asked_at.elapsed());
        Ok(Event::Prepared)
    }

    fn inactivate(&mut self) -> Result<Event> {
        let begin = now();
        let ownership = self.machine.inactivate()?;
        self.phases.inactivate = micros(begin.elapsed());
        Ok(Event::Inactivated(ownership))
    }

    fn commit(&mut self) -> Result<Event> {
        let (framed, _) = parts(&mut self.link)?;
        // A destination that has left already would leave us in doubt for nothing.
        link::check_quiet(framed)?;
        let body = messages::encode(&self.phases)?;
        self.session.canceller.commit()?;
        self.asked_at = now();
        framed.send(Kind::Commit, &body)?;
        Ok(Event::Committed)
    }

    fn await_verdict(&mut self) -> Event {
        let received =
            parts(&mut self.link).and_then(|(framed, _)| framed.receive(STOPPED_TIMEOUT));
        let frame = match received {
            Ok(frame) => frame,
            Err(error) => return Event::NoAnswer(error),
        };
        match frame.kind {
            Kind::Running => {
                self.phases.commit = micros(self.asked_at.elapsed());
                match messages::decode::<Running>("Running", &frame.body) {
                    Ok(theirs) => self.phases.activate = theirs.activate,
                    // The kind of the frame is the answer; the rest is for people.
                    Err(error) => tracing::warn!("{}", error.report()),
                }
                Event::Running
            }
            // Failed: it gave up before Commit reached it, and will not look at it any more.
            Kind::Refused | Kind::Failed => Event::Refused(link::reported(&frame)),
            other => Event::NoAnswer(Error::corrupt(format!("the destination answered {other:?}"))),
        }
    }

    /// The connection goes first: nothing that the destination says from here on may matter.
    fn take_back(&mut self, rule: TakeBack, handover: &Handover) -> Event {
        self.hang_up(rule == TakeBack::Freely, handover.cause());
        let ownership: &Ownership = handover.ownership();
        let begin = now();
        loop {
            let took = self.machine.take_back(rule, ownership);
            let held = matches!(took, TookBack::HeldElsewhere(_));
            if !held || begin.elapsed() > LOCKS_SETTLE {
                return Event::TookBack(took);
            }
            std::thread::sleep(LOCKS_PAUSE);
        }
    }

    /// Closes the connection. Before Commit the destination is told why; after it silence is safer.
    fn hang_up(&mut self, say_why: bool, cause: Option<&Error>) {
        let Some(mut link) = self.link.take() else { return };
        match cause {
            Some(cause) if say_why => {
                link.framed.hang_up(Some((Kind::Cancel, &cause.report())));
            }
            _ => link.framed.hang_up(None),
        }
    }

    fn finish(mut self, end: End, handover: Handover) -> (End, Option<Error>) {
        let downtime = self.stopped_at.elapsed();
        let cause = handover.cause();
        self.hang_up(end != End::Moved, cause);
        self.machine.stop();
        let total = millis(self.start.elapsed());
        let phases = self.phases.clone();
        self.session.stats.update(|s| {
            s.total_time = Some(total);
            s.expected_downtime = None;
            if end == End::Moved {
                s.downtime = Some(millis(downtime));
                s.downtime_us = Some(micros(downtime));
                s.phases = Some(phases);
            }
            s.error_desc = match end {
                End::Moved | End::Cancelled => None,
                _ => cause.map(Error::report),
            };
        });
        self.session.canceller.finish();
        self.publish(handover.status());
        (end, handover.into_cause())
    }

    fn publish(&mut self, status: Status) {
        if self.session.publish(status) {
            self.machine.status(status);
        }
    }
}

fn parts(link: &mut Option<Link>) -> Result<(&mut Framed, &mut Copier)> {
    match link {
        Some(Link { framed, copier: Some(copier) }) => Ok((framed, copier)),
        _ => Err(Error::new(ErrorKind::Machine, "there is no connection")),
    }
}

/// The handshake; returns how long a round trip takes.
fn agree(framed: &mut Framed, facts: &Facts) -> Result<Duration> {
    let theirs = framed.exchange_preludes(HANDSHAKE_TIMEOUT)?;
    let version = Prelude::OURS.agree(theirs)?;
    tracing::debug!("migration protocol version {version}");
    let begin = now();
    framed.send(Kind::Facts, &facts.encode()?)?;
    let body = link::answer(framed, Kind::Welcome, HANDSHAKE_TIMEOUT)?;
    let round_trip = begin.elapsed();
    let welcome = Facts::decode(&body)?;
    Facts::compare(facts, &welcome)?;
    tracing::info!("the destination is {}", welcome.software);
    Ok(round_trip)
}

/// Sends all sections, small ones together, and says that they are all.
fn send_state(framed: &mut Framed, sections: &Sections, guest_running: bool) -> Result<()> {
    let mut body = Vec::new();
    for section in sections.iter() {
        let len = Section::encoded_len(section);
        if !body.is_empty() && body.len() + len > STATE_FRAME_LEN {
            framed.send(Kind::State, &body)?;
            body.clear();
        }
        section.encode(&mut body)?;
    }
    if !body.is_empty() {
        framed.send(Kind::State, &body)?;
    }
    let end = StateEnd { sections: sections.len() as u64, guest_running };
    framed.send(Kind::StateEnd, &messages::encode(&end)?)
}
