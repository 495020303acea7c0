use ferry_block::{Clock, Executor, LocalBoxFuture};

use super::*;

/// An export that is gone when it is told so.
#[derive(Default)]
struct Slow {
    retired: Cell<bool>,
    may_go: Notify,
    goes: Cell<bool>,
}

impl RunningExport for Slow {
    fn node_name(&self) -> String {
        "n".to_owned()
    }

    fn has_client(&self) -> bool {
        false
    }

    fn retire(&self) {
        self.retired.set(true);
    }

    fn close(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.may_go.wait_until(|| self.goes.get()))
    }
}

#[test]
fn exports_let_nobody_in_from_the_moment_they_are_to_go() {
    let executor = Executor::new(Clock::real()).unwrap();
    executor.block_on(async {
        let graph = BlockGraph::new(executor.clone());
        let exports = Exports::of(&graph);
        let slow = Rc::new(Slow::default());
        let start = async { Ok(Rc::clone(&slow) as Rc<dyn RunningExport>) };
        exports.add(BlockExportType::Nbd, "e", start).await.unwrap();

        let gone = exports.remove_all(&graph, |_| true);
        assert!(slow.retired.get(), "whoever gives the image up next relies on it");
        assert!(exports.infos()[0].shutting_down);
        slow.goes.set(true);
        slow.may_go.notify_all();
        gone.await;
        assert!(exports.infos().is_empty());
    });
}
