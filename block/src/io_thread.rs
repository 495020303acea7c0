//! A thread that owns an executor, its disk I/O and one block graph.

use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::{Executor, Remote};
use crate::graph::BlockGraph;
use crate::handle::BlockHandle;
use crate::io::RingChoice;
use crate::thread;

/// How an I/O thread works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoThreadOptions {
    /// Longest busy polling before sleeping, ns; 0 turns it off.
    pub poll_max_ns: u64,
    /// How disk requests are made.
    pub ring: RingChoice,
}

impl Default for IoThreadOptions {
    fn default() -> IoThreadOptions {
        IoThreadOptions {
            poll_max_ns: crate::executor::DEFAULT_POLL_MAX_NS,
            ring: RingChoice::Auto,
        }
    }
}

/// An I/O thread. Dropping it stops it and waits for its end.
pub struct IoThread {
    handle: BlockHandle,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts a thread of that name with an empty graph.
    pub fn spawn(name: &str, options: IoThreadOptions) -> Result<IoThread> {
        let (send, receive) = mpsc::sync_channel(1);
        let thread = thread::spawn(name, move || {
            let executor = match Executor::new(Clock::real()) {
                Ok(executor) => executor,
                Err(error) => {
                    report(&send, Err(error));
                    return;
                }
            };
            executor.set_poll_max_ns(options.poll_max_ns);
            executor.set_ring_choice(options.ring);
            let graph = BlockGraph::new(executor.clone());
            report(&send, Ok(BlockHandle::new(&graph)));
            executor.run();
            drop(graph);
            BlockHandle::leave_home();
            executor.shut_down();
        })?;
        let ended =
            |_| Error::new(ErrorKind::Disconnected, format!("thread '{name}' did not start"));
        let handle = receive.recv().map_err(ended)??;
        Ok(IoThread { handle, thread: Some(thread) })
    }

    /// The door to its graph.
    pub fn handle(&self) -> BlockHandle {
        self.handle.clone()
    }

    /// The door to its executor.
    pub fn remote(&self) -> Remote {
        self.handle.remote().clone()
    }

    /// Ends the thread. Whatever still waits there is dropped; requests that the kernel has are
    /// waited for.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.handle.remote().post(|executor| executor.stop());
        thread.join().map_err(|_panic| Error::new(ErrorKind::Io, "an I/O thread has panicked"))
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!("{error}");
        }
    }
}

fn report(send: &mpsc::SyncSender<Result<BlockHandle>>, result: Result<BlockHandle>) {
    if send.send(result).is_err() {
        tracing::error!("whoever started this I/O thread is gone");
    }
}
