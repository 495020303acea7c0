#![expect(clippy::cast_possible_truncation, reason = "tests count small things")]

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::interrupt::NO_VECTOR;
use super::testing::{FEATURES, Rig, capability_at};
use super::*;
use crate::virtio::testing::Driver;

#[test]
fn a_driver_finds_identity_and_all_structures() {
    let rig = Rig::new();
    let device = rig.device.lock().unwrap();
    let mut header = [0; 12];
    device.config().read(0, &mut header);
    assert_eq!(header[..4], [0xf4, 0x1a, 0x42, 0x10]);
    assert_eq!(header[8..], [1, 0, 0, 1]);
    let mut found = Vec::new();
    for index in 0..5 {
        let at = capability_at(&device, 0x09, index);
        let mut cap = [0; 20];
        device.config().read(at, &mut cap);
        let word = |at: usize| u32::from_le_bytes(cap[at..at + 4].try_into().unwrap());
        found.push((cap[3], cap[2], cap[4], word(8), word(12)));
        if cap[3] == 2 {
            assert_eq!(word(16), NOTIFY_MULTIPLIER);
        }
    }
    assert_eq!(
        found,
        [
            (1, 16, 0, 0, 0x38),
            (3, 16, 0, 0x1000, 1),
            (4, 16, 0, 0x2000, 0x1000),
            (2, 20, 0, 0x3000, 8),
            (5, 20, 0, 0, 0),
        ]
    );
}

#[test]
fn features_are_offered_accepted_and_checked() {
    let rig = Rig::new();
    let offered = |select: u32| {
        rig.write32(0x00, select);
        rig.read32(0x04)
    };
    assert_eq!(offered(0), (FEATURES | features::TRANSPORT) as u32);
    assert_eq!(offered(1), 1);
    assert_eq!(offered(2), 0);
    for (accepted, good) in [
        (features::VERSION_1, true),
        (features::VERSION_1 | FEATURES, true),
        (FEATURES, false),
        (features::VERSION_1 | 1 << 6, false),
        (features::VERSION_1 | 1 << 63, false),
    ] {
        rig.set_status(0);
        rig.set_status(3);
        rig.accept(accepted);
        rig.set_status(11);
        assert_eq!(rig.status(), if good { 11 } else { 3 }, "{accepted:#x}");
        // Once agreed they stay.
        rig.accept(0);
        rig.write32(0x08, 1);
        assert_eq!(rig.read32(0x0c) == 0, !good);
    }
}

#[test]
fn queues_are_set_up_within_what_is_offered() {
    let rig = Rig::new();
    assert_eq!(rig.read16(0x12), 2);
    for (index, size) in [(0, 8), (1, 16), (2, 0), (u16::MAX, 0)] {
        rig.write16(0x16, index);
        assert_eq!((rig.read16(0x16), rig.read16(0x18)), (index, size));
        assert_eq!(rig.read16(0x1e), if size == 0 { 0 } else { index });
        assert_eq!(rig.read16(0x1c), 0);
    }
    rig.write16(0x16, 1);
    for (size, taken) in [(32, 16), (0, 16), (12, 16), (8, 8), (u16::MAX, 8)] {
        rig.write16(0x18, size);
        assert_eq!(rig.read16(0x18), taken, "{size}");
    }
    rig.write(0x20, &0x1122_3344_5566_7788u64.to_le_bytes());
    assert_eq!(u64::from_le_bytes(rig.read(0x20)), 0x1122_3344_5566_7788);
    rig.write32(0x24, 7);
    assert_eq!(u64::from_le_bytes(rig.read(0x20)), 0x0000_0007_5566_7788);
    rig.write16(0x1c, 1);
    rig.write16(0x18, 4);
    rig.write32(0x20, 0);
    rig.write16(0x1c, 0);
    assert_eq!((rig.read16(0x18), rig.read32(0x20), rig.read16(0x1c)), (8, 0x5566_7788, 1));
}

#[test]
fn vectors_exist_or_read_back_as_none() {
    let rig = Rig::new();
    for (offset, vector, taken) in [
        (0x10, 2, 2),
        (0x10, 3, NO_VECTOR),
        (0x1a, 0, 0),
        (0x1a, 0x800, NO_VECTOR),
        (0x1a, NO_VECTOR, NO_VECTOR),
    ] {
        rig.write16(offset, vector);
        assert_eq!(rig.read16(offset), taken);
    }
    rig.write16(0x10, 1);
    rig.set_status(0);
    assert_eq!(rig.read16(0x10), NO_VECTOR);
}

#[test]
fn driver_ok_starts_the_enabled_queues_once() {
    let rig = Rig::new();
    rig.start();
    rig.set_status(15);
    let agreed = features::VERSION_1 | 1 << 9;
    assert_eq!(
        rig.said(),
        [
            "reset".to_owned(),
            format!("negotiated {agreed:#x}"),
            format!("start {agreed:#x} [(1, 4, 0, 0)]")
        ]
    );
    // What runs cannot be set up any more.
    rig.write16(0x16, 0);
    rig.write16(0x1c, 1);
    assert_eq!(rig.read16(0x1c), 0);
    // Bits stay without a reset.
    rig.set_status(1);
    assert_eq!(rig.status(), 15);
}

#[test]
fn driver_ok_without_features_needs_a_reset() {
    let rig = Rig::new();
    rig.set_status(7);
    assert_eq!(rig.status(), 7 | status::NEEDS_RESET);
    assert!(!rig.said().iter().any(|line| line.starts_with("start")));
    rig.set_status(0);
    assert_eq!(rig.status(), 0);
    rig.start();
    assert_eq!(rig.status(), 15);
}

/// Many a small driver knows only the steps of old.
#[test]
fn driver_ok_stands_for_agreed_features() {
    let rig = Rig::new();
    rig.set_status(3);
    rig.accept(features::VERSION_1);
    rig.set_queue(1, &Driver::new(&rig.memory, 0x1000, 4, false));
    rig.said();
    rig.set_status(7);
    assert_eq!(rig.status(), 15);
    let agreed = features::VERSION_1;
    let steps = [format!("negotiated {agreed:#x}"), format!("start {agreed:#x} [(1, 4, 0, 0)]")];
    assert_eq!(rig.said(), steps);
}

#[test]
fn a_reset_reads_zero_only_when_requests_have_ended() {
    let rig = Rig::new();
    rig.start();
    rig.prompt.store(false, Ordering::SeqCst);
    rig.said();
    rig.set_status(0);
    assert_eq!(rig.status(), 15);
    // An impatient driver changes nothing meanwhile.
    rig.set_status(0);
    rig.set_status(1);
    rig.write16(0x16, 1);
    assert_eq!(rig.said(), ["stop"]);
    let done = rig.stopping.lock().unwrap().pop().unwrap();
    done();
    assert_eq!(rig.status(), 0);
    assert_eq!(rig.said(), ["reset"]);
    assert_eq!((rig.read16(0x16), rig.read16(0x18)), (0, 8));
    rig.prompt.store(true, Ordering::SeqCst);
    rig.start();
    rig.set_status(0);
    assert_eq!(rig.status(), 0);
}

#[test]
fn a_reset_that_ends_soon_is_waited_for() {
    let rig = Rig::new();
    rig.start();
    rig.prompt.store(false, Ordering::SeqCst);
    let stopping = Arc::clone(&rig.stopping);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            loop {
                if let Some(done) = stopping.lock().unwrap().pop() {
                    return done();
                }
                std::thread::yield_now();
            }
        });
        rig.set_status(0);
    });
    assert_eq!(rig.status(), 0);
}

#[test]
fn interrupts_take_msix_or_the_pin() {
    let rig = Rig::new();
    rig.start();
    let interrupt = Arc::clone(&rig.device.lock().unwrap().interrupt);
    rig.said();
    // Without MSI-X: the pin and the ISR register, which reading clears.
    interrupt.queue(1);
    assert_eq!(rig.said(), ["intx"]);
    interrupt.config();
    assert_eq!(rig.read::<1>(ISR), [3]);
    assert_eq!(rig.read::<1>(ISR), [0]);
    assert!(!rig.device.lock().unwrap().config.save().intx_asserted);
    rig.said();

    rig.enable_msix();
    interrupt.queue(1);
    assert!(!rig.said().contains(&"intx".to_owned()), "unmapped events are silent");
    rig.write16(0x16, 1);
    rig.write16(0x1a, 2);
    rig.write16(0x10, 0);
    rig.said();
    interrupt.queue(1);
    interrupt.config();
    interrupt.queue(7);
    assert_eq!(rig.said(), ["msi 2", "msi 0"]);
    assert_eq!(rig.read::<1>(ISR), [2], "configuration changes show here in any case");
}

#[test]
fn a_configuration_change_is_seen_in_the_generation() {
    let rig = Rig::new();
    let interrupt = Arc::clone(&rig.device.lock().unwrap().interrupt);
    interrupt.config();
    assert!(rig.said().is_empty(), "no interrupt before the driver is ready");
    rig.start();
    rig.read::<4>(DEVICE);
    let before = rig.read::<1>(0x15)[0];
    rig.read::<4>(DEVICE);
    assert_eq!(rig.read::<1>(0x15)[0], before);
    interrupt.config();
    rig.read::<4>(DEVICE);
    assert_eq!(rig.read::<1>(0x15)[0], before.wrapping_add(1));
}

#[test]
fn a_broken_device_says_so_once_until_it_is_reset() {
    let rig = Rig::new();
    rig.start();
    let interrupt = Arc::clone(&rig.device.lock().unwrap().interrupt);
    rig.said();
    interrupt.needs_reset();
    interrupt.needs_reset();
    assert_eq!(rig.said(), ["intx"]);
    rig.set_status(15);
    assert_eq!(rig.status(), 15 | status::NEEDS_RESET);
    rig.set_status(0);
    assert_eq!(rig.status(), 0);
}

#[test]
fn doorbells_follow_the_bar_and_ring_by_exit_too() {
    let rig = Rig::new();
    let mut device = rig.device.lock().unwrap();
    device.bar_moved(BAR, Some(0x10_0000));
    device.bar_moved(BAR, Some(0x20_0000));
    device.bar_moved(BAR, None);
    assert_eq!(
        rig.said(),
        [
            "bind 0x103000",
            "bind 0x103004",
            "unbind 0x103000",
            "bind 0x203000",
            "unbind 0x103004",
            "bind 0x203004",
            "unbind 0x203000",
            "unbind 0x203004",
        ]
    );
    device.bar_write(BAR, NOTIFY + 4, &1u16.to_le_bytes());
    device.bar_write(BAR, NOTIFY + 8, &2u16.to_le_bytes());
    assert_eq!(device.kicks[1].read().unwrap(), 1);
    assert!(device.kicks[0].read().is_err());
}

#[test]
fn the_window_in_configuration_space_reaches_the_registers() {
    let rig = Rig::new();
    let mut device = rig.device.lock().unwrap();
    let window = capability_at(&device, 0x09, 4);
    let aim = |device: &mut VirtioPci, bar: u8, offset: u32, len: u32| {
        let _bar = device.config_write(window + 4, &[bar]);
        let _offset = device.config_write(window + 8, &offset.to_le_bytes());
        let _len = device.config_write(window + 12, &len.to_le_bytes());
    };
    aim(&mut device, 0, 0x12, 2);
    let mut data = [0; 4];
    device.config_read(window + 16, &mut data);
    assert_eq!(data[..2], [2, 0]);
    aim(&mut device, 0, 0x14, 1);
    let _change = device.config_write(window + 16, &[1]);
    assert_eq!(device.interrupt.status(), 1);
    aim(&mut device, 0, NOTIFY as u32 + 4, 2);
    let _change = device.config_write(window + 16, &[1, 0]);
    assert_eq!(device.kicks[1].read().unwrap(), 1);
    // What is not there does nothing.
    for (bar, offset, len) in
        [(1, 0x14, 1), (0, 0x15, 2), (0, 0x14, 8), (0, u32::MAX, 1), (0, 0, 0)]
    {
        aim(&mut device, bar, offset, len);
        let _change = device.config_write(window + 16, &[0; 4]);
        device.config_read(window + 16, &mut data);
        assert_eq!(device.interrupt.status(), 1, "{bar} {offset:#x} {len}");
    }
}

proptest! {
    #[test]
    fn no_access_of_a_guest_panics(
        accesses in prop::collection::vec(
            (any::<bool>(), any::<bool>(), 0..0x8000u64, prop::collection::vec(any::<u8>(), 1..9)),
            1..200,
        ),
    ) {
        let rig = Rig::new();
        for (write, config, offset, mut data) in accesses {
            let mut device = rig.device.lock().unwrap();
            if config {
                let offset = (offset % (257 - data.len() as u64)) as u16;
                if write {
                    let _change = device.config_write(offset, &data);
                } else {
                    device.config_read(offset, &mut data);
                }
            } else {
                // Half of them into the common configuration.
                let offset = if offset % 2 == 0 { offset / 2 % 0x40 } else { offset };
                let offset = offset.min(BAR_LEN - data.len() as u64);
                if write {
                    device.bar_write(BAR, offset, &data);
                } else {
                    device.bar_read(BAR, offset, &mut data);
                }
            }
        }
        rig.set_status(0);
        rig.start();
        prop_assert_eq!(rig.status(), 15);
    }
}
