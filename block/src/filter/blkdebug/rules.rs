//! The rules of a `blkdebug` node: which hold now, and what they do to a request.

use std::ops::Range;
use std::time::Duration;

use super::options::{Event, InjectError, IoType, SetState};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of the sectors that options speak of.
const SECTOR: u64 = 512;

/// What a rule does to a request: makes it wait, then fail, or only one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Effect {
    pub(super) delay: Option<Duration>,
    pub(super) errno: Option<i32>,
    /// It fails before other requests get a turn.
    pub(super) immediately: bool,
}

/// A rule that strikes requests.
struct Rule {
    event: Event,
    state: u32,
    iotype: Option<IoType>,
    range: Option<Range<u64>>,
    skip: u64,
    times: u64,
    effect: Effect,
    /// Its event has happened in its state.
    holds: bool,
}

/// A request stops at its next event of this kind.
struct Breakpoint {
    event: Event,
    tag: String,
}

/// All rules of a node.
pub(super) struct Rules {
    rules: Vec<Rule>,
    changes: Vec<SetState>,
    breakpoints: Vec<Breakpoint>,
    state: u32,
}

impl Rules {
    pub(super) fn new(errors: &[InjectError], changes: &[SetState]) -> Result<Rules> {
        let mut all = Rules {
            rules: Vec::new(),
            changes: changes.to_vec(),
            breakpoints: Vec::new(),
            state: 1,
        };
        for error in errors {
            all.inject(error)?;
        }
        Ok(all)
    }

    pub(super) fn inject(&mut self, error: &InjectError) -> Result<()> {
        let refuse = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
        let errno = match (error.errno, error.delay_ns) {
            (None, Some(_)) => None,
            (errno, _) => Some(errno.unwrap_or(libc::EIO)),
        };
        if let Some(errno) = errno.filter(|errno| *errno <= 0) {
            return refuse(format!("errno {errno} of a fault is not a positive number"));
        }
        let range = match (error.sector, error.offset, error.length) {
            (None, None, None) => None,
            (Some(sector), None, None) => {
                let Some(start) = sector.checked_mul(SECTOR) else {
                    return refuse(format!("sector {sector} of a fault lies outside any disk"));
                };
                Some(start..start.saturating_add(SECTOR))
            }
            (None, Some(start), length) => {
                Some(start..start.saturating_add(length.unwrap_or(u64::MAX)))
            }
            _ => return refuse("a fault takes either 'sector' or 'offset' with 'length'".into()),
        };
        let once = error.once == Some(true);
        self.rules.push(Rule {
            event: error.event,
            state: error.state.unwrap_or(0),
            iotype: error.iotype,
            range,
            skip: error.skip.unwrap_or(0),
            times: if once { 1 } else { error.times.unwrap_or(u64::MAX) },
            effect: Effect {
                delay: error.delay_ns.map(Duration::from_nanos),
                errno,
                immediately: error.immediately == Some(true),
            },
            holds: error.event == Event::None,
        });
        self.rules.retain(|rule| rule.times > 0);
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(super) fn break_at(&mut self, event: Event, tag: &str) {
        self.breakpoints.push(Breakpoint { event, tag: tag.to_owned() });
    }

    /// Takes breakpoints of that tag away that nothing has met yet; whether there were any.
    pub(super) fn remove_break(&mut self, tag: &str) -> bool {
        let before = self.breakpoints.len();
        self.breakpoints.retain(|other| other.tag != tag);
        before != self.breakpoints.len()
    }

    pub(super) fn state(&self) -> u32 {
        self.state
    }

    /// An event happens: rules begin to hold, in place of those of the events before, and the state
    /// may change. The tag of the breakpoint that the request meets, if any.
    pub(super) fn happen(&mut self, event: Event) -> Option<String> {
        let state = self.state;
        let starts = |rule: &Rule| rule.event == event && matches_state(rule.state, state);
        if self.rules.iter().any(starts) {
            for rule in self.rules.iter_mut().filter(|rule| rule.event != Event::None) {
                rule.holds = starts(rule);
            }
        }
        for change in &self.changes {
            if change.event == event && matches_state(change.state.unwrap_or(0), state) {
                self.state = change.new_state;
            }
        }
        let place = self.breakpoints.iter().position(|other| other.event == event)?;
        Some(self.breakpoints.remove(place).tag)
    }

    /// What the first rule that strikes this request does to it.
    pub(super) fn strike(&mut self, iotype: IoType, at: &Range<u64>) -> Option<Effect> {
        let state = self.state;
        let mut effect = None;
        for rule in self.rules.iter_mut().filter(|rule| rule.holds) {
            let wanted = match rule.iotype {
                Some(wanted) => wanted == iotype,
                None => iotype != IoType::BlockStatus,
            };
            let touched =
                rule.range.as_ref().is_none_or(|it| it.start < at.end && at.start < it.end);
            // A rule without an event is asked for its state at each request.
            let now = rule.event != Event::None || matches_state(rule.state, state);
            if !(wanted && touched && now) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.times -= 1;
            effect = Some(rule.effect);
            break;
        }
        self.rules.retain(|rule| rule.times > 0);
        effect
    }
}

/// Whether a rule for `wanted` (0: any) holds in `state`.
fn matches_state(wanted: u32, state: u32) -> bool {
    wanted == 0 || wanted == state
}
