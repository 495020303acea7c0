//! All sessions of one QMP endpoint, and the events that go to each of them.

use std::{collections::BTreeMap, time::Duration};

use super::{limits::Limits, session::Session, throttle::Throttle};
use crate::{event::Event, interface::Interface};

/// Names a client while it is connected; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(u64);

/// A connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} QMP clients are connected already; close one of them first")]
pub struct TooManyClients(usize);

/// The sessions. Whoever drives it owns the sockets and the clock.
#[derive(Debug)]
pub struct Server {
    interface: &'static Interface,
    limits: Limits,
    sessions: BTreeMap<ClientId, Session>,
    next: u64,
    throttle: Throttle,
}

impl Server {
    /// A server without clients.
    pub fn new(interface: &'static Interface, limits: Limits) -> Self {
        let throttle = Throttle::default();
        Server { interface, limits, sessions: BTreeMap::new(), next: 0, throttle }
    }

    /// Begins a session; its greeting is ready to be sent.
    ///
    /// # Errors
    /// [`Limits::clients`] are connected: close the new connection.
    pub fn connect(&mut self) -> Result<ClientId, TooManyClients> {
        if self.sessions.len() >= self.limits.clients {
            return Err(TooManyClients(self.sessions.len()));
        }
        let id = ClientId(self.next);
        self.next += 1;
        self.sessions.insert(id, Session::new(self.interface, self.limits));
        Ok(id)
    }

    /// Ends a session. Results of its commands that arrive later find nobody.
    pub fn disconnect(&mut self, client: ClientId) {
        self.sessions.remove(&client);
    }

    /// The session of a client that is connected.
    pub fn session(&mut self, client: ClientId) -> Option<&mut Session> {
        self.sessions.get_mut(&client)
    }

    /// The clients that are connected.
    pub fn clients(&self) -> impl Iterator<Item = ClientId> + '_ {
        self.sessions.keys().copied()
    }

    /// The clients that have something to send or are to be closed.
    pub fn needing_attention(&self) -> impl Iterator<Item = ClientId> + '_ {
        let needs = |session: &Session| session.has_output() || session.end().is_some();
        self.sessions.iter().filter(move |(_, session)| needs(session)).map(|(id, _)| *id)
    }

    /// Tells every client, now or when the event's rate allows it.
    ///
    /// `now` is the time on any clock that only goes forward.
    pub fn event(&mut self, event: Event, now: Duration) {
        if let Some(event) = self.throttle.offer(event, now) {
            self.broadcast(&event);
        }
    }

    /// When [`Server::tick`] is to be called, if it is.
    pub fn next_tick(&self) -> Option<Duration> {
        self.throttle.next_due()
    }

    /// Sends the events that were held back and whose time has come.
    pub fn tick(&mut self, now: Duration) {
        for event in self.throttle.due(now) {
            self.broadcast(&event);
        }
    }

    fn broadcast(&mut self, event: &Event) {
        for session in self.sessions.values_mut() {
            session.event(event);
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
