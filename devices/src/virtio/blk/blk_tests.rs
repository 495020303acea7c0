use std::sync::atomic::{AtomicU32, Ordering};

use ferry_block::testing::{Effect, Fault, SimOp, SimOptions};
use ferry_migration::state::{Migrate, Sections};
use vm_memory::{Bytes, GuestAddress};

use super::testing::{Data, Rig, Storage};
use super::*;
use crate::virtio::features::status;
use crate::virtio::testing::Desc;
use crate::virtio::transport::VirtioPci;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const LEN: u64 = 1 << 20;

fn slow() -> Storage {
    Storage::new(SimOptions::new(LEN, 1))
}

fn instant() -> Storage {
    Storage::new(SimOptions::new(LEN, 1).instant())
}

fn started(storage: &Storage) -> Rig {
    let mut rig = Rig::new(storage, VirtioBlkConfig::default());
    rig.start(0);
    rig
}

#[test]
fn writes_then_reads_back() {
    let storage = slow();
    let mut rig = started(&storage);
    let bytes: Vec<u8> = (0..4096u32).map(|n| (n % 251) as u8).collect();
    let head = rig.simple(0, 0, OUT, 3, Data::To(&bytes));
    rig.finish();
    assert_eq!(rig.drivers[0].take_used(), Some((head, 1)));
    assert_eq!(rig.status_of(0), 0);
    assert_eq!(storage.disk.contents()[3 * 512..][..4096], bytes);
    let head = rig.simple(0, 1, IN, 3, Data::From(4096));
    rig.finish();
    assert_eq!(rig.drivers[0].take_used(), Some((head, 4097)));
    assert_eq!((rig.status_of(1), rig.data_of(1, 4096)), (0, bytes));
}

#[test]
fn the_configuration_says_what_the_disk_is() {
    let storage = instant();
    let rig = Rig::new(&storage, VirtioBlkConfig { queues: 3, ..VirtioBlkConfig::default() });
    assert_eq!(u64::from_le_bytes(rig.config(0)), LEN / 512);
    assert_eq!(u32::from_le_bytes(rig.config(12)), 62, "seg_max");
    assert_eq!(u32::from_le_bytes(rig.config(20)), 512, "blk_size");
    assert_eq!(rig.config(32), [1], "writeback");
    assert_eq!(u16::from_le_bytes(rig.config(34)), 3, "num_queues");
    assert_eq!(u32::from_le_bytes(rig.config(36)), 1 << 22, "max_discard_sectors");
    assert_eq!(u32::from_le_bytes(rig.config(40)), 16, "max_discard_seg");
    assert_eq!(rig.config(56), [1], "write_zeroes_may_unmap");
    assert_eq!(rig.config(60), [0; 64]);
}

#[test]
fn what_finishes_together_is_one_interrupt() {
    let storage = instant();
    let mut rig = started(&storage);
    rig.take_fired();
    for slot in 0..10 {
        rig.simple(0, slot, IN, slot, Data::From(512));
    }
    rig.settle();
    assert_eq!(rig.take_fired(), [1]);
    assert_eq!(rig.drivers[0].used_index(), 10);
    // The driver wants to hear of the 13th: two more are silent.
    rig.drivers[0].set_used_event(12);
    for slot in 0..2 {
        rig.simple(0, slot, IN, slot, Data::From(512));
    }
    rig.settle();
    assert!(rig.take_fired().is_empty());
    rig.simple(0, 0, IN, 0, Data::From(512));
    rig.settle();
    assert_eq!(rig.take_fired(), [1]);
}

#[test]
fn flushes_and_the_cache_switch_decide_what_is_durable() {
    // (features left out, writeback written, durable after a write without a flush)
    let both = features::BLK_CONFIG_WCE | features::BLK_FLUSH;
    for (without, switch, durable) in [
        (0, None, false),
        (0, Some(0), true),
        (0, Some(1), false),
        (features::BLK_CONFIG_WCE, None, false),
        (features::BLK_CONFIG_WCE, Some(0), false),
        (features::BLK_FLUSH, None, true),
        (both, None, true),
    ] {
        let storage = instant();
        let mut rig = Rig::new(&storage, VirtioBlkConfig::default());
        rig.start(without);
        if let Some(value) = switch {
            rig.write(0x2000 + 32, &[value]);
        }
        rig.simple(0, 0, OUT, 0, Data::To(&[9; 512]));
        rig.settle();
        assert_eq!(rig.status_of(0), 0);
        assert_eq!(storage.disk.durable()[0] == 9, durable, "{without:#x} {switch:?}");
        rig.simple(0, 1, FLUSH, 0, Data::None);
        rig.settle();
        assert_eq!(rig.status_of(1), 0);
        assert_eq!(storage.disk.durable()[0], 9);
    }
}

#[test]
fn a_reset_puts_the_cache_back() {
    let storage = instant();
    let mut rig = started(&storage);
    rig.write(0x2000 + 32, &[0]);
    assert_eq!(rig.config(32), [0]);
    rig.start(features::BLK_FLUSH);
    assert_eq!(rig.config(32), [0], "no flush: writethrough");
    rig.start(0);
    assert_eq!(rig.config(32), [1]);
}

#[test]
fn failures_are_reported_and_cost_nobody_else_anything() {
    let storage = instant();
    let mut rig = started(&storage);
    storage.disk.inject(Fault::once(SimOp::Read, Effect::Fail(ErrorKind::Io)).after(1));
    storage.disk.inject(Fault::once(SimOp::Flush, Effect::Fail(ErrorKind::Io)));
    for slot in 0..3 {
        rig.simple(0, slot, IN, 0, Data::From(512));
    }
    rig.simple(0, 3, FLUSH, 0, Data::None);
    rig.settle();
    assert_eq!([0, 1, 2, 3].map(|slot| rig.status_of(slot)), [0, 1, 0, 1]);
    let lens: Vec<u32> = std::iter::from_fn(|| rig.drivers[0].take_used()).map(|u| u.1).collect();
    let mut sorted = lens.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [0, 1, 513, 513], "nothing is claimed to be written that was not");
    assert_eq!(rig.status(), 15);
}

#[test]
fn broken_chains_break_this_device_until_a_reset_and_lose_nothing_in_flight() {
    let storage = slow();
    let mut rig = Rig::new(&storage, VirtioBlkConfig { queues: 2, ..VirtioBlkConfig::default() });
    rig.start(0);
    rig.simple(0, 0, IN, 0, Data::From(512));
    rig.settle();
    let bad = rig.drivers[0].chain(&[Desc::readable(u64::MAX, 16), Desc::writable(0, 1)]);
    rig.drivers[0].offer(bad);
    rig.simple(0, 1, IN, 0, Data::From(512));
    rig.simple(1, 2, IN, 0, Data::From(512));
    rig.take_fired();
    rig.settle();
    assert_eq!(rig.status(), 15 | status::NEEDS_RESET);
    assert_eq!(rig.take_fired(), [0], "a configuration change tells the driver");
    rig.finish();
    // What was taken before is answered; nothing is taken afterwards.
    assert_eq!((rig.drivers[0].used_index(), rig.drivers[1].used_index()), (1, 0));
    assert_eq!([0, 1, 2].map(|slot| rig.status_of(slot)), [0, 0xee, 0xee]);
    // A reset makes it as new.
    let mut rig = Rig { drivers: Vec::new(), ..rig };
    let fresh = Rig::over(
        &storage,
        rig.memory.clone(),
        VirtioBlkConfig { queues: 2, ..VirtioBlkConfig::default() },
        true,
    );
    rig.drivers = fresh.drivers;
    for driver in &rig.drivers {
        rig.memory.write_slice(&[0; 0x1000], GuestAddress(driver.desc)).unwrap();
    }
    rig.start(0);
    rig.simple(1, 2, IN, 0, Data::From(512));
    rig.finish();
    assert_eq!((rig.status(), rig.status_of(2)), (15, 0));
}

#[test]
fn a_reset_waits_for_what_is_in_flight() {
    let storage = slow();
    let mut rig = started(&storage);
    rig.simple(0, 0, IN, 0, Data::From(512));
    rig.settle();
    rig.write(0x14, &[0]);
    rig.settle();
    assert_eq!(rig.status(), 15);
    rig.finish();
    assert_eq!(rig.status(), 0);
    // Nothing touches the rings any more.
    rig.simple(0, 1, IN, 0, Data::From(512));
    rig.finish();
    assert_eq!(rig.status_of(1), 0xee);
}

#[test]
fn a_queue_set_up_wrongly_needs_a_reset() {
    let storage = instant();
    let mut rig = Rig::new(&storage, VirtioBlkConfig::default());
    rig.drivers[0].used = 1 << 40;
    rig.write(0x14, &[3]);
    rig.write(0x08, &1u32.to_le_bytes());
    rig.write(0x0c, &1u32.to_le_bytes());
    rig.write(0x14, &[11]);
    for (register, value) in [(0x20, 0x1000), (0x28, 0x2000u64), (0x30, 1 << 40)] {
        rig.write(register, &value.to_le_bytes());
    }
    rig.write(0x1c, &1u16.to_le_bytes());
    rig.write(0x14, &[15]);
    rig.settle();
    assert_eq!(rig.status(), 15 | status::NEEDS_RESET);
    rig.write(0x14, &[0]);
    rig.settle();
    assert_eq!(rig.status(), 0);
}

fn save(rig: &Rig) -> Sections {
    rig.wait(VirtioPci::quiesce(&rig.device));
    let mut sections = Sections::new();
    rig.device.lock().unwrap().save(&mut sections).unwrap();
    sections
}

/// A second device over the same storage and memory, restored from `sections`.
fn arrive(rig: Rig, mut sections: Sections, config: VirtioBlkConfig) -> Rig {
    let Rig { storage, memory, drivers, device, .. } = rig;
    drop(device);
    let there = Rig::over(&storage, memory, config, true);
    there.device.lock().unwrap().restore(&mut sections).unwrap();
    sections.finish().unwrap();
    Rig { drivers, ..there }
}

#[test]
fn quiescing_ends_requests_and_resuming_finds_new_ones() {
    let storage = slow();
    let mut rig = started(&storage);
    for slot in 0..5 {
        rig.simple(0, slot, IN, 0, Data::From(512));
    }
    rig.settle();
    assert_eq!(rig.drivers[0].used_index(), 0);
    rig.wait(VirtioPci::quiesce(&rig.device));
    assert_eq!(rig.drivers[0].used_index(), 5);
    rig.simple(0, 5, IN, 0, Data::From(512));
    rig.finish();
    assert_eq!(rig.drivers[0].used_index(), 5, "nothing is taken meanwhile");
    rig.take_fired();
    rig.drivers[0].set_used_event(100);
    rig.device.lock().unwrap().resume();
    rig.settle();
    assert_eq!(rig.take_fired(), [1], "one interrupt in any case");
    rig.finish();
    assert_eq!(rig.drivers[0].used_index(), 6);
}

#[test]
fn a_running_disk_goes_on_elsewhere() {
    let storage = slow();
    let mut rig = started(&storage);
    rig.write(0x2000 + 32, &[0]);
    for slot in 0..5 {
        rig.simple(0, slot, IN, 0, Data::From(512));
    }
    rig.settle();
    let sections = save(&rig);
    // Offered, but never taken over there.
    rig.simple(0, 5, IN, 0, Data::From(512));
    let mut rig = arrive(rig, sections, VirtioBlkConfig::default());
    rig.finish();
    assert_eq!(rig.drivers[0].used_index(), 5, "not before resume");
    rig.device.lock().unwrap().resume();
    rig.finish();
    assert_eq!(rig.drivers[0].used_index(), 6);
    assert_eq!(rig.config(32), [0]);
    rig.simple(0, 6, OUT, 0, Data::To(&[3; 512]));
    rig.finish();
    assert_eq!((rig.status_of(6), storage.disk.durable()[0]), (0, 3));
    assert_eq!(rig.take_fired().first(), Some(&1));
}

#[test]
fn disks_move_before_they_are_used_and_after_a_reset() {
    for reset in [false, true] {
        let storage = instant();
        let mut rig = Rig::new(&storage, VirtioBlkConfig::default());
        if reset {
            rig.start(0);
            rig.write(0x14, &[0]);
            rig.settle();
        }
        let sections = save(&rig);
        let mut rig = arrive(rig, sections, VirtioBlkConfig::default());
        rig.device.lock().unwrap().resume();
        rig.settle();
        assert_eq!(rig.status(), 0);
        for driver in &rig.drivers {
            rig.memory.write_slice(&[0; 0x1000], GuestAddress(driver.desc)).unwrap();
        }
        rig.start(0);
        rig.simple(0, 0, IN, 0, Data::From(512));
        rig.settle();
        assert_eq!(rig.status_of(0), 0);
    }
}

#[test]
fn starting_while_quiesced_waits_for_resume() {
    let storage = instant();
    let mut rig = Rig::new(&storage, VirtioBlkConfig::default());
    rig.wait(VirtioPci::quiesce(&rig.device));
    rig.start(0);
    rig.simple(0, 0, IN, 0, Data::From(512));
    rig.settle();
    assert_eq!(rig.drivers[0].used_index(), 0);
    rig.device.lock().unwrap().resume();
    rig.settle();
    assert_eq!(rig.drivers[0].used_index(), 1);
}

/// Stops on a full disk and reports everything else, as a machine does with `werror=enospc`.
fn stop_when_full(calls: &Arc<AtomicU32>) -> VirtioBlkConfig {
    let calls = Arc::clone(calls);
    let on_error: ErrorPolicy = Arc::new(move |failed| {
        calls.fetch_add(1, Ordering::SeqCst);
        let full = failed.is_write && failed.kind == ErrorKind::NoSpace;
        if full { ErrorAction::Stop } else { ErrorAction::Report }
    });
    VirtioBlkConfig { on_error, ..VirtioBlkConfig::default() }
}

#[test]
fn a_request_kept_back_is_tried_again_here_or_elsewhere() {
    for elsewhere in [false, true] {
        let storage = slow();
        let calls = Arc::new(AtomicU32::new(0));
        let mut rig = Rig::new(&storage, stop_when_full(&calls));
        rig.start(0);
        storage
            .disk
            .inject(Fault::every(SimOp::Write, Effect::Fail(ErrorKind::NoSpace)).within(0..512));
        let kept = rig.simple(0, 0, OUT, 0, Data::To(&[1; 512]));
        rig.simple(0, 1, OUT, 8, Data::To(&[2; 512]));
        rig.finish();
        assert_eq!((rig.status_of(0), rig.status_of(1)), (0xee, 0));
        assert_eq!((rig.drivers[0].used_index(), calls.load(Ordering::SeqCst)), (1, 1));
        let sections = save(&rig);
        if elsewhere {
            rig = arrive(rig, sections, stop_when_full(&calls));
        }
        // Still full: it is kept back once more.
        rig.device.lock().unwrap().resume();
        rig.finish();
        assert_eq!((rig.status_of(0), calls.load(Ordering::SeqCst)), (0xee, 2));
        rig.wait(VirtioPci::quiesce(&rig.device));
        storage.disk.heal();
        rig.device.lock().unwrap().resume();
        rig.finish();
        assert_eq!((rig.status_of(0), storage.disk.contents()[0]), (0, 1));
        rig.drivers[0].take_used();
        assert_eq!(rig.drivers[0].take_used(), Some((kept, 1)));
    }
}

#[test]
fn a_reset_forgets_requests_kept_back() {
    let storage = instant();
    let mut rig = Rig::new(&storage, stop_when_full(&Arc::default()));
    rig.start(0);
    storage.disk.inject(Fault::once(SimOp::Write, Effect::Fail(ErrorKind::NoSpace)));
    rig.simple(0, 0, OUT, 0, Data::To(&[1; 512]));
    rig.settle();
    rig.wait(VirtioPci::quiesce(&rig.device));
    rig.write(0x14, &[0]);
    rig.settle();
    assert_eq!(rig.status(), 0);
    rig.device.lock().unwrap().resume();
    rig.finish();
    assert_eq!((rig.status_of(0), storage.disk.contents()[0]), (0xee, 0));
}

#[test]
fn impossible_states_are_refused() {
    let storage = instant();
    let mut rig = started(&storage);
    rig.simple(0, 0, IN, 0, Data::From(512));
    rig.settle();
    let sections = save(&rig);
    let state: VirtioBlkState = sections.clone().load("disk0").unwrap();
    assert_eq!((state.capacity, state.parked.len()), (LEN / 512, 0));
    type Edit = fn(&mut VirtioBlkState);
    let edits: [(&str, Edit); 4] = [
        ("too long", |s| s.capacity += 1),
        ("a request nobody took", |s| s.parked.push(ParkedState { queue: 0, head: 0 })),
        ("no such queue", |s| s.parked.push(ParkedState { queue: 1, head: 0 })),
        ("overflow", |s| s.capacity = u64::MAX),
    ];
    for (what, edit) in edits {
        let mut hostile = state.clone();
        edit(&mut hostile);
        let mut sections = sections.clone();
        sections.take("virtio-blk", "disk0").unwrap();
        sections.save("disk0", &hostile).unwrap();
        let there = Rig::new(&storage, VirtioBlkConfig::default());
        assert!(there.device.lock().unwrap().restore(&mut sections).is_err(), "{what}");
    }
}

#[test]
fn a_new_length_is_told_to_the_driver() {
    let storage = instant();
    let mut rig = started(&storage);
    rig.take_fired();
    rig.control.set_capacity(LEN / 2 + 100);
    assert_eq!(rig.take_fired(), [0]);
    assert_eq!(u64::from_le_bytes(rig.config(0)), LEN / 1024);
    rig.simple(0, 0, IN, LEN / 1024, Data::From(512));
    rig.settle();
    assert_eq!(rig.status_of(0), 1, "beyond the new end");
}

#[test]
fn the_saved_state_is_what_it_was() {
    let parked = vec![ParkedState { queue: 0, head: 1 }];
    let state = VirtioBlkState { capacity: 2048, write_cache: true, parked };
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/state");
    ferry_migration::state::golden::check(&dir, &state).unwrap();
}

#[test]
fn configurations_that_cannot_be() {
    let storage = instant();
    let handle = BlockHandle::new(&storage.graph);
    for (queues, queue_size) in [(0, 64), (256, 64), (1, 0), (1, 2), (1, 48), (1, 2048)] {
        let config = VirtioBlkConfig { queues, queue_size, ..VirtioBlkConfig::default() };
        let made = storage.executor.block_on(VirtioBlk::new(config, "disk0", &handle));
        assert!(matches!(made, Err(BlkError::Config(_))), "{queues} {queue_size}");
    }
    let config = VirtioBlkConfig::default();
    let made = storage.executor.block_on(VirtioBlk::new(config, "disk1", &handle));
    assert!(matches!(made, Err(BlkError::Disk(error)) if error.kind() == ErrorKind::NotFound));
}
