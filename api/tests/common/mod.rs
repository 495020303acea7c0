//! A QMP server on a real socket with a machine that only pretends: what the tests here talk to.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod job;
pub(crate) mod machine;
pub(crate) mod peer;
pub(crate) mod qemu;

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use ferry_api::{
    Controller, Event, Timestamp,
    qmp::{ClientId, Limits, Server, SessionAction},
};

use self::machine::FakeMachine;

/// A server in a thread of its own, until it is dropped.
pub(crate) struct FakeServer {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl FakeServer {
    pub(crate) fn start() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("fake-qmp".into())
            .spawn(move || Driver::new(listener, limits).run(&seen))
            .unwrap();
        FakeServer { path, stop, thread: Some(thread), _dir: dir }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

/// What a real program does with an event loop, done with short sleeps.
struct Driver {
    listener: UnixListener,
    server: Server,
    sockets: BTreeMap<ClientId, UnixStream>,
    machine: Rc<FakeMachine>,
    now: Duration,
}

impl Driver {
    fn new(listener: UnixListener, limits: Limits) -> Self {
        let machine = Rc::new(FakeMachine::default());
        let (server, sockets) =
            (Server::new(&ferry_api::interface::MACHINE, limits), BTreeMap::new());
        Driver { listener, server, sockets, machine, now: Duration::ZERO }
    }

    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            while let Ok((socket, _)) = self.listener.accept() {
                self.accept(socket);
            }
            for client in self.server.clients().collect::<Vec<_>>() {
                self.read(client);
            }
            self.machine.tick();
            self.broadcast();
            self.server.tick(self.now);
            for client in self.server.clients().collect::<Vec<_>>() {
                self.write(client);
            }
            if self.machine.has_quit() && !self.server.clients().any(|c| self.has_output(c)) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
            self.now += Duration::from_millis(1);
        }
    }

    fn has_output(&self, client: ClientId) -> bool {
        self.server.needing_attention().any(|c| c == client)
    }

    fn accept(&mut self, socket: UnixStream) {
        socket.set_nonblocking(true).unwrap();
        if let Ok(client) = self.server.connect() {
            self.sockets.insert(client, socket);
        }
    }

    fn read(&mut self, client: ClientId) {
        let mut chunk = vec![0; 64 << 10];
        while self.server.session(client).is_some_and(|s| s.wants_input()) {
            let Some(socket) = self.sockets.get_mut(&client) else { return };
            match socket.read(&mut chunk) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Ok(0) | Err(_) => return self.close(client),
                Ok(n) => {
                    let actions = self.server.session(client).unwrap().feed(&chunk[..n]);
                    self.act(client, actions);
                }
            }
        }
    }

    /// Carries out what a session wants, and what it wants next because of that. A loop, for one
    /// chunk of input may hold thousands of commands.
    fn act(&mut self, client: ClientId, actions: Vec<SessionAction>) {
        let mut todo = VecDeque::from(actions);
        while let Some(SessionAction::Execute { token, command }) = todo.pop_front() {
            let mut future = Rc::clone(&self.machine).execute(command);
            let mut context = Context::from_waker(Waker::noop());
            let Poll::Ready(result) = future.as_mut().poll(&mut context) else {
                panic!("the fake machine answers at once");
            };
            self.broadcast();
            let Some(session) = self.server.session(client) else { return };
            todo.extend(session.reply(token, result));
        }
    }

    fn broadcast(&mut self) {
        for event in self.machine.take_events() {
            self.server.event(Event::new(event, Timestamp::now()), self.now);
        }
    }

    fn write(&mut self, client: ClientId) {
        loop {
            let (Some(session), Some(socket)) =
                (self.server.session(client), self.sockets.get_mut(&client))
            else {
                return;
            };
            if session.end().is_some() {
                return self.close(client);
            }
            if session.output().is_empty() {
                return;
            }
            match socket.write(session.output()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.close(client),
                Ok(n) => {
                    let actions = session.sent(n);
                    self.act(client, actions);
                }
            }
        }
    }

    fn close(&mut self, client: ClientId) {
        self.sockets.remove(&client);
        self.server.disconnect(client);
    }
}
