//! Holds back events that a guest could cause in a flood.
//!
//! The first one goes out at once. While its time runs, later ones about the same thing replace each
//! other; when it is over, the last of them goes out and the time starts again.

use std::{collections::BTreeMap, time::Duration};

use crate::event::Event;

/// Which events count as being about the same thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    event: String,
    about: String,
}

#[derive(Debug)]
struct Window {
    /// When it ends.
    until: Duration,
    limit: Duration,
    /// The last event held back.
    held: Option<Event>,
}

/// Most subjects watched at one time. Beyond that, further ones are not throttled: they are as many as
/// there are disks.
const SUBJECTS_MAX: usize = 1024;

/// The events held back. Times are those of any clock that only goes forward.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    windows: BTreeMap<Subject, Window>,
}

impl Throttle {
    /// Gives the event back if it may go out now.
    pub(super) fn offer(&mut self, event: Event, now: Duration) -> Option<Event> {
        let Some(limit) = event.info().and_then(|info| info.rate_limit) else {
            return Some(event);
        };
        let subject = Subject { event: event.name.clone(), about: about(&event) };
        match self.windows.get_mut(&subject) {
            Some(window) if now < window.until => {
                window.held = Some(event);
                None
            }
            _ => {
                if self.windows.len() < SUBJECTS_MAX {
                    let window = Window { until: now.saturating_add(limit), limit, held: None };
                    self.windows.insert(subject, window);
                }
                Some(event)
            }
        }
    }

    /// When [`Throttle::due`] next has something to do.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.windows.values().map(|window| window.until).min()
    }

    /// The events whose time is over.
    pub(super) fn due(&mut self, now: Duration) -> Vec<Event> {
        let mut due = Vec::new();
        self.windows.retain(|_, window| {
            if now < window.until {
                return true;
            }
            let held = window.held.take();
            window.until = now.saturating_add(window.limit);
            let keep = held.is_some();
            due.extend(held);
            keep
        });
        due
    }
}

/// The disk that the event is about, if it is about one.
fn about(event: &Event) -> String {
    let part = |name| event.data.get(name).and_then(|v| v.as_str()).unwrap_or_default();
    format!("{}\0{}", part("device"), part("node-name"))
}
