use proptest::prelude::*;

use super::*;
use crate::pci::{ConfigChange, ConfigSpace, PciIdentity};

/// A device that remembers where its BARs went and what was written there.
struct Probe {
    config: ConfigSpace,
    moves: Vec<(usize, Option<u64>)>,
    writes: Vec<(usize, u64, Vec<u8>)>,
    resets: usize,
}

impl PciDevice for Probe {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(bar).unwrap() * 16 + u8::try_from(offset % 16).unwrap());
    }

    fn bar_write(&mut self, bar: usize, offset: u64, data: &[u8]) {
        self.writes.push((bar, offset, data.to_vec()));
    }

    fn bar_moved(&mut self, bar: usize, base: Option<u64>) {
        self.moves.push((bar, base));
    }

    fn reset(&mut self) {
        self.resets += 1;
    }
}

const MEMORY: BarKind = BarKind::Memory32 { prefetchable: false };
const WIDE: BarKind = BarKind::Memory64 { prefetchable: false };

fn probe(bars: &[(usize, BarKind, u64)]) -> Arc<Mutex<Probe>> {
    let mut config = ConfigSpace::new(PciIdentity {
        vendor: 0x1234,
        device: 0x5678,
        revision: 0,
        class: [0xff, 0, 0],
        subsystem_vendor: 0,
        subsystem: 0,
    });
    for (bar, kind, size) in bars {
        config.add_bar(*bar, *kind, *size).unwrap();
    }
    Arc::new(Mutex::new(Probe { config, moves: vec![], writes: vec![], resets: 0 }))
}

struct Rig {
    mmio: Arc<Bus>,
    pio: Arc<Bus>,
    pci: Arc<PciBus>,
}

fn rig() -> Rig {
    let (mmio, pio) = (Arc::new(Bus::new("mmio")), Arc::new(Bus::new("pio")));
    let windows = PciWindows {
        mmio32: 0xc000_0000..0xe000_0000,
        mmio64: 0x80_0000_0000..0x100_0000_0000,
        io: 0xc000..0x1_0000,
    };
    let pci = PciBus::new(Arc::clone(&mmio), Arc::clone(&pio), windows);
    Rig { mmio, pio, pci }
}

fn at(slot: u8) -> FunctionAddress {
    FunctionAddress { bus: 0, slot, function: 0 }
}

fn write32(rig: &Rig, slot: u8, offset: u16, value: u32) {
    rig.pci.config_write(at(slot), offset, &value.to_le_bytes());
}

fn read32(rig: &Rig, slot: u8, offset: u16) -> u32 {
    let mut data = [0; 4];
    rig.pci.config_read(at(slot), offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn devices_are_placed_and_answer_at_once() {
    let rig = rig();
    let first = probe(&[(0, MEMORY, 0x1000), (1, BarKind::Io, 0x20), (4, WIDE, 0x4000)]);
    let second = probe(&[(0, WIDE, 0x8000), (2, WIDE, 0x8000_0000)]);
    rig.pci.add(1, first.clone()).unwrap();
    rig.pci.add(3, second.clone()).unwrap();
    let bases = |probe: &Mutex<Probe>| {
        let probe = probe.lock().unwrap();
        (0..BAR_COUNT).filter_map(|bar| probe.config.bar_base(bar)).collect::<Vec<_>>()
    };
    assert_eq!(bases(&first), [0xc000_0000, 0xc000, 0xc000_4000]);
    assert_eq!(bases(&second), [0xc000_8000, 0x80_0000_0000]);
    let mut data = [0; 2];
    assert!(rig.mmio.read(0xc000_4003, &mut data));
    assert_eq!(data, [0x43; 2]);
    assert!(rig.pio.read(0xc01f, &mut data[..1]));
    assert_eq!(data[0], 0x1f);
    assert!(rig.mmio.write(0x80_0000_0010, &[7]));
    assert_eq!(second.lock().unwrap().writes, [(2, 0x10, vec![7])]);
}

#[test]
fn a_full_window_and_a_taken_slot_are_refused_and_change_nothing() {
    let rig = rig();
    rig.pci.add(31, probe(&[(0, MEMORY, 0x1000_0000)])).unwrap();
    assert_eq!(rig.pci.add(31, probe(&[])), Err(PciError::Slot { slot: 31 }));
    assert_eq!(rig.pci.add(32, probe(&[])), Err(PciError::Slot { slot: 32 }));
    let big = probe(&[(0, MEMORY, 0x1000), (1, MEMORY, 0x1000_0000)]);
    let full = PciError::WindowFull { size: 0x1000_0000, kind: MEMORY };
    assert_eq!(rig.pci.add(1, big), Err(full));
    assert_eq!(read32(&rig, 1, 0), u32::MAX);
    rig.pci.add(1, probe(&[(0, MEMORY, 0x1000_0000)])).unwrap();
}

/// What Linux does: decoding off, size, write the new address, decoding on.
#[test]
fn the_guest_moves_a_bar() {
    let rig = rig();
    let device = probe(&[(0, WIDE, 0x4000)]);
    rig.pci.add(1, device.clone()).unwrap();
    write32(&rig, 1, 0x04, 0);
    assert!(!rig.mmio.read(0xc000_0000, &mut [0]));
    write32(&rig, 1, 0x10, u32::MAX);
    write32(&rig, 1, 0x14, u32::MAX);
    assert_eq!([read32(&rig, 1, 0x10), read32(&rig, 1, 0x14)], [0xffff_c004, u32::MAX]);
    write32(&rig, 1, 0x10, 0x0001_0000);
    write32(&rig, 1, 0x14, 0x90);
    write32(&rig, 1, 0x04, 2);
    assert!(rig.mmio.write(0x90_0001_0004, &[1]));
    let device = device.lock().unwrap();
    assert_eq!(device.writes, [(0, 4, vec![1])]);
    let moves = [(0, Some(0xc000_0000)), (0, None), (0, Some(0x90_0001_0000))];
    assert_eq!(device.moves, moves);
}

#[test]
fn two_bars_change_places() {
    let rig = rig();
    let (a, b) = (probe(&[(0, MEMORY, 0x1000)]), probe(&[(0, MEMORY, 0x1000)]));
    rig.pci.add(1, a.clone()).unwrap();
    rig.pci.add(2, b.clone()).unwrap();
    // While decoding stays on, one is in the way of the other for a moment.
    write32(&rig, 1, 0x10, 0xc000_1000);
    assert!(rig.mmio.write(0xc000_1000, &[1]), "the old owner answers");
    write32(&rig, 2, 0x10, 0xc000_0000);
    assert!(rig.mmio.write(0xc000_0000, &[2]));
    assert!(rig.mmio.write(0xc000_1000, &[3]));
    assert_eq!(a.lock().unwrap().writes, [(0, 0, vec![3])]);
    assert_eq!(b.lock().unwrap().writes, [(0, 0, vec![1]), (0, 0, vec![2])]);
}

#[test]
fn a_bar_cannot_take_the_place_of_another_device() {
    let rig = rig();
    let fixed = BarWindow { device: probe(&[]), bar: 0 };
    let fixed_range = BusRange::new(0xe000_0000, 0x1000);
    rig.mmio.insert(fixed_range, Arc::new(Mutex::new(fixed))).unwrap();
    let device = probe(&[(0, MEMORY, 0x1000)]);
    rig.pci.add(1, device.clone()).unwrap();
    write32(&rig, 1, 0x10, 0xe000_0000);
    assert_eq!(device.lock().unwrap().moves.last(), Some(&(0, None)));
    assert!(rig.mmio.write(0xe000_0000, &[1]));
    assert!(device.lock().unwrap().writes.is_empty());
}

#[test]
fn reset_puts_everything_back() {
    let rig = rig();
    let device = probe(&[(0, MEMORY, 0x1000)]);
    rig.pci.add(1, device.clone()).unwrap();
    let fresh = device.lock().unwrap().config.save();
    write32(&rig, 1, 0x10, 0xd000_0000);
    write32(&rig, 1, 0x04, 6);
    assert!(rig.mmio.read(0xd000_0000, &mut [0]));
    rig.pci.reset();
    assert!(!rig.mmio.read(0xd000_0000, &mut [0]));
    assert!(rig.mmio.read(0xc000_0000, &mut [0]));
    let device = device.lock().unwrap();
    assert_eq!(device.resets, 1);
    assert_eq!(device.config.save(), fresh);
}

#[test]
fn a_removed_device_leaves_nothing_behind() {
    let rig = rig();
    let device = probe(&[(0, MEMORY, 0x1000)]);
    rig.pci.add(1, device.clone()).unwrap();
    assert!(rig.pci.remove(1).is_some());
    assert!(rig.pci.remove(1).is_none());
    assert!(rig.pci.remove(200).is_none());
    assert!(!rig.mmio.read(0xc000_0000, &mut [0]));
    assert_eq!(device.lock().unwrap().moves.last(), Some(&(0, None)));
    rig.pci.add(1, probe(&[(0, MEMORY, 0x1000)])).unwrap();
    assert!(rig.mmio.read(0xc000_0000, &mut [0]));
}

#[test]
fn restored_bars_are_mapped_when_the_bus_is_told() {
    let source = rig();
    let device = probe(&[(0, MEMORY, 0x1000)]);
    source.pci.add(1, device.clone()).unwrap();
    write32(&source, 1, 0x10, 0xd000_0000);
    let state = device.lock().unwrap().config.save();
    let dest = rig();
    let device = probe(&[(0, MEMORY, 0x1000)]);
    dest.pci.add(1, device.clone()).unwrap();
    device.lock().unwrap().config.restore(&state).unwrap();
    dest.pci.sync_bars();
    assert!(dest.mmio.read(0xd000_0000, &mut [0]));
    assert!(!dest.mmio.read(0xc000_0000, &mut [0]));
}

#[test]
fn ports_and_memory_are_different_places() {
    let taken = [(true, BusRange::new(0x1000, 0x100)), (false, BusRange::new(0x2000, 0x1000))];
    let window = 0x1000..0x4000;
    assert_eq!(first_fit(&window, 0x1000, false, &taken), Some(0x1000));
    assert_eq!(first_fit(&window, 0x100, true, &taken), Some(0x1100));
    assert_eq!(first_fit(&window, 0x2000, false, &taken), None);
    assert_eq!(first_fit(&(u64::MAX - 8..u64::MAX), 16, false, &taken), None);
}

#[test]
fn only_function_0_of_bus_0_is_there() {
    let rig = rig();
    rig.pci.add(1, probe(&[])).unwrap();
    assert_eq!(read32(&rig, 1, 0), 0x5678_1234);
    for address in [
        FunctionAddress { bus: 1, ..at(1) },
        FunctionAddress { function: 1, ..at(1) },
        at(2),
        at(255),
    ] {
        let mut data = [0; 4];
        rig.pci.config_read(address, 0, &mut data);
        assert_eq!(data, [0xff; 4]);
        rig.pci.config_write(address, 4, &data);
    }
    assert_eq!(read32(&rig, 1, 253), u32::MAX, "over the end");
    assert_eq!(read32(&rig, 1, 256), u32::MAX);
}

proptest! {
    /// Whatever a guest writes, the address maps hold exactly the BARs that decode, less those in
    /// the way of others, and each device was told the truth.
    #[test]
    fn maps_follow_the_registers(
        writes in prop::collection::vec(
            (
                1u8..4,
                prop::sample::select(vec![0x04u16, 0x10, 0x11, 0x14, 0x18, 0x1c, 0x20]),
                prop_oneof![
                    prop::sample::select(vec![0u32, 3, 0xc000_0000, 0xc000_1000, u32::MAX]),
                    any::<u32>(),
                ],
            ),
            1..60,
        ),
    ) {
        let rig = rig();
        let devices: Vec<_> = (1..4)
            .map(|slot| {
                let device =
                    probe(&[(0, MEMORY, 0x1000), (1, BarKind::Io, 0x40), (2, WIDE, 0x2000)]);
                rig.pci.add(slot, device.clone()).unwrap();
                device
            })
            .collect();
        for (slot, offset, value) in writes {
            write32(&rig, slot, offset, value);
            for device in &devices {
                let device = device.lock().unwrap();
                for bar in [0, 1, 2] {
                    let told = device.moves.iter().rev().find(|(moved, _)| *moved == bar);
                    let told = told.and_then(|(_, base)| *base);
                    let wanted = device.config.bar_base(bar);
                    // Either where its register says, or nowhere because something is in the way.
                    prop_assert!(told == wanted || told.is_none());
                }
            }
            let mapped = rig.pci.mapped.lock().unwrap().clone();
            for mapping in &mapped {
                let device = &devices[usize::from(mapping.slot) - 1];
                let base = device.lock().unwrap().config.bar_base(mapping.bar);
                prop_assert_eq!(base, Some(mapping.range.base));
                let bus = if mapping.io { &rig.pio } else { &rig.mmio };
                prop_assert!(bus.read(mapping.range.base, &mut [0]));
            }
            // What decodes and is not mapped overlaps something that is.
            for wanted in wanted(&rig.pci.slots.read().unwrap()[..]) {
                let overlaps = |other: &Mapping| {
                    other.io == wanted.io && other.range.overlaps(&wanted.range)
                };
                prop_assert!(mapped.iter().any(overlaps));
            }
        }
    }

    /// No access panics.
    #[test]
    fn any_configuration_access_is_harmless(
        accesses in prop::collection::vec(
            (any::<(u8, u8, u8)>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..70)),
            1..60,
        ),
    ) {
        let rig = rig();
        rig.pci.add(0, probe(&[(0, MEMORY, 0x1000)])).unwrap();
        for ((bus, slot, function), offset, mut data) in accesses {
            let address = FunctionAddress { bus: bus % 2, slot: slot % 2, function: function % 2 };
            rig.pci.config_write(address, offset % 300, &data);
            rig.pci.config_read(address, offset, &mut data);
        }
    }
}

#[test]
fn a_change_says_whether_bars_may_have_moved() {
    let device = probe(&[(0, MEMORY, 0x1000)]);
    let mut device = device.lock().unwrap();
    assert_eq!(device.config_write(0x3c, &[5]), ConfigChange { bars: false });
    assert_eq!(device.config_write(0x05, &[4]), ConfigChange { bars: true });
    assert_eq!(device.config_write(0x0f, &[0, 0]), ConfigChange { bars: true });
    assert_eq!(device.config_write(0x28, &[0; 4]), ConfigChange { bars: false });
}
