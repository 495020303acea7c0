//! [`BlockHandle`]: the door to a graph for other threads.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::error::{Error, ErrorKind, Result};
use crate::executor::Remote;
use crate::graph::BlockGraph;

thread_local! {
    /// The graphs whose home is this thread, by number.
    static AT_HOME: RefCell<Vec<(u64, BlockGraph)>> = const { RefCell::new(Vec::new()) };
    /// The calls under way on this thread.
    static CALLS: RefCell<Vec<Rc<dyn GiveUp>>> = const { RefCell::new(Vec::new()) };
}

static NEXT_GRAPH: AtomicU64 = AtomicU64::new(1);

/// Runs functions on the home thread of a graph. Cheap to clone, may go anywhere.
#[derive(Clone)]
pub struct BlockHandle {
    remote: Remote,
    graph: u64,
}

/// Where the result of a call arrives.
struct Reply<R> {
    state: Mutex<ReplyState<R>>,
}

struct ReplyState<R> {
    result: Option<Result<R>>,
    waker: Option<Waker>,
    /// Answered, or never will be.
    over: bool,
}

/// The sending half: a call that is dropped without a result is answered too.
struct Answer<R: Send + 'static> {
    reply: Arc<Reply<R>>,
    /// The caller's executor, through whose queue the result goes: what the home thread posted
    /// there before is then seen before the result.
    caller: Option<Remote>,
}

/// A call of any result that will never be answered.
trait GiveUp {
    fn give_up(&self);
}

impl<R: Send + 'static> GiveUp for Answer<R> {
    fn give_up(&self) {
        let context = "the block layer's thread has ended";
        self.send(Err(Error::new(ErrorKind::Disconnected, context)));
    }
}

impl<R: Send + 'static> Answer<R> {
    fn send(&self, result: Result<R>) {
        let reply = Arc::clone(&self.reply);
        match &self.caller {
            Some(caller) => caller.post(move |_| reply.deliver(result)),
            None => reply.deliver(result),
        }
    }
}

impl<R: Send + 'static> Drop for Answer<R> {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl<R> Reply<R> {
    fn lock(&self) -> MutexGuard<'_, ReplyState<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first answer counts.
    fn deliver(&self, result: Result<R>) {
        let mut state = self.lock();
        if state.over {
            return;
        }
        state.over = true;
        state.result = Some(result);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl BlockHandle {
    /// A handle to a graph of this thread, which must be that of its executor.
    pub fn new(graph: &BlockGraph) -> BlockHandle {
        let remote = graph.executor().remote();
        AT_HOME.with_borrow_mut(|graphs| {
            let known = graphs.iter().find(|(_, other)| Rc::ptr_eq(&other.0, &graph.0));
            let number = known
                .map_or_else(|| NEXT_GRAPH.fetch_add(1, Ordering::Relaxed), |(number, _)| *number);
            if known.is_none() {
                graphs.push((number, graph.clone()));
            }
            BlockHandle { remote, graph: number }
        })
    }

    /// Lets go of the graphs of this thread, at its end, and tells who still waits for an answer.
    pub(crate) fn leave_home() {
        for call in CALLS.take() {
            call.give_up();
        }
        let graphs = AT_HOME.take();
        drop(graphs);
    }

    /// The door of the home thread's executor.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Runs `call` on the home thread and waits for its result. It runs to its end even if this
    /// future is dropped. [`ErrorKind::Disconnected`] if that thread has ended.
    pub async fn call<R, F, Fut>(&self, call: F) -> Result<R>
    where
        R: Send + 'static,
        F: FnOnce(BlockGraph) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        let reply = self.start(call, Remote::current());
        poll_fn(|cx| {
            let mut state = reply.lock();
            match state.result.take() {
                Some(result) => Poll::Ready(result),
                None => {
                    state.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// [`call`](BlockHandle::call) for threads without an executor. Never from the home thread.
    pub fn call_blocking<R, F, Fut>(&self, call: F) -> Result<R>
    where
        R: Send + 'static,
        F: FnOnce(BlockGraph) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        let reply = self.start(call, None);
        let this = std::thread::current();
        let waker = Waker::from(Arc::new(Unpark(this)));
        loop {
            let mut state = reply.lock();
            if let Some(result) = state.result.take() {
                return result;
            }
            state.waker = Some(waker.clone());
            drop(state);
            std::thread::park();
        }
    }

    fn start<R, F, Fut>(&self, call: F, caller: Option<Remote>) -> Arc<Reply<R>>
    where
        R: Send + 'static,
        F: FnOnce(BlockGraph) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        let state = ReplyState { result: None, waker: None, over: false };
        let reply = Arc::new(Reply { state: Mutex::new(state) });
        let answer = Answer { reply: Arc::clone(&reply), caller };
        let number = self.graph;
        self.remote.post(move |executor| {
            let graph = AT_HOME.with_borrow(|graphs| {
                graphs.iter().find(|(other, _)| *other == number).map(|(_, graph)| graph.clone())
            });
            // Without a graph the answer is dropped, which tells the caller.
            let Some(graph) = graph else { return };
            let future = call(graph);
            let answer = Rc::new(answer);
            CALLS.with_borrow_mut(|calls| calls.push(answer.clone()));
            drop(executor.spawn(async move {
                let result = future.await;
                answer.send(Ok(result));
                let this = Rc::as_ptr(&answer).addr();
                CALLS.with_borrow_mut(|calls| {
                    calls.retain(|call| Rc::as_ptr(call).addr() != this);
                });
            }));
        });
        reply
    }
}

struct Unpark(std::thread::Thread);

impl std::task::Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
#[path = "handle_tests.rs"]
mod tests;
