//! Drives the destination's state machine: one action after the other, blocking.

use std::time::{Duration, Instant};

use super::load::Loader;
use super::{Action, End, Event, Handover, State};
use crate::clock::now;
use crate::error::{Error, ErrorKind, Result};
use crate::handshake::{Facts, Prelude};
use crate::machine::DestMachine;
use crate::messages::{self, Prepared, Running};
use crate::ram::RamMap;
use crate::session::Session;
use crate::state::Sections;
use crate::stats::{Phases, Status, micros, millis};
use crate::stream::{Framed, Kind, Side};
use crate::transport::Stream;

/// Longest wait for the first frames: whoever connects and says nothing must not block the port.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for the source to have read our last words, and how much of what it still sends to
/// throw away meanwhile.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 256 << 20);

/// Receives a guest into `machine` over `stream`, which was accepted with the session's canceller. Blocks
/// until the guest is here, or certainly not; after [`End::Arrived`] an error is a warning.
pub fn run(
    stream: Stream,
    machine: &mut dyn DestMachine,
    session: &Session,
) -> (End, Option<Error>) {
    let driver = Driver {
        framed: Framed::new(stream, Side::Destination),
        machine,
        session,
        map: None,
        sections: None,
        guest_running: false,
        phases: Phases::default(),
        start: now(),
    };
    driver.drive()
}

/// What lives as long as the run.
struct Driver<'a> {
    framed: Framed,
    machine: &'a mut dyn DestMachine,
    session: &'a Session,
    map: Option<RamMap>,
    sections: Option<Sections>,
    guest_running: bool,
    phases: Phases,
    start: Instant,
}

impl Driver<'_> {
    fn drive(mut self) -> (End, Option<Error>) {
        let (mut handover, mut action) = Handover::start();
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
            Action::Handshake => self.handshake(),
            Action::Load => self.load(),
            Action::Restore => self.restore(),
            Action::SayPrepared => {
                let restore = self.phases.restore;
                self.say(Kind::Prepared, &messages::encode(&Prepared { restore })?)
            }
            Action::AwaitCommit => self.await_commit(),
            Action::Activate => {
                let begin = now();
                self.machine.activate()?;
                self.phases.activate = micros(begin.elapsed());
                Ok(Event::Activated)
            }
            Action::Release => self.machine.release().map(|()| Event::Released),
            Action::SayRefused => self.say_why(Kind::Refused, handover),
            Action::SayRunning => {
                let activate = self.phases.activate;
                self.say(Kind::Running, &messages::encode(&Running { activate })?)
            }
            Action::Start => self.machine.run_guest(self.guest_running).map(|()| Event::Started),
            Action::SayFailed => self.say_why(Kind::Failed, handover),
            // The loop ends before it would get here.
            Action::Finish => Ok(Event::Said),
        }
    }

    /// A cancel explains every failure that follows it.
    fn why(&self, error: Error) -> Error {
        if self.session.canceller.is_cancelled() && error.kind() != ErrorKind::Cancelled {
            return Error::new(ErrorKind::Cancelled, "the migration was cancelled").because(error);
        }
        error
    }

    fn handshake(&mut self) -> Result<Event> {
        let facts = self.machine.facts();
        let map = RamMap::new(self.machine.ram())?;
        facts.matches_memory(&map.layout())?;
        let theirs = self.framed.exchange_preludes(HANDSHAKE_TIMEOUT)?;
        let version = Prelude::OURS.agree(theirs)?;
        tracing::debug!("migration protocol version {version}");
        let frame = self.framed.receive(HANDSHAKE_TIMEOUT)?;
        if frame.kind != Kind::Facts {
            return Err(Error::corrupt(format!("the source began with {:?}", frame.kind)));
        }
        let source = Facts::decode(&frame.body)?;
        Facts::compare(&source, &facts)?;
        self.framed.send(Kind::Welcome, &facts.encode()?)?;
        tracing::info!("the source is {}", source.software);
        self.map = Some(map);
        Ok(Event::Agreed)
    }

    fn load(&mut self) -> Result<Event> {
        let Some(map) = &self.map else {
            return Err(Error::new(ErrorKind::Machine, "loading before agreeing"));
        };
        let loaded = Loader::new(map, self.session).run(&mut self.framed)?;
        self.sections = Some(loaded.sections);
        self.guest_running = loaded.guest_running;
        Ok(Event::Loaded)
    }

    fn restore(&mut self) -> Result<Event> {
        let begin = now();
        self.machine.restore(self.sections.take().unwrap_or_default())?;
        self.phases.restore = micros(begin.elapsed());
        Ok(Event::Restored)
    }

    fn await_commit(&mut self) -> Result<Event> {
        // However long the source takes: as long as it is there, the guest is in good hands.
        let frame = self.framed.receive(Duration::MAX)?;
        match frame.kind {
            Kind::Commit => {}
            Kind::Cancel => return Err(super::load::cancelled_by_source(&frame)),
            other => return Err(Error::corrupt(format!("{other:?} instead of Commit"))),
        }
        match messages::decode::<Phases>("Commit", &frame.body) {
            Ok(theirs) => self.phases = Phases { restore: self.phases.restore, ..theirs },
            // The kind of the frame is what counts; the rest is for people.
            Err(error) => tracing::warn!("{}", error.report()),
        }
        self.session.canceller.commit()?;
        Ok(Event::Committed)
    }

    fn say(&mut self, kind: Kind, body: &[u8]) -> Result<Event> {
        self.framed.send(kind, body).map(|()| Event::Said)
    }

    fn say_why(&mut self, kind: Kind, handover: &Handover) -> Result<Event> {
        let text = handover.cause().map_or_else(String::new, Error::report);
        self.framed.set_patience(Duration::ZERO);
        self.framed.send_text(kind, &text)?;
        self.framed.linger(LINGER.0, LINGER.1);
        Ok(Event::Said)
    }

    fn finish(mut self, end: End, handover: Handover) -> (End, Option<Error>) {
        let total = millis(self.start.elapsed());
        let phases = self.phases.clone();
        self.framed.hang_up(None);
        self.session.stats.update(|s| {
            s.total_time = Some(total);
            if end == End::Arrived {
                s.phases = Some(phases);
            } else {
                s.error_desc = handover.cause().map(Error::report);
            }
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
