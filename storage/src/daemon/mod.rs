//! `ferry storage`: nodes, jobs and exports without a guest.
//!
//! One thread has the sockets of QMP, the other one the graph with its exports.

mod args;
mod chardev;
mod detach;
mod keyval;
mod pidfile;

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use ferry_api::command::{BlockCommand, ChardevInfo, Command, ProcessCommand, reply};
use ferry_api::schema::Empty;
use ferry_api::{Controller, EventKind, LocalBoxFuture, QmpError, interface};
use ferry_block::{Clock, Executor, IoThread, IoThreadOptions, Notify};
use serde_json::Value;

use crate::command::Storage;
use crate::error::{Error, ErrorKind, Result};
use crate::export_kind::ExportKinds;
use crate::monitor::Monitor;
use crate::signals::Signals;

use args::Plan;
pub use args::StorageArgs;
use chardev::{Chardev, Opened};
use detach::Side;
use pidfile::PidFile;

thread_local! {
    /// The daemon of this thread: how the graph's thread finds it.
    static HERE: RefCell<Weak<Daemon>> = const { RefCell::new(Weak::new()) };
}

/// Why a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It goes on in the background, or could not start there and has said why.
    Detached {
        /// Whether it goes on.
        ready: bool,
    },
    /// QMP's `quit`.
    Quit,
    /// A signal came; its name.
    Signal(&'static str),
}

impl Ending {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Ending::Quit | Ending::Signal(_) | Ending::Detached { ready: true } => 0,
            Ending::Detached { ready: false } => 1,
        }
    }
}

/// Serves disks until somebody ends it. Besides NBD there are these kinds of exports.
///
/// # Errors
/// The command line or something that it names cannot be used, or in the end something could not be
/// made durable.
pub fn serve(args: StorageArgs, kinds: ExportKinds) -> Result<Ending> {
    let plan = Plan::try_from(args)?;
    let ready = if plan.daemonize {
        match detach::fork()? {
            Side::Started { ready } => return Ok(Ending::Detached { ready }),
            Side::Behind(ready) => Some(ready),
        }
    } else {
        None
    };
    // Before any thread: they inherit which signals are blocked.
    let signals = Signals::take()?;
    let pidfile = plan.pidfile.as_deref().map(PidFile::create).transpose()?;
    let host = |e: ferry_block::Error| Error::host("start", &e);
    let executor = Executor::new(Clock::real()).map_err(host)?;
    let disks = IoThread::spawn("disks", IoThreadOptions::default()).map_err(host)?;
    let chardevs = plan.monitors.iter().map(Chardev::info).collect();
    let storage = Storage::new(disks.handle(), kinds);
    let daemon = Daemon::new(executor.clone(), storage, chardevs);
    let ending = executor.block_on(async {
        let started = daemon.start(plan, signals).await;
        let told = started.and_then(|()| ready.map_or(Ok(()), detach::Ready::tell));
        let ending = match told {
            Ok(()) => Ok(daemon.ended().await),
            Err(error) => Err(error),
        };
        let closed = daemon.storage.close().await;
        daemon.monitor.say_goodbye().await;
        closed.map_err(|error| Error::new(ErrorKind::Host, error.to_string())).and(ending)
    });
    drop(pidfile);
    ending
}

struct Daemon {
    executor: Executor,
    storage: Storage,
    monitor: Rc<Monitor>,
    /// What `query-chardev` says.
    chardevs: Vec<ChardevInfo>,
    ending: RefCell<Option<Ending>>,
    changed: Notify,
}

impl Controller for Daemon {
    fn execute(
        self: Rc<Self>,
        command: Command,
    ) -> LocalBoxFuture<std::result::Result<Value, QmpError>> {
        Box::pin(async move {
            match command {
                Command::Process(ProcessCommand::Quit) => {
                    self.end(Ending::Quit);
                    reply(&Empty {})
                }
                Command::Process(ProcessCommand::QueryChardev) => reply(&self.chardevs),
                Command::Block(command) if self.is_ending() && !is_in_time(&command) => {
                    let text = format!("{} comes too late: the process ends", command.name());
                    Err(QmpError::generic(text))
                }
                Command::Block(command) => self.storage.execute(command).await,
                // Not in the interface, so that no session lets it through.
                Command::Machine(command) => Err(QmpError::command_not_found(command.name())),
            }
        })
    }
}

impl Daemon {
    fn new(executor: Executor, storage: Storage, chardevs: Vec<ChardevInfo>) -> Rc<Daemon> {
        let daemon = Rc::new_cyclic(|this: &Weak<Daemon>| Daemon {
            monitor: Monitor::new(executor.clone(), &interface::STORAGE, this.clone()),
            executor,
            storage,
            chardevs,
            ending: RefCell::new(None),
            changed: Notify::new(),
        });
        HERE.set(Rc::downgrade(&daemon));
        daemon
    }

    /// Does what the command line says, in the order in which one thing needs another.
    async fn start(self: &Rc<Self>, plan: Plan, signals: Signals) -> Result<()> {
        let remote = self.executor.remote();
        let forward = move |event: EventKind| {
            remote.post(move |_| {
                if let Some(daemon) = HERE.with_borrow(Weak::upgrade) {
                    daemon.monitor.event(event);
                }
            });
        };
        let failed = |e: ferry_block::Error| Error::host("start", &e);
        self.storage.forward_events(forward).await.map_err(failed)?;
        // First of all the sockets: whoever takes them twice shall not have opened disks before.
        let monitors = plan.monitors.iter().map(Chardev::open);
        let monitors = monitors.collect::<Result<Vec<_>>>()?;
        for object in plan.objects {
            let what = format!("--object {}", object.id);
            self.storage.object_add(object).await.map_err(refused(&what))?;
        }
        for node in plan.nodes {
            let what = format!("--blockdev {}", node.node_name.as_deref().unwrap_or_default());
            self.storage.blockdev_add(node).await.map_err(refused(&what))?;
        }
        let serves_nbd = plan.nbd_server.is_some();
        if let Some(server) = plan.nbd_server {
            self.storage.nbd_server(server).await.map_err(refused("--nbd-server"))?;
        }
        for export in plan.exports {
            let what = format!("--export {}", export.id);
            self.storage.block_export_add(export).await.map_err(refused(&what))?;
        }
        // Who waits for the socket to be there connects at once, and asks for what comes last.
        if serves_nbd {
            self.storage.open_nbd_server().await.map_err(refused("--nbd-server"))?;
        }
        for monitor in monitors {
            match monitor {
                Opened::Listener(listener) => self.monitor.listen(listener),
                Opened::Connection(connection) => self.monitor.welcome(connection),
            }
        }
        let this = Rc::clone(self);
        drop(self.executor.spawn(async move {
            match signals.next(&this.executor).await {
                Ok(name) => this.end(Ending::Signal(name)),
                Err(error) => tracing::error!("{error}"),
            }
        }));
        Ok(())
    }

    fn is_ending(&self) -> bool {
        self.ending.borrow().is_some()
    }

    fn end(&self, why: Ending) {
        self.ending.borrow_mut().get_or_insert(why);
        self.changed.notify_all();
    }

    async fn ended(&self) -> Ending {
        self.changed.wait_until(|| self.is_ending()).await;
        self.ending.borrow().unwrap_or(Ending::Quit)
    }
}

/// Whether a command may come while everything is being closed. What others began then nobody would end: a
/// node would not be given up, and what its bitmaps recorded would be lost.
fn is_in_time(command: &BlockCommand) -> bool {
    matches!(command, BlockCommand::Yank(_)) || command.name().starts_with("query-")
}

/// An error of something that the command line asks for.
fn refused(what: &str) -> impl FnOnce(QmpError) -> Error {
    move |error| Error::new(ErrorKind::Config, format!("{what}: {error}"))
}

#[cfg(test)]
#[path = "daemon_tests.rs"]
mod tests;
