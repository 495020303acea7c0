//! Rounds of copying RAM: the long part, while the guest runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::link;
use crate::clock::now;
use crate::converge::{Decision, Model, Round};
use crate::error::{Error, Result};
use crate::machine::SourceMachine;
use crate::ram::send::{Sender, Sent};
use crate::ram::{PAGE_SIZE, PageBitmap, RamMap, touched};
use crate::session::Session;
use crate::stats::{RamStats, RoundStats, micros, millis};
use crate::stream::{Framed, Kind};
use crate::throttle::Throttle;
use crate::transport::STALL_TIMEOUT;

/// Longest sleep for the rate limit before it is read again.
const SLEEP_SLICE: Duration = Duration::from_millis(100);
/// A round that is too short to matter and still does not fit is not repeated at once.
const SHORTEST_ROUND: Duration = Duration::from_millis(1);

/// What is still to be copied, and how that goes.
#[derive(Debug)]
pub(super) struct Copier {
    map: Arc<RamMap>,
    sender: Sender,
    /// Pages to send in the next round.
    pending: PageBitmap,
    model: Model,
    throttle: Throttle,
    begun: Instant,
    passes: u64,
    synced_at: Instant,
}

impl Copier {
    /// Starts the dirty log and looks for the pages that hold anything. The order matters: what is
    /// touched after the look is in the log.
    pub(super) fn start(
        map: RamMap,
        machine: &mut dyn SourceMachine,
        round_trip: Duration,
    ) -> Result<Copier> {
        machine.start()?;
        let begun = now();
        let map = Arc::new(map);
        let pending = touched(&map)?;
        Ok(Copier {
            sender: Sender::new(Arc::clone(&map)),
            map,
            pending,
            model: Model::new(round_trip),
            throttle: Throttle::default(),
            begun,
            passes: 1,
            synced_at: begun,
        })
    }

    /// Publishes the figures of the first round.
    pub(super) fn announce(&self, machine: &mut dyn SourceMachine, session: &Session) {
        machine.pass(self.passes);
        session.stats.update(|s| {
            s.ram = Some(RamStats {
                total: self.map.bytes(),
                remaining: self.pending_bytes(),
                page_size: PAGE_SIZE,
                dirty_sync_count: self.passes,
                ..RamStats::default()
            });
        });
    }

    /// Copies until the model says to stop the guest.
    pub(super) fn run(
        &mut self,
        framed: &mut Framed,
        machine: &mut dyn SourceMachine,
        session: &Session,
    ) -> Result<()> {
        for number in 1u64.. {
            let begin = now();
            let sent = self.send(framed, session, Phase::GuestRuns)?;
            framed.send(Kind::RoundEnd, &number.to_le_bytes())?;
            let done = link::answer(framed, Kind::RoundDone, STALL_TIMEOUT)?;
            if done != number.to_le_bytes() {
                return Err(Error::corrupt("the destination confirmed another round than sent"));
            }
            let time = begin.elapsed();
            let (sync, dirtied_in) = self.sync(machine, session)?;
            let round = Round { bytes: sent.bytes, time, sync, pending: self.pending_bytes() };
            let decision = self.model.decide(&round, session.tuning.downtime_limit());
            self.publish(session, number, &round, &sent, dirtied_in, decision);
            if decision.is_switch_over() {
                return Ok(());
            }
            if decision == Decision::TooLong && time < SHORTEST_ROUND {
                session.canceller.sleep(SHORTEST_ROUND)?;
            }
        }
        Ok(())
    }

    /// The guest is stopped: looks at the dirty log for the last time. Returns how long that took.
    pub(super) fn last_sync(
        &mut self,
        machine: &mut dyn SourceMachine,
        session: &Session,
    ) -> Result<Duration> {
        // What the last round's sync found is still to be sent, too.
        Ok(self.sync_more(machine, session)?.0)
    }

    /// Sends what is left, as fast as it goes.
    pub(super) fn send_rest(&mut self, framed: &mut Framed, session: &Session) -> Result<()> {
        self.send(framed, session, Phase::GuestStopped)?;
        self.pending.clear_all();
        Ok(())
    }

    fn pending_bytes(&self) -> u64 {
        self.pending.count() * PAGE_SIZE
    }

    fn send(&mut self, framed: &mut Framed, session: &Session, phase: Phase) -> Result<Sent> {
        let mut total = Sent::default();
        let (throttle, begun) = (&mut self.throttle, self.begun);
        self.sender.send(framed, &self.pending, |framed, sent| {
            total.add(sent);
            count(session, &sent, phase);
            session.canceller.check()?;
            link::check_quiet(framed)?;
            match phase {
                Phase::GuestRuns => limit_rate(throttle, begun, sent.bytes, session),
                Phase::GuestStopped => Ok(()),
            }
        })?;
        Ok(total)
    }

    /// Replaces what was pending by what changed since. Returns how long the look took, and the time in
    /// which it changed.
    fn sync(
        &mut self,
        machine: &mut dyn SourceMachine,
        session: &Session,
    ) -> Result<(Duration, Duration)> {
        self.pending.clear_all();
        self.sync_more(machine, session)
    }

    fn sync_more(
        &mut self,
        machine: &mut dyn SourceMachine,
        session: &Session,
    ) -> Result<(Duration, Duration)> {
        let begin = now();
        let dirtied_in = begin - self.synced_at;
        self.synced_at = begin;
        machine.sync(&mut self.pending)?;
        let took = begin.elapsed();
        self.passes += 1;
        machine.pass(self.passes);
        let (passes, remaining) = (self.passes, self.pending_bytes());
        session.stats.update(|s| {
            if let Some(ram) = &mut s.ram {
                ram.dirty_sync_count = passes;
                ram.remaining = remaining;
            }
        });
        Ok((took, dirtied_in))
    }

    fn publish(
        &self,
        session: &Session,
        number: u64,
        round: &Round,
        sent: &Sent,
        dirtied_in: Duration,
        decision: Decision,
    ) {
        let predicted = self.model.predicted();
        session.stats.update(|s| {
            s.expected_downtime = Some(millis(predicted));
            if let Some(ram) = &mut s.ram {
                ram.mbps = per_second(round.bytes * 8, round.time) / 1e6;
                ram.pages_per_second = whole(per_second(sent.normal, round.time));
                ram.dirty_pages_rate = whole(per_second(round.pending / PAGE_SIZE, dirtied_in));
            }
        });
        tracing::debug!(
            "round {number}: {} bytes in {:?}, {} dirty after it, predicted downtime {predicted:?}: {}",
            round.bytes,
            round.time,
            round.pending,
            decision.as_str()
        );
        session.stats.push_round(RoundStats {
            round: number,
            bytes: round.bytes,
            micros: micros(round.time),
            dirty_bytes: round.pending,
            predicted_downtime: micros(predicted),
            decision: decision.as_str().to_owned(),
        });
    }
}

/// Whose time it is that sending takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    GuestRuns,
    GuestStopped,
}

fn count(session: &Session, sent: &Sent, phase: Phase) {
    session.stats.update(|s| {
        let Some(ram) = &mut s.ram else { return };
        ram.transferred += sent.bytes;
        ram.duplicate += sent.zero;
        ram.normal += sent.normal;
        ram.normal_bytes += sent.normal * PAGE_SIZE;
        ram.remaining = ram.remaining.saturating_sub((sent.normal + sent.zero) * PAGE_SIZE);
        match phase {
            Phase::GuestRuns => ram.precopy_bytes += sent.bytes,
            Phase::GuestStopped => ram.downtime_bytes += sent.bytes,
        }
    });
}

/// Sleeps until the rate is kept; looks at the limit again and again, because it may be changed.
fn limit_rate(
    throttle: &mut Throttle,
    begun: Instant,
    bytes: u64,
    session: &Session,
) -> Result<()> {
    let mut spent = bytes;
    loop {
        let wait = throttle.spend(spent, begun.elapsed(), session.tuning.max_bandwidth());
        if wait.is_zero() {
            return Ok(());
        }
        session.canceller.sleep(wait.min(SLEEP_SLICE))?;
        spent = 0;
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is never negative, and saturating is right for one that is absurd"
)]
fn whole(rate: f64) -> u64 {
    rate as u64
}
