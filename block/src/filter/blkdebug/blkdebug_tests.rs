use std::time::Duration;

use super::*;
use crate::backend::BackendKind;
use crate::clock::Clock;
use crate::edge::Perms;
use crate::node::NodeOptions;
use crate::open::{BlockdevOptions, DriverOptions};
use crate::testing::{CONFORMANCE_LEN, SimDisk, SimOptions, conformance};

const MS: Duration = Duration::from_millis(1);

fn rules(json: &str) -> std::result::Result<BlkdebugOptions, String> {
    let text = format!(r#"{{"driver": "blkdebug", "image": "disk"{json}}}"#);
    let options: BlockdevOptions = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let DriverOptions::Blkdebug(options) = options.driver else { panic!("another driver") };
    Ok(options)
}

/// A disk under a filter with these members.
fn with_node(json: &str, test: impl AsyncFnOnce(BlockGraph, BlockNode)) {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let discard = Some(crate::open::DiscardMode::Unmap);
    let options = BlockdevOptions::new(DriverOptions::Blkdebug(rules(json).unwrap()));
    let options = BlockdevOptions { discard, ..options };
    executor.block_on(async {
        let sim = SimDisk::new(graph.executor(), SimOptions::new(CONFORMANCE_LEN, 1).instant());
        graph.add(Some("disk"), sim, NodeOptions::default()).await.unwrap();
        let node = graph.open(&options).await.unwrap();
        test(graph, node).await;
    });
}

async fn write(node: &BlockNode, at: u64) -> Option<i32> {
    node.write(at, IoBuf::alloc(512), WriteFlags::NONE).await.err().map(|error| error.errno())
}

async fn read(node: &BlockNode, at: u64) -> Option<i32> {
    node.read(at, IoBuf::alloc(512)).await.err().map(|error| error.errno())
}

#[test]
fn without_rules_it_behaves_as_a_disk_whatever_limits_it_pretends_to_have() {
    let limits = r#", "align": 4096, "max-transfer": 65536, "opt-write-zero": 8192,
                      "max-write-zero": 32768, "opt-discard": 16384, "max-discard": 65536"#;
    for json in ["", limits] {
        with_node(json, async |graph, node| {
            conformance(graph.executor(), &node, 1).await;
        });
    }
}

#[test]
fn faults_strike_by_kind_place_and_count() {
    let json = r#", "inject-error": [
        {"event": "none", "iotype": "write", "sector": 4, "errno": 28, "once": true},
        {"event": "none", "iotype": "read", "offset": 8192, "length": 1024, "skip": 1, "times": 2},
        {"event": "none", "iotype": "block-status", "immediately": true}]"#;
    with_node(json, async |_graph, node| {
        assert_eq!(write(&node, 3 * 512).await, None);
        assert_eq!(write(&node, 4 * 512).await, Some(libc::ENOSPC));
        assert_eq!(write(&node, 4 * 512).await, None);
        let mut outcomes = Vec::new();
        for at in [8192, 0, 8192 + 512, 8192 + 1024, 8192, 8192] {
            outcomes.push(read(&node, at).await.is_some());
        }
        assert_eq!(outcomes, [false, false, true, false, true, false]);
        assert!(node.map(0..512).await.is_err());
        node.flush().await.unwrap();
        node.discard(0..4096).await.unwrap();
        assert!(node.driver::<BlkdebugDriver>().unwrap().resume("x").is_err());
    });
}

#[test]
fn a_rule_without_a_kind_spares_only_block_status() {
    with_node(r#", "inject-error": [{"event": "none"}]"#, async |_graph, node| {
        assert_eq!(write(&node, 0).await, Some(libc::EIO));
        assert_eq!(read(&node, 0).await, Some(libc::EIO));
        assert!(node.flush().await.is_err() && node.discard(0..512).await.is_err());
        assert!(node.write_zeroes(0..512, WriteFlags::NONE).await.is_err());
        node.map(0..512).await.unwrap();
        node.driver::<BlkdebugDriver>().unwrap().heal();
        assert_eq!(write(&node, 0).await, None);
    });
}

#[test]
fn moments_and_states_decide_when_a_rule_holds() {
    let json = r#", "set-state": [
            {"event": "flush_to_disk", "state": 1, "new_state": 2},
            {"event": "pwritev_zero", "state": 2, "new_state": 3}],
        "inject-error": [
            {"event": "write_aio", "state": 2, "iotype": "write", "errno": 5},
            {"event": "none", "state": 3, "iotype": "read", "errno": 28}]"#;
    with_node(json, async |_graph, node| {
        let driver = node.driver::<BlkdebugDriver>().unwrap();
        assert_eq!((write(&node, 0).await, driver.state()), (None, 1));
        node.flush().await.unwrap();
        assert_eq!((write(&node, 0).await, driver.state()), (Some(5), 2));
        assert_eq!(read(&node, 0).await, None);
        node.write_zeroes(0..512, WriteFlags::NONE).await.unwrap();
        assert_eq!((read(&node, 0).await, driver.state()), (Some(28), 3));
        node.flush().await.unwrap();
        assert_eq!(driver.state(), 3);
    });
}

#[test]
fn delays_take_their_time_and_a_delay_with_an_error_fails_after_it() {
    let json = r#", "inject-error": [
        {"event": "none", "iotype": "flush", "delay-ns": 5000000, "once": true},
        {"event": "none", "iotype": "flush", "delay-ns": 7000000, "errno": 5}]"#;
    with_node(json, async |graph, node| {
        let clock = graph.executor().clock().clone();
        node.flush().await.unwrap();
        assert_eq!(clock.now(), 5_000_000);
        assert_eq!(node.flush().await.unwrap_err().errno(), 5);
        assert_eq!(clock.now(), 12_000_000);
    });
}

#[test]
fn a_request_stands_at_its_breakpoint_until_it_is_let_go() {
    with_node("", async |graph, node| {
        let executor = graph.executor().clone();
        let driver = || node.driver::<BlkdebugDriver>().unwrap();
        driver().suspend(Event::WriteAio, "a");
        let other = node.clone();
        let writing = executor.spawn(async move { write(&other, 0).await });
        driver().wait_suspended("a").await;
        // The breakpoint is spent: the next write passes the one that stands.
        assert_eq!(write(&node, 512).await, None);
        executor.sleep(MS * 1000).await;
        assert!(!writing.is_finished() && driver().is_suspended("a"));
        driver().resume("a").unwrap();
        assert_eq!(writing.await, None);
        assert!(driver().resume("a").is_err());
        // A breakpoint that nobody has met is taken away.
        driver().suspend(Event::FlushToDisk, "b");
        driver().resume("b").unwrap();
        node.flush().await.unwrap();
    });
}

#[test]
fn rules_may_stand_in_a_file_before_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules");
    let text = "[inject-error]\nevent = \"none\"\nerrno = \"28\"\nonce = \"on\"\n";
    std::fs::write(&path, text).unwrap();
    let json =
        format!(r#", "config": {path:?}, "inject-error": [{{"event": "none", "errno": 5}}]"#);
    with_node(&json, async |_graph, node| {
        assert_eq!(read(&node, 0).await, Some(28));
        assert_eq!(read(&node, 0).await, Some(5));
    });
}

#[test]
fn what_it_cannot_do_is_refused_by_name() {
    let refused = rules(r#", "inject-error": [{"event": "l2_update"}]"#).unwrap_err();
    assert!(refused.contains("l2_update") && refused.contains("flush_to_disk"), "{refused}");
    assert!(rules(r#", "inject-error": [{"event": "none", "sektor": 1}]"#).is_err());
    let executor = Executor::new(Clock::simulated()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let cases = [
        (r#", "align": 3"#, "Cannot meet constraints with align 3"),
        (r#", "align": 512, "max-transfer": 513"#, "Cannot meet constraints with max-transfer 513"),
        (r#", "opt-discard": 0"#, "Cannot meet constraints with opt-discard 0"),
        (
            r#", "inject-error": [{"event": "none", "errno": -5}]"#,
            "errno -5 of a fault is not a positive number",
        ),
        (
            r#", "inject-error": [{"event": "none", "sector": 1, "offset": 5}]"#,
            "a fault takes either 'sector' or 'offset' with 'length'",
        ),
        (
            r#", "inject-error": [{"event": "none", "sector": 18446744073709551615}]"#,
            "sector 18446744073709551615 of a fault lies outside any disk",
        ),
    ];
    executor.block_on(async {
        let sim = SimDisk::new(graph.executor(), SimOptions::new(4096, 1));
        graph.add(Some("disk"), sim, NodeOptions::default()).await.unwrap();
        let absent = rules(r#", "config": "/nosuch/rules""#).unwrap();
        let absent = BlockdevOptions::new(DriverOptions::Blkdebug(absent));
        let error = graph.open(&absent).await.unwrap_err().to_string();
        assert!(error.contains("'/nosuch/rules'"), "{error}");
        for (json, text) in cases {
            let options = BlockdevOptions::new(DriverOptions::Blkdebug(rules(json).unwrap()));
            assert_eq!(graph.open(&options).await.unwrap_err().to_string(), text);
        }
    });
}

#[test]
fn it_takes_and_withholds_permissions_as_asked_once_it_is_used() {
    let json = r#", "take-child-perms": ["write"], "unshare-child-perms": ["resize"]"#;
    with_node(json, async |graph, node| {
        let below = graph.node("disk").unwrap();
        assert_eq!(below.perms(), EdgePerms::IDLE);
        let root = graph.add_backend(BackendKind::Device, "d0", &node, EdgePerms::READ).unwrap();
        assert!(below.perms().needs.contains(Perms::WRITE | Perms::CONSISTENT_READ));
        assert!(!below.perms().shares.contains(Perms::RESIZE));
        drop(root);
        assert_eq!(below.perms(), EdgePerms::IDLE);
    });
}
