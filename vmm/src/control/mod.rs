//! The control thread: it owns the machine and decides everything that happens to it.
//!
//! All sorts of things end up here as tasks of one executor: QMP commands ([`execute`]), reports of the
//! machine ([`guest`]), events of the block layer, requests of the migration thread. They
//! take turns, so nothing here needs a lock; whoever waits for the disks waits in an `await`.

mod clock;
mod execute;
mod guest;
mod run_state;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use ferry_api::{EventKind, interface};
use ferry_block::{BlockHandle, Clock, Executor, Notify, Remote};
use ferry_storage::{Listener, Monitor, Signals, Storage};

use crate::config::{Config, RunArgs};
use crate::console::{Console, ConsoleEvent};
use crate::error::{Error, Result};
use crate::exit::Ending;
use crate::machine::{Machine, MachineParts};
use crate::migrate::Migrations;
use clock::ClockWatch;
pub(crate) use run_state::{Change, machine_error};

thread_local! {
    /// The control of this thread: how messages from other threads find it.
    static HERE: RefCell<Weak<Control>> = const { RefCell::new(Weak::new()) };
}

/// Runs a guest to its end: `ferry run`.
pub fn run(args: RunArgs) -> Ending {
    Config::try_from(args).and_then(run_config).unwrap_or_else(Ending::Failed)
}

fn run_config(config: Config) -> Result<Ending> {
    // Before any thread: they inherit which signals are blocked.
    let signals = Signals::take()?;
    let executor =
        Executor::new(Clock::real()).map_err(|e| Error::host("start the control loop", e))?;
    let listener = config.qmp.as_deref().map(Listener::bind).transpose()?;
    let (console, sink) = Console::open(&config.serial)?;
    let door = ControlDoor(executor.remote());
    let parts = MachineParts {
        sink,
        events: Arc::new(move |event| door.post(|control| control.on_machine_event(event))),
        clock: Arc::new(|| Duration::from_nanos(Clock::real().now())),
    };
    let machine = executor.block_on(Machine::new(&config, parts))?;
    let control = Control::new(executor.clone(), machine, console, config);
    let ending = executor.block_on(async {
        control.start(signals, listener).await?;
        let ending = control.ended().await;
        control.monitor.say_goodbye().await;
        control.console.finish(&control.executor, &control.machine.shared_serial()).await;
        Ok(ending)
    });
    control.console.close();
    ending
}

/// The control thread's state.
pub(crate) struct Control {
    pub(crate) executor: Executor,
    pub(crate) machine: Machine,
    pub(crate) migrations: Migrations,
    console: Console,
    clock: Rc<ClockWatch>,
    config: Config,
    monitor: Rc<Monitor>,
    /// Carries out what is the disks' and not the machine's.
    storage: Storage,
    ending: RefCell<Option<Ending>>,
    /// The end has come, or the right to change the run state is free.
    changed: Notify,
    /// A change of the run state is under way: the next one waits.
    changing: Cell<bool>,
}

impl Control {
    /// Takes charge of a machine on the thread of `executor`.
    fn new(executor: Executor, machine: Machine, console: Console, config: Config) -> Rc<Control> {
        let control = Rc::new_cyclic(|this: &Weak<Control>| Control {
            migrations: Migrations::new(config.incoming.is_some(), config.paused),
            monitor: Monitor::new(executor.clone(), &interface::MACHINE, this.clone()),
            storage: Storage::new(machine.block(), crate::exports::KINDS),
            executor,
            machine,
            console,
            clock: Rc::default(),
            config,
            ending: RefCell::new(None),
            changed: Notify::new(),
            changing: Cell::new(false),
        });
        HERE.set(Rc::downgrade(&control));
        control
    }

    /// Lets everything in that may act on the machine, then the guest run, unless told otherwise.
    async fn start(self: &Rc<Self>, signals: Signals, listener: Option<Listener>) -> Result<()> {
        let door = self.door();
        let forward = move |event| door.post(|control| control.event(event));
        self.storage.forward_events(forward).await?;
        let this = Rc::clone(self);
        self.console.start(
            &self.executor,
            &self.machine.shared_serial(),
            move |event| match event {
                ConsoleEvent::Quit => this.host_ends(Ending::Terminal),
            },
        )?;
        self.clock.start(&self.executor, self.machine.shared_clock());
        let this = Rc::clone(self);
        drop(self.executor.spawn(async move {
            match signals.next(&this.executor).await {
                Ok(name) => this.host_ends(Ending::Signal(name)),
                Err(error) => tracing::error!("{error}"),
            }
        }));
        if let Some(listener) = listener {
            self.monitor.listen(listener);
        }
        match self.config.incoming.as_deref() {
            Some("defer") => Ok(()),
            Some(uri) => self.receive(uri),
            None if self.config.paused => Ok(()),
            None => self.machine.resume(),
        }
    }

    /// Waits for the end and tells how it came.
    async fn ended(&self) -> Ending {
        self.changed.wait_until(|| self.ending.borrow().is_some()).await;
        self.ending.take().unwrap_or(Ending::Quit)
    }

    /// Ends the process; the first reason counts.
    pub(crate) fn end(&self, why: Ending) {
        self.ending.borrow_mut().get_or_insert(why);
        self.changed.notify_all();
    }

    /// Tells QMP clients something.
    pub(crate) fn event(&self, kind: EventKind) {
        self.monitor.event(kind);
    }

    /// The disks' block graph.
    pub(crate) fn blocks(&self) -> BlockHandle {
        self.machine.block()
    }

    /// A door to this control for other threads.
    pub(crate) fn door(&self) -> ControlDoor {
        ControlDoor(self.executor.remote())
    }
}

/// Reaches the control thread from any other.
#[derive(Clone)]
pub(crate) struct ControlDoor(Remote);

impl ControlDoor {
    /// Runs `message` there, after everything that was posted before; not at all when the control is gone.
    pub(crate) fn post(&self, message: impl FnOnce(&Rc<Control>) + Send + 'static) {
        self.0.post(move |_| {
            if let Some(control) = HERE.with_borrow(Weak::upgrade) {
                message(&control);
            }
        });
    }

    /// Runs `call` there and waits for what it returns; `None` when the control is gone.
    pub(crate) fn call_blocking<R, F, Fut>(&self, call: F) -> Option<R>
    where
        R: Send + 'static,
        F: FnOnce(Rc<Control>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        self.post(move |control| {
            let future = call(Rc::clone(control));
            drop(control.executor.spawn(async move {
                if send.send(future.await).is_err() {
                    tracing::debug!("a thread did not wait for its answer");
                }
            }));
        });
        receive.recv().ok()
    }
}
