//! Clients that come and go while their commands are under way.

use std::future::pending;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use ferry_api::{Command, LocalBoxFuture, QmpError, interface};
use ferry_block::{Clock, within};
use serde_json::Value;

use super::*;

/// Nothing here takes longer, unless it hangs.
const LIMIT: Duration = Duration::from_secs(10);

/// Begins every command and ends none.
#[derive(Default)]
struct Endless {
    begun: Cell<usize>,
    changed: Notify,
}

impl Controller for Endless {
    fn execute(
        self: Rc<Self>,
        _command: Command,
    ) -> LocalBoxFuture<std::result::Result<Value, QmpError>> {
        self.begun.set(self.begun.get() + 1);
        self.changed.notify_all();
        Box::pin(pending())
    }
}

struct Bench {
    executor: Executor,
    controller: Rc<Endless>,
    monitor: Rc<Monitor>,
}

impl Bench {
    fn new() -> Bench {
        let executor = Executor::new(Clock::real()).unwrap();
        let controller = Rc::new(Endless::default());
        let weak = Rc::downgrade(&controller);
        let monitor = Monitor::new(executor.clone(), &interface::STORAGE, weak);
        Bench { executor, controller, monitor }
    }

    /// A client that asks for something `times` times; the first of its commands has begun.
    fn client(&self, times: usize) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        self.monitor.welcome(Connection::socket(ours).unwrap());
        let before = self.controller.begun.get();
        theirs.write_all(br#"{"execute": "qmp_capabilities"}"#).unwrap();
        for _ in 0..times {
            theirs.write_all(br#"{"execute": "query-block-jobs"}"#).unwrap();
        }
        let Endless { begun, changed } = &*self.controller;
        self.wait(changed.wait_until(|| begun.get() > before)).unwrap();
        theirs
    }

    fn clients(&self) -> usize {
        self.monitor.server.borrow().clients().count()
    }

    fn wait(&self, what: impl Future<Output = ()>) -> Option<()> {
        self.executor.block_on(within(&self.executor, LIMIT, what))
    }
}

#[test]
fn a_client_that_is_gone_keeps_no_place_however_long_its_commands_take() {
    let bench = Bench::new();
    for requests in [1, 2, 100] {
        drop(bench.client(requests));
        let gone = bench.monitor.changed.wait_until(|| bench.clients() == 0);
        assert!(bench.wait(gone).is_some(), "with {requests} requests");
    }
    assert_eq!(bench.controller.begun.get(), 3, "what waits for its turn goes with its client");
}

#[test]
fn a_client_that_only_stopped_sending_keeps_its_place() {
    let bench = Bench::new();
    let client = bench.client(1);
    client.shutdown(Shutdown::Write).unwrap();
    bench.executor.block_on(bench.executor.sleep(Duration::from_millis(50)));
    assert_eq!(bench.clients(), 1);
}
