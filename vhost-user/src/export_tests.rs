use std::path::Path;
use std::sync::mpsc;

use ferry_block::testing::{Effect, Fault, SimDisk, SimOp};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::front_end::{FrontEnd, against_export};
use crate::testing::{STATUS, ring};

#[test]
fn one_front_end_at_a_time() {
    let front = |socket: &Path| {
        let first = FrontEnd::up(socket);
        let begun = FrontEnd::connect(socket);
        begun.expect_hang_up();
        let second = FrontEnd::connect(socket);
        drop(first);
        assert_eq!(second.ask_word(17), 2, "its turn has come");
    };
    against_export(|_| {}, front, |_, _| {});
}

#[test]
fn what_the_options_say_is_offered() {
    let front = |socket: &Path| {
        let features = FrontEnd::connect(socket).ask_word(1);
        assert_eq!(features & features::BLK_RO, features::BLK_RO);
        let absent = features::BLK_FLUSH | features::BLK_CONFIG_WCE | features::BLK_MQ;
        assert_eq!(features & absent, 0);
    };
    let change = |options: &mut ExportOptions| {
        (options.writable, options.writethrough, options.queues) = (false, true, 1);
    };
    against_export(change, front, |_, _| {});
}

#[test]
fn closing_hangs_up() {
    let (connected, is_connected) = mpsc::channel();
    let front = move |socket: &Path| {
        let front = FrontEnd::up(socket);
        connected.send(()).unwrap();
        front.expect_hang_up();
    };
    against_export(
        |_| {},
        front,
        |graph, export| {
            let (executor, export) = (graph.executor().clone(), export.clone());
            drop(executor.clone().spawn(async move {
                while is_connected.try_recv().is_err() {
                    executor.sleep(Duration::from_millis(1)).await;
                }
                assert!(export.has_client());
                export.close().await;
                assert!(!export.has_client());
            }));
        },
    );
}

/// A job that waits to be finalized holds requests up: the export goes without them, and the guest may ask
/// again where its disk is served next.
#[test]
fn closing_leaves_requests_that_are_held_up_in_the_ring() {
    let (drained, is_drained) = mpsc::channel();
    let (send, waits) = mpsc::channel();
    let (closed, is_closed) = mpsc::channel();
    let front = move |socket: &Path| {
        let mut front = FrontEnd::up(socket);
        is_drained.recv().unwrap();
        front.request(1, 0);
        front.wait_taken();
        send.send(()).unwrap();
        front.expect_hang_up();
        is_closed.recv().unwrap();
        assert_eq!((front.used(), front.status()), (0, 0xee));
    };
    against_export(
        |_| {},
        front,
        |graph, export| {
            let (graph, export) = (graph.clone(), export.clone());
            drop(graph.executor().clone().spawn(async move {
                let (executor, node) = (graph.executor(), graph.node("d0").unwrap());
                let section = graph.drain(&node, &[]).await;
                drained.send(()).unwrap();
                while waits.try_recv().is_err() {
                    executor.sleep(Duration::from_millis(1)).await;
                }
                within(executor, Duration::from_secs(5), export.close()).await.unwrap();
                assert!(!export.has_client());
                drop(section);
                closed.send(()).unwrap();
            }));
        },
    );
}

/// A front end leaves with a request that a job holds up; the next one need not wait for the job. One leaves in
/// the middle of a question that is answered once the request is over.
#[test]
fn a_front_end_that_leaves_takes_requests_that_are_held_up_with_it() {
    for asks_for_the_ring in [false, true] {
        let (served, is_served) = mpsc::channel();
        let (drained, is_drained) = mpsc::channel();
        let front = move |socket: &Path| {
            let mut first = FrontEnd::up(socket);
            is_drained.recv().unwrap();
            first.request(1, 0);
            first.wait_taken();
            if asks_for_the_ring {
                first.send(11, &ring(0, 0), &[]);
            }
            let memory = first.memory.clone();
            drop(first);
            let mut second = FrontEnd::up(socket);
            second.request(1, 0);
            served.send(()).unwrap();
            second.wait_event(&second.call);
            assert_eq!((second.used(), second.status()), (1, 0));
            let status: u8 = memory.read_obj(GuestAddress(STATUS)).unwrap();
            assert_eq!(status, 0xee, "a request that was given up is not answered");
        };
        against_export(
            |_| {},
            front,
            |graph, _| {
                let graph = graph.clone();
                drop(graph.executor().clone().spawn(async move {
                    let (executor, node) = (graph.executor(), graph.node("d0").unwrap());
                    let section = graph.drain(&node, &[]).await;
                    drained.send(()).unwrap();
                    while is_served.try_recv().is_err() {
                        executor.sleep(Duration::from_millis(1)).await;
                    }
                    drop(section);
                }));
            },
        );
    }
}

/// A front end leaves with a write that the storage has: it may come late, so nobody else writes before it has.
#[test]
fn what_the_storage_has_is_waited_for_and_told_of() {
    let (tell, is_told) = mpsc::channel();
    let (healed, is_healed) = mpsc::channel();
    let front = move |socket: &Path| {
        let mut first = FrontEnd::up(socket);
        first.request(1, 0);
        first.wait_taken();
        drop(first);
        FrontEnd::connect(socket).expect_hang_up();
        tell.send(()).unwrap();
        is_healed.recv().unwrap();
        let mut second = FrontEnd::up(socket);
        second.request(1, 0);
        second.wait_event(&second.call);
        assert_eq!((second.used(), second.status()), (1, 0));
    };
    against_export(
        |_| {},
        front,
        |graph, export| {
            let (graph, export) = (graph.clone(), export.clone());
            let node = graph.node("d0").unwrap();
            let disk = node.driver::<SimDisk>().unwrap().clone();
            disk.inject(Fault::once(SimOp::Write, Effect::Hang));
            drop(graph.executor().clone().spawn(async move {
                let executor = graph.executor();
                assert_eq!(export.0.left_behind(), None);
                while is_told.try_recv().is_err() {
                    executor.sleep(Duration::from_millis(1)).await;
                }
                assert_eq!(export.0.left_behind(), Some(1));
                disk.heal();
                within(executor, Duration::from_secs(5), async {
                    while export.has_client() {
                        executor.sleep(Duration::from_millis(1)).await;
                    }
                })
                .await
                .unwrap();
                assert_eq!(export.0.left_behind(), None);
                healed.send(()).unwrap();
            }));
        },
    );
}

#[test]
fn impossible_options_are_refused() {
    let executor = Executor::new(ferry_block::Clock::simulated()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let disk = ferry_block::testing::SimOptions::new(1 << 20, 1);
    let disk = ferry_block::testing::SimDisk::new(&executor, disk);
    let unix = SocketAddress::unix("/nonexistent/socket");
    let options = ExportOptions {
        id: "e0".into(),
        node_name: "d0".into(),
        address: unix,
        writable: true,
        writethrough: false,
        block_size: 512,
        queues: 1,
    };
    let refused = |options: ExportOptions| {
        executor.block_on(Export::start(&graph, options)).map(drop).unwrap_err().to_string()
    };
    assert!(refused(options.clone()).contains("d0"));
    executor.block_on(graph.add(Some("d0"), disk, ferry_block::NodeOptions::default())).unwrap();
    assert!(refused(options.clone()).contains("/nonexistent/socket"));
    for (queues, block_size) in [(0, 512), (256, 512), (1, 0), (1, 513), (1, 65536)] {
        let text = refused(ExportOptions { queues, block_size, ..options.clone() });
        assert!(text.contains("choose"), "{text}");
    }
    let address = SocketAddress::tcp("localhost", 1);
    let text = refused(ExportOptions { address, ..options });
    assert!(text.contains("unix"), "{text}");
}
