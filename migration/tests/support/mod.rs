//! A guest made of memory, a thread that writes to it and one disk; and the wire between two of them.
#![allow(dead_code, reason = "every test binary uses its own part of this")]
#![allow(unreachable_pub, reason = "every test binary is a crate of its own")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "this is a test")]

pub mod guest;
pub mod machines;
pub mod proxy;
pub mod ram;

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use ferry_migration::session::Tuning;
use ferry_migration::transport::Stream;
use ferry_migration::{Error, Session, dest, source};

use machines::{FakeDest, FakeSource};

/// Starts a named thread.
pub fn thread<R: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> R + Send + 'static,
) -> JoinHandle<R> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).unwrap()
}

/// What became of one side, with its machine.
pub struct Side<M, E> {
    pub machine: M,
    pub end: E,
    pub error: Option<Error>,
}

impl<M, E> Side<M, E> {
    pub fn report(&self) -> String {
        self.error.as_ref().map_or_else(String::new, Error::report)
    }
}

/// A migration between two threads.
pub struct Run {
    pub source: JoinHandle<Side<FakeSource, source::End>>,
    pub dest: JoinHandle<Side<FakeDest, dest::End>>,
    pub source_session: Session,
    pub dest_session: Session,
}

/// Starts both sides on the two ends of a connection.
pub fn start(
    source: FakeSource,
    dest: FakeDest,
    ends: (UnixStream, UnixStream),
    tuning: Tuning,
) -> Run {
    let source_session = Session::new(tuning).unwrap();
    let dest_session = Session::new(Tuning::default()).unwrap();
    let stream = Stream::from_unix(ends.0, source_session.canceller.clone()).unwrap();
    let source_thread = run_source(source, source::Peer::Stream(stream), &source_session);
    let stream = Stream::from_unix(ends.1, dest_session.canceller.clone()).unwrap();
    let dest_thread = run_dest(dest, stream, &dest_session);
    Run { source: source_thread, dest: dest_thread, source_session, dest_session }
}

pub fn run_source(
    mut machine: FakeSource,
    peer: source::Peer,
    session: &Session,
) -> JoinHandle<Side<FakeSource, source::End>> {
    let session = session.clone();
    machine.watch(&session);
    thread("source", move || {
        let (end, error) = source::run(peer, &mut machine, &session);
        Side { machine, end, error }
    })
}

pub fn run_dest(
    mut machine: FakeDest,
    stream: Stream,
    session: &Session,
) -> JoinHandle<Side<FakeDest, dest::End>> {
    let session = session.clone();
    thread("dest", move || {
        let (end, error) = dest::run(stream, &mut machine, &session);
        Side { machine, end, error }
    })
}

/// Both sides in memory, without anything in between.
pub fn migrate(
    source: FakeSource,
    dest: FakeDest,
) -> (Side<FakeSource, source::End>, Side<FakeDest, dest::End>) {
    let run = start(source, dest, UnixStream::pair().unwrap(), Tuning::default());
    (run.source.join().unwrap(), run.dest.join().unwrap())
}

/// Shared by both sides: the one disk, and who runs.
pub type Shared = Arc<Mutex<machines::World>>;
