//! What a large image costs: a moment to open it, and no more memory than its caches may have.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::super::Qcow2Options;
use super::rig::{Rig, blockdev, open, options};
use crate::EdgePerms;
use crate::clock::Clock;
use crate::testing::Rng;

const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;

/// An image of 1 TiB whose clusters are all there: 128 MiB of L2 tables.
fn large(rig: &Rig) -> String {
    rig.create("large.qcow2", "preallocation=metadata", "1T")
}

/// Memory of this process, bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// By how much the process grows while a large part of the tables is looked at.
fn growth(path: &str, l2_cache: u64) -> u64 {
    let options = Qcow2Options { l2_cache_size: Some(l2_cache), ..options(path) };
    let image = open(options);
    let before = resident();
    let most = image.on(async |node| {
        let (mut random, into, mut most) = (Rng::new(3), crate::IoBuf::alloc(4096), before);
        for round in 0..20_000 {
            node.read(random.below(TIB / 4096) * 4096, into.clone()).await.unwrap();
            if round % 1000 == 0 {
                most = most.max(resident());
            }
        }
        most.max(resident())
    });
    image.close();
    most - before
}

#[test]
fn a_terabyte_is_opened_at_once() {
    let Some(rig) = Rig::new() else { return };
    let path = large(&rig);
    // The machine may be busy; it is not for each of ten times.
    let clock = Clock::real();
    let fastest = (0..10).map(|_| {
        let started = clock.now();
        let image = super::rig::open_blockdev(&blockdev(options(&path)), EdgePerms::READ_WRITE);
        let took = Duration::from_nanos(clock.now() - started);
        image.close();
        took
    });
    let fastest = fastest.min().unwrap();
    assert!(fastest < Duration::from_millis(10), "{fastest:?}");
}

#[test]
fn the_cache_setting_bounds_memory() {
    if std::env::var_os("NEXTEST").is_none() {
        eprintln!("skipped: other tests run in this process, and their memory would count");
        return;
    }
    let Some(rig) = Rig::new() else { return };
    let path = large(&rig);
    let bounded = growth(&path, MIB);
    assert!(bounded < 6 * MIB, "{bounded} bytes for a cache of {MIB}");
    let unbounded = growth(&path, 256 * MIB);
    assert!(unbounded > 32 * MIB, "these reads need only {unbounded} bytes of tables");
}

/// A large discard, and to free what it leaves, takes some time, in which others have their turn.
#[test]
fn a_large_discard_lets_others_go_on() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.create("full.qcow2", "preallocation=metadata", "20G");
    let image = open(options(&path));
    let (executor, turns) = (image.executor.clone(), Rc::new(Cell::new(0)));
    let seen = Rc::clone(&turns);
    let others = image.executor.spawn(async move {
        loop {
            executor.yield_now().await;
            seen.set(seen.get() + 1);
        }
    });
    image.on(async |node| node.discard(0..20 << 30).await.unwrap());
    // Of 320 K clusters 4096 at a time,
    assert!(turns.replace(0) >= 80, "nobody had a turn while entries were changed");
    image.executor.block_on(image.graph.inactivate_all()).unwrap();
    // and 1024 at a time.
    assert!(turns.get() >= 320, "nobody had a turn while clusters were freed");
    image.executor.block_on(others.cancel());
    super::rig::check(&path);
}
