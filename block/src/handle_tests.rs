use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::executor::Executor;
use crate::io::RingChoice;
use crate::io_thread::{IoThread, IoThreadOptions};
use crate::open::BlockdevOptions;
use crate::{IoBuf, WriteFlags};

fn io_thread(ring: RingChoice) -> IoThread {
    IoThread::spawn("io0", IoThreadOptions { ring, ..IoThreadOptions::default() }).unwrap()
}

#[test]
fn a_call_runs_at_home_and_brings_its_result() {
    for ring in [RingChoice::Auto, RingChoice::ThreadPool] {
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let thread = io_thread(ring);
        let options = BlockdevOptions {
            node_name: Some("n0".into()),
            ..BlockdevOptions::raw_file(file.path().to_str().unwrap())
        };
        let opened = thread.handle().call_blocking(|graph| async move {
            graph.open(&options).await.map(|node| node.len())
        });
        assert_eq!(opened.unwrap().unwrap(), 1 << 20);
        let executor = Executor::new(Clock::real()).unwrap();
        let written = executor.block_on(thread.handle().call(|graph| async move {
            let node = graph.node("n0").unwrap();
            let root = graph.add_backend(
                crate::BackendKind::Device,
                "d0",
                &node,
                crate::EdgePerms::READ_WRITE,
            )?;
            root.write(512, IoBuf::from_vec(&[3; 512]), WriteFlags::NONE).await
        }));
        written.unwrap().unwrap();
        thread.stop().unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap()[512..1024], [3; 512]);
    }
}

/// What the home thread posted before it answered is handled before the answer is seen, and what
/// it posted afterwards is not.
#[test]
fn events_and_answers_keep_their_order() {
    thread_local! { static SEEN: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) }; }
    let thread = io_thread(RingChoice::ThreadPool);
    let executor = Executor::new(Clock::real()).unwrap();
    for _ in 0..300 {
        let (here, handle) = (executor.remote(), thread.handle());
        let call = handle.call(move |graph| async move {
            here.post(|_| SEEN.with_borrow_mut(|seen| seen.push(1)));
            let executor = graph.executor().clone();
            drop(executor.spawn(async move {
                here.post(|_| SEEN.with_borrow_mut(|seen| seen.push(3)));
            }));
        });
        executor.block_on(async {
            // Polled again and again, so that an early look has its chance.
            let mut call = std::pin::pin!(call);
            std::future::poll_fn(|cx| {
                let poll = call.as_mut().poll(cx);
                if poll.is_pending() {
                    cx.waker().wake_by_ref();
                }
                poll
            })
            .await
            .unwrap();
            SEEN.with_borrow_mut(|seen| seen.push(2));
        });
        while SEEN.with_borrow(|seen| seen.len() < 3) {
            executor.block_on(executor.sleep(Duration::from_micros(50)));
        }
        let seen = SEEN.take();
        assert_eq!(seen.iter().position(|it| *it == 1), Some(0), "{seen:?}");
    }
}

#[test]
fn a_call_to_a_thread_that_has_ended_is_an_error() {
    let thread = io_thread(RingChoice::ThreadPool);
    let handle = thread.handle();
    thread.stop().unwrap();
    let error = handle.call_blocking(|_| async {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
}

#[test]
fn a_call_that_never_ends_ends_with_the_thread() {
    let thread = io_thread(RingChoice::ThreadPool);
    let handle = thread.handle();
    let caller = crate::thread::spawn("caller", move || {
        handle.call_blocking(|_| std::future::pending::<()>())
    });
    std::thread::sleep(Duration::from_millis(20));
    thread.stop().unwrap();
    let error = caller.unwrap().join().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
}

#[test]
fn a_call_from_home_works_too() {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let handle = BlockHandle::new(&graph);
    let count = executor.block_on(handle.call(|graph| async move { graph.nodes().len() }));
    assert_eq!(count.unwrap(), 0);
    assert_eq!(BlockHandle::new(&graph).graph, handle.graph);
    BlockHandle::leave_home();
    assert_eq!(Rc::strong_count(&graph.0), 1);
}
