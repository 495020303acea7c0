//! The QMP clients: connections in, bytes to sessions, results and events out. What a command does is
//! the controller's business.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind as IoErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::time::Duration;

use ferry_api::qmp::{ClientId, Limits, Server, SessionAction};
use ferry_api::{Controller, Event, EventKind, Interface, Timestamp};
use ferry_block::net::SocketName;
use ferry_block::{Executor, Notify};

use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};

/// How long the last replies may take to leave when the process ends.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes read from a client at once.
const CHUNK: usize = 8192;

/// All QMP clients of this process.
pub struct Monitor {
    executor: Executor,
    server: RefCell<Server>,
    /// Output, room for input, or an end: every loop looks again.
    changed: Notify,
    controller: Weak<dyn Controller>,
    /// Of the sockets that it listens at.
    names: RefCell<Vec<SocketName>>,
}

/// A client and the way to it.
struct Client {
    id: ClientId,
    connection: Connection,
    /// It hears nothing any more. What it said before is still read.
    gone: Cell<bool>,
}

/// The listening socket; its file goes away with it.
pub struct Listener {
    socket: UnixListener,
    name: SocketName,
}

impl Listener {
    /// Listens at `path`. A socket that a process left behind is replaced, one in use is not.
    ///
    /// # Errors
    /// The path is in use or cannot be made.
    pub fn bind(path: &Path) -> Result<Listener> {
        let (socket, name) = SocketName::listen(path).map_err(|e| {
            let context = format!("cannot listen for QMP clients at {}: {e}", path.display());
            Error::new(ErrorKind::Config, context)
        })?;
        Ok(Listener { socket, name })
    }
}

impl Monitor {
    /// A monitor without clients. The commands of `interface` go to `controller`.
    pub fn new(
        executor: Executor,
        interface: &'static Interface,
        controller: Weak<dyn Controller>,
    ) -> Rc<Monitor> {
        Rc::new(Monitor {
            executor,
            server: RefCell::new(Server::new(interface, Limits::default())),
            changed: Notify::new(),
            controller,
            names: RefCell::default(),
        })
    }

    /// Takes connections as long as the process lives.
    pub fn listen(self: &Rc<Self>, listener: Listener) {
        let Listener { socket, name } = listener;
        self.names.borrow_mut().push(name);
        let this = Rc::clone(self);
        drop(self.executor.spawn(async move {
            loop {
                match socket.accept() {
                    Ok((stream, _)) => match Connection::socket(stream) {
                        Ok(connection) => this.welcome(connection),
                        Err(error) => tracing::warn!(%error, "a QMP client could not connect"),
                    },
                    Err(e) if e.kind() == IoErrorKind::WouldBlock => {
                        if let Err(error) = this.executor.readable(socket.as_raw_fd()).await {
                            tracing::error!(%error, "no more QMP clients can connect");
                            return;
                        }
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: do not spin until some are free again.
                        tracing::warn!(%error, "a QMP client could not connect");
                        this.executor.sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }));
    }

    /// Tells every client, now or when the event's rate allows it.
    pub fn event(self: &Rc<Self>, kind: EventKind) {
        let event = Event::new(kind, Timestamp::now());
        let had_tick = self.server.borrow().next_tick().is_some();
        self.server.borrow_mut().event(event, self.now());
        if !had_tick && self.server.borrow().next_tick().is_some() {
            let this = Rc::clone(self);
            drop(self.executor.spawn(async move { this.send_held_back().await }));
        }
        self.changed.notify_all();
    }

    /// Takes the sockets' names away, then waits until all clients have what they were sent, but not
    /// for clients that do not read.
    pub async fn say_goodbye(&self) {
        self.names.borrow_mut().clear();
        let deadline = self.now() + FAREWELL;
        let waits = || self.server.borrow().needing_attention().next().is_some();
        while waits() && self.now() < deadline {
            self.executor.sleep(Duration::from_millis(1)).await;
        }
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.executor.clock().now())
    }

    async fn send_held_back(&self) {
        loop {
            let Some(due) = self.server.borrow().next_tick() else { return };
            self.executor.sleep(due.saturating_sub(self.now())).await;
            self.server.borrow_mut().tick(self.now());
            self.changed.notify_all();
        }
    }

    /// Begins a session with whoever is at the other end.
    pub(crate) fn welcome(self: &Rc<Self>, connection: Connection) {
        let connected = self.server.borrow_mut().connect();
        let id = match connected {
            Ok(id) => id,
            Err(refused) => {
                tracing::warn!("{refused}");
                return;
            }
        };
        let client = Rc::new(Client { id, connection, gone: Cell::new(false) });
        let (reader, writer, watcher) = (Rc::clone(self), Rc::clone(self), Rc::clone(self));
        let (heard, told) = (Rc::clone(&client), Rc::clone(&client));
        drop(self.executor.spawn(async move {
            reader.read_from(&heard).await;
            reader.dismiss(id);
        }));
        drop(self.executor.spawn(async move { writer.write_to(&told).await }));
        drop(self.executor.spawn(async move { watcher.watch(&client).await }));
    }

    fn dismiss(&self, client: ClientId) {
        self.server.borrow_mut().disconnect(client);
        self.changed.notify_all();
    }

    /// Notes that a client is gone, whatever it is waited for: commands that it began go on without it.
    async fn watch(&self, client: &Client) {
        if let Err(error) = self.executor.hung_up(client.connection.output()).await {
            tracing::debug!(%error, "a QMP client's end will be noticed late");
            return;
        }
        client.gone.set(true);
        self.changed.notify_all();
    }

    /// Takes requests until the client sends no more and all of them are answered, or it is gone.
    async fn read_from(self: &Rc<Self>, client: &Client) {
        let Client { id, ref connection, ref gone } = *client;
        let mut chunk = vec![0; CHUNK];
        loop {
            // A client that asks faster than it is answered waits here.
            let is_busy = || self.session_state(id) == SessionState::Busy;
            self.changed.wait_until(|| !is_busy() || gone.get()).await;
            if self.session_state(id) != SessionState::Reading {
                return;
            }
            match connection.read(&mut chunk) {
                // It may have shut only its sending side down, and wait for the answers.
                Ok(0) => return self.changed.wait_until(|| self.is_idle(id) || gone.get()).await,
                Ok(len) => self.feed(id, &chunk[..len]),
                Err(e) if e.kind() == IoErrorKind::Interrupted => {}
                Err(e) if e.kind() == IoErrorKind::WouldBlock => {
                    if self.executor.readable(connection.input()).await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    async fn write_to(self: &Rc<Self>, client: &Client) {
        let Client { id, ref connection, .. } = *client;
        loop {
            let has_output = || {
                self.server
                    .borrow_mut()
                    .session(id)
                    .is_none_or(|s| s.has_output() || s.end().is_some())
            };
            self.changed.wait_until(has_output).await;
            let written = match self.server.borrow_mut().session(id) {
                Some(session) if session.end().is_none() => connection.write(session.output()),
                Some(session) => {
                    if let Some(end) = session.end() {
                        tracing::warn!("QMP: {end}");
                    }
                    break;
                }
                None => break,
            };
            match written {
                Ok(len) => self.sent(id, len),
                Err(e) if e.kind() == IoErrorKind::Interrupted => {}
                Err(e) if e.kind() == IoErrorKind::WouldBlock => {
                    if self.executor.writable(connection.output()).await.is_err() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        // The reading side may wait for the client or for answers: either way it is over.
        connection.hang_up();
        self.dismiss(id);
    }

    fn session_state(&self, client: ClientId) -> SessionState {
        match self.server.borrow_mut().session(client) {
            Some(session) if session.end().is_some() => SessionState::Over,
            Some(session) if session.wants_input() => SessionState::Reading,
            Some(_) => SessionState::Busy,
            None => SessionState::Over,
        }
    }

    /// Whether nothing is left to be done for a client, or it is gone.
    fn is_idle(&self, client: ClientId) -> bool {
        self.server.borrow_mut().session(client).is_none_or(|session| session.is_idle())
    }

    fn feed(self: &Rc<Self>, client: ClientId, bytes: &[u8]) {
        let actions = self.server.borrow_mut().session(client).map(|session| session.feed(bytes));
        self.carry_out(client, actions.unwrap_or_default());
    }

    fn sent(self: &Rc<Self>, client: ClientId, len: usize) {
        let actions = self.server.borrow_mut().session(client).map(|session| session.sent(len));
        self.carry_out(client, actions.unwrap_or_default());
    }

    /// Starts commands; their results find their way back by themselves.
    fn carry_out(self: &Rc<Self>, client: ClientId, actions: Vec<SessionAction>) {
        for action in actions {
            let SessionAction::Execute { token, command } = action;
            let Some(controller) = self.controller.upgrade() else { return };
            let this = Rc::clone(self);
            drop(self.executor.spawn(async move {
                let result = controller.execute(command).await;
                let next = this
                    .server
                    .borrow_mut()
                    .session(client)
                    .map(|session| session.reply(token, result));
                this.carry_out(client, next.unwrap_or_default());
            }));
        }
        self.changed.notify_all();
    }
}

/// What the reading side of a connection shall do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SessionState {
    Reading,
    Busy,
    Over,
}

#[cfg(test)]
#[path = "monitor_tests.rs"]
mod tests;
