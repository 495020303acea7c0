//! The half of a disk device that lives on the I/O thread: one task that takes orders one after the other.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use ferry_block::{BlockBackend, Executor, Notify, Task};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{BlkQueue, Disk, Parts};
use super::shared::Shared;
use super::state::ParkedState;
use crate::virtio::guest_buf::GuestBuffers;
use crate::virtio::queue::Ring;
use crate::virtio::{DeviceLink, QueuePosition, QueueSetup, features, reply};

/// What the other half asks for.
pub(super) enum Order {
    /// Here are memory, interrupt and doorbells. The first order.
    Attach(DeviceLink),
    /// Serve these queues, some of which have requests to be tried again.
    Start { features: u64, queues: Vec<QueueSetup>, parked: Vec<ParkedState> },
    /// Forget the queues when nothing is in flight, then call.
    Stop(Box<dyn FnOnce() + Send>),
    /// Take nothing more; when nothing is in flight, tell where the queues stand.
    Quiesce(reply::Sender<Stopped>),
    /// Go on after `Quiesce`.
    Resume,
}

/// Where a quiesced device stands.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) positions: Vec<QueuePosition>,
    pub(super) parked: Vec<ParkedState>,
}

/// Orders on their way to the I/O thread.
#[derive(Clone, Default)]
pub(super) struct Mailbox(Arc<Mutex<Letters>>);

#[derive(Default)]
struct Letters {
    orders: VecDeque<Order>,
    waker: Option<Waker>,
    closed: bool,
}

impl Mailbox {
    fn letters(&self) -> MutexGuard<'_, Letters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an order. Orders are carried out in this order, each after the one before is done.
    pub(super) fn send(&self, order: Order) {
        let mut letters = self.letters();
        letters.orders.push_back(order);
        let waker = letters.waker.take();
        drop(letters);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// No more orders: the worker lets everything go when it has carried out the last one.
    pub(super) fn close(&self) {
        let mut letters = self.letters();
        letters.closed = true;
        let waker = letters.waker.take();
        drop(letters);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    async fn next(&self) -> Option<Order> {
        poll_fn(|cx| {
            let mut letters = self.letters();
            match letters.orders.pop_front() {
                Some(order) => Poll::Ready(Some(order)),
                None if letters.closed => Poll::Ready(None),
                None => {
                    letters.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// A disk device on its I/O thread.
pub(super) struct Worker {
    executor: Executor,
    backend: BlockBackend,
    shared: Arc<Shared>,
    link: Option<Link>,
    queues: Vec<Rc<BlkQueue>>,
    quiesced: bool,
    idle: Rc<Notify>,
    doorbells: Vec<Task<()>>,
}

struct Link {
    buffers: GuestBuffers,
    interrupt: Arc<crate::virtio::Interrupt>,
}

impl Worker {
    pub(super) fn new(executor: Executor, backend: BlockBackend, shared: Arc<Shared>) -> Self {
        Self {
            executor,
            backend,
            shared,
            link: None,
            queues: Vec::new(),
            quiesced: false,
            idle: Rc::default(),
            doorbells: Vec::new(),
        }
    }

    /// Carries out orders until there will be no more.
    pub(super) async fn work(mut self, mailbox: Mailbox) {
        while let Some(order) = mailbox.next().await {
            match order {
                Order::Attach(link) => self.attach(link),
                Order::Start { features, queues, parked } => {
                    self.start(features, queues, &parked);
                }
                Order::Stop(done) => {
                    self.forget_queues().await;
                    done();
                }
                Order::Quiesce(answer) => {
                    self.quiesced = true;
                    self.settle().await;
                    answer.send(self.stopped());
                }
                Order::Resume => {
                    self.quiesced = false;
                    for queue in &self.queues {
                        queue.run();
                        queue.retry();
                    }
                }
            }
        }
        self.forget_queues().await;
        for doorbell in self.doorbells {
            doorbell.cancel().await;
        }
    }

    fn attach(&mut self, link: DeviceLink) {
        for kick in link.kicks {
            let executor = self.executor.clone();
            self.doorbells.push(self.executor.spawn(answer_doorbell(
                executor,
                kick,
                EventFd::read,
            )));
        }
        let buffers = GuestBuffers::new(link.memory);
        self.link = Some(Link { buffers, interrupt: link.interrupt });
    }

    fn start(&mut self, features: u64, setups: Vec<QueueSetup>, parked: &[ParkedState]) {
        let Some(link) = &self.link else {
            tracing::error!("a disk device was started before it was attached");
            return;
        };
        let disk = Disk {
            backend: self.backend.clone(),
            shared: Arc::clone(&self.shared),
            features,
            broken: Rc::new(Cell::new(false)),
        };
        let indirect = features & features::RING_INDIRECT_DESC != 0;
        let mut queues = Vec::with_capacity(setups.len());
        for QueueSetup { index, ring } in setups {
            let started = Ring::new(ring, indirect, link.buffers.memory()).and_then(|ring| {
                let queue = BlkQueue::new(Parts {
                    index,
                    ring,
                    buffers: link.buffers.clone(),
                    signal: Rc::new(Arc::clone(&link.interrupt)),
                    disk: disk.clone(),
                    executor: self.executor.clone(),
                    idle: Rc::clone(&self.idle),
                });
                let heads = parked.iter().filter(|parked| parked.queue == index);
                queues.push(Rc::clone(&queue));
                heads.map(|parked| parked.head).try_for_each(|head| queue.adopt(head))
            });
            if let Err(error) = started {
                self.shared.complain(index, error);
                disk.broken.set(true);
                link.interrupt.needs_reset();
            }
        }
        self.queues = queues;
        if !self.quiesced {
            for queue in &self.queues {
                queue.run();
            }
        }
    }

    /// Takes nothing more and waits until nothing is in flight.
    async fn settle(&self) {
        for queue in &self.queues {
            queue.pause();
        }
        self.idle.wait_until(|| self.queues.iter().all(|queue| queue.is_idle())).await;
    }

    async fn forget_queues(&mut self) {
        self.settle().await;
        for queue in self.queues.drain(..) {
            queue.close();
        }
    }

    fn stopped(&self) -> Stopped {
        let mut parked = Vec::new();
        for queue in &self.queues {
            let index = queue.position().index;
            parked
                .extend(queue.parked().into_iter().map(|head| ParkedState { queue: index, head }));
        }
        Stopped { positions: self.queues.iter().map(|queue| queue.position()).collect(), parked }
    }
}

/// Ends the executor's sleep when the driver rings. The rings themselves are looked at every turn.
pub(super) async fn answer_doorbell<K: AsRawFd>(
    executor: Executor,
    kick: K,
    hear: impl Fn(&K) -> io::Result<u64>,
) {
    loop {
        if let Err(error) = executor.readable(kick.as_raw_fd()).await {
            tracing::error!("a disk's doorbell cannot be waited for: {error}");
            return;
        }
        if let Err(error) = hear(&kick) {
            // Somebody else took the count: the bell was answered.
            tracing::trace!("doorbell: {error}");
        }
    }
}
