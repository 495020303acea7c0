use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;

/// Answers reads with its number and remembers writes.
struct Probe {
    number: u8,
    writes: Vec<(u64, Vec<u8>)>,
}

impl BusDevice for Probe {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(self.number.wrapping_add(u8::try_from(offset % 256).unwrap()));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.writes.push((offset, data.to_vec()));
    }
}

fn probe(number: u8) -> Arc<Mutex<Probe>> {
    Arc::new(Mutex::new(Probe { number, writes: Vec::new() }))
}

#[test]
fn reaches_the_device_with_its_own_offset() {
    let bus = Bus::new("test");
    let device = probe(10);
    bus.insert(BusRange::new(0x100, 8), device.clone()).unwrap();
    let mut data = [0; 2];
    assert!(bus.read(0x103, &mut data));
    assert_eq!(data, [13, 13]);
    assert!(bus.write(0x107, &[5]));
    assert_eq!(device.lock().unwrap().writes, [(7, vec![5])]);
}

#[test]
fn an_empty_place_reads_as_ones_and_an_access_over_the_edge_too() {
    let bus = Bus::new("test");
    let device = probe(0);
    bus.insert(BusRange::new(0x100, 4), device.clone()).unwrap();
    for addr in [0x0ff, 0x104, 0x101] {
        let mut data = [0; 4];
        assert!(!bus.read(addr, &mut data), "{addr:#x}");
        assert_eq!(data, [0xff; 4]);
        assert!(!bus.write(addr, &data));
    }
    assert!(device.lock().unwrap().writes.is_empty());
}

#[test]
fn refuses_overlaps_and_impossible_ranges() {
    let bus = Bus::new("test");
    let taken = BusRange::new(0x100, 0x10);
    bus.insert(taken, probe(0)).unwrap();
    for range in [BusRange::new(0xf8, 9), BusRange::new(0x10f, 1), BusRange::new(0, 0x1000)] {
        let error = bus.insert(range, probe(1)).unwrap_err();
        assert_eq!(error, BusError::Overlap { bus: "test", range, other: taken });
    }
    for range in [BusRange::new(0x200, 0), BusRange::new(u64::MAX, 2)] {
        let error = bus.insert(range, probe(1)).unwrap_err();
        assert_eq!(error, BusError::BadRange { bus: "test", range });
    }
    bus.insert(BusRange::new(u64::MAX, 1), probe(1)).unwrap();
    bus.insert(BusRange::new(0xf8, 8), probe(1)).unwrap();
}

/// A device that moves itself while it is written to, as a PCI configuration write does.
struct Mover {
    bus: Arc<Bus>,
}

impl BusDevice for Mover {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, _data: &[u8]) {
        let device = self.bus.remove(BusRange::new(0, 4)).unwrap();
        self.bus.insert(BusRange::new(8, 4), device).unwrap();
    }
}

#[test]
fn a_device_may_change_the_map_during_an_access() {
    let bus = Arc::new(Bus::new("test"));
    let mover = Mover { bus: Arc::clone(&bus) };
    bus.insert(BusRange::new(0, 4), Arc::new(Mutex::new(mover))).unwrap();
    assert!(bus.write(0, &[0]));
    assert!(!bus.read(0, &mut [0]));
    assert!(bus.read(8, &mut [0]));
}

proptest! {
    /// Against a map with one entry per address.
    #[test]
    fn finds_what_a_plain_map_finds(
        ops in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..12), 1..60),
    ) {
        let bus = Bus::new("test");
        let mut model: BTreeMap<u64, u8> = BTreeMap::new();
        let mut inserted = Vec::new();
        for (number, (insert, base, len)) in (0u8..).zip(ops) {
            let range = BusRange::new(base, len);
            if insert {
                let free = len > 0 && (base..base + len).all(|addr| !model.contains_key(&addr));
                prop_assert_eq!(bus.insert(range, probe(number)).is_ok(), free);
                if free {
                    model.extend((base..base + len).map(|addr| (addr, number)));
                    inserted.push(range);
                }
            } else {
                let known = inserted.iter().position(|other| *other == range);
                prop_assert_eq!(bus.remove(range).is_some(), known.is_some());
                if let Some(at) = known {
                    inserted.swap_remove(at);
                    model.retain(|addr, _| !(base..base + len).contains(addr));
                }
            }
            for addr in 0..80 {
                prop_assert_eq!(bus.read(addr, &mut [0]), model.contains_key(&addr));
            }
        }
    }
}
