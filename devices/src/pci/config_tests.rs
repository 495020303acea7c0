use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::super::MsixLayout;
use super::*;
use crate::irq::{IrqLine, MsiMessage, MsiSink};

#[derive(Default)]
struct Wire(AtomicBool);

impl IrqLine for Wire {
    fn set_level(&self, level: bool) {
        self.0.store(level, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Sink(Mutex<Vec<u16>>);

impl MsiSink for Sink {
    fn route(&self, _vector: u16, _message: Option<MsiMessage>) {}

    fn fire(&self, vector: u16) {
        self.0.lock().unwrap().push(vector);
    }
}

const IDENTITY: PciIdentity = PciIdentity {
    vendor: 0x1af4,
    device: 0x1042,
    revision: 1,
    class: [0x01, 0x80, 0x02],
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

const LAYOUT: MsixLayout =
    MsixLayout { table_bar: 4, table_offset: 0x800, pba_bar: 4, pba_offset: 0xc00 };

struct Rig {
    config: ConfigSpace,
    wire: Arc<Wire>,
    intx: Arc<Intx>,
    table: Arc<MsixTable>,
    sink: Arc<Sink>,
    msix_at: u16,
}

fn rig() -> Rig {
    let mut config = ConfigSpace::new(IDENTITY);
    config.add_bar(0, BarKind::Memory32 { prefetchable: false }, 0x1000).unwrap();
    config.add_bar(1, BarKind::Io, 0x20).unwrap();
    config.add_bar(4, BarKind::Memory64 { prefetchable: true }, 0x4000).unwrap();
    let wire = Arc::new(Wire::default());
    let intx = Intx::new(Arc::clone(&wire) as Arc<dyn IrqLine>);
    config.set_intx(Arc::clone(&intx), 17);
    config.add_capability(0x09, &[14, 1, 0, 0, 7], &[0, 0, 0xf0]).unwrap();
    let sink = Arc::new(Sink::default());
    let table = MsixTable::new(4, LAYOUT, Arc::clone(&sink) as Arc<dyn MsiSink>).unwrap();
    let msix_at = u16::from(config.add_msix(Arc::clone(&table)).unwrap());
    Rig { config, wire, intx, table, sink, msix_at }
}

fn read32(config: &ConfigSpace, offset: u16) -> u32 {
    let mut data = [0; 4];
    config.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write32(config: &mut ConfigSpace, offset: u16, value: u32) -> bool {
    config.write(offset, &value.to_le_bytes()).bars
}

fn write16(config: &mut ConfigSpace, offset: u16, value: u16) -> bool {
    config.write(offset, &value.to_le_bytes()).bars
}

/// The header as section 6.1 draws it.
#[test]
fn the_header_says_who_it_is() {
    let Rig { config, .. } = rig();
    assert_eq!(read32(&config, 0x00), 0x1042_1af4);
    assert_eq!(read32(&config, 0x04), 0x0010_0000, "capabilities list, nothing enabled");
    assert_eq!(read32(&config, 0x08), 0x0180_0201);
    assert_eq!(read32(&config, 0x0c), 0, "type 0, one function");
    assert_eq!(read32(&config, 0x2c), 0x1100_1af4);
    assert_eq!(read32(&config, 0x3c), 0x0000_0111, "INTA# on 17");
}

/// Section 6.2.5.1: write ones, read back the size, write the address back.
#[test]
fn bars_answer_the_sizing_protocol() {
    let Rig { mut config, .. } = rig();
    for (offset, sized, address, placed) in [
        (0x10, 0xffff_f000, 0xc000_1fff, 0xc000_1000),
        (0x14, 0xffff_ffe1, 0x0000_1040, 0x0000_1041),
        (0x20, 0xffff_c00c, 0x8000_4000, 0x8000_400c),
        (0x24, 0xffff_ffff, 0x0000_00fe, 0x0000_00fe),
        (0x18, 0, 0xc000_0000, 0),
    ] {
        assert!(write32(&mut config, offset, u32::MAX));
        assert_eq!(read32(&config, offset), sized, "{offset:#x}");
        assert!(write32(&mut config, offset, address));
        assert_eq!(read32(&config, offset), placed, "{offset:#x}");
    }
}

#[test]
fn bars_decode_where_and_when_the_guest_says() {
    let Rig { mut config, .. } = rig();
    write32(&mut config, 0x10, 0xc000_1000);
    write32(&mut config, 0x14, 0x1040);
    write32(&mut config, 0x20, 0x8000_4000);
    write32(&mut config, 0x24, 0xfe);
    let bases = |config: &ConfigSpace| [0, 1, 4].map(|bar| config.bar_base(bar));
    assert_eq!(bases(&config), [None; 3]);
    assert!(write16(&mut config, 0x04, 0x2));
    assert_eq!(bases(&config), [Some(0xc000_1000), None, Some(0xfe_8000_4000)]);
    write16(&mut config, 0x04, 0x1);
    assert_eq!(bases(&config), [None, Some(0x1040), None]);
    // Being sized while decoding is on: not mapped over the top of memory.
    write16(&mut config, 0x04, 0x3);
    for offset in [0x10, 0x14, 0x20, 0x24] {
        write32(&mut config, offset, u32::MAX);
    }
    assert_eq!(bases(&config), [None; 3]);
    write32(&mut config, 0x10, 0);
    assert_eq!(config.bar_base(0), None, "address 0 means unassigned");
}

#[test]
fn refuses_bars_that_cannot_be() {
    let mut config = ConfigSpace::new(IDENTITY);
    let memory = BarKind::Memory32 { prefetchable: false };
    let wide = BarKind::Memory64 { prefetchable: false };
    for (bar, kind, size) in [
        (6, memory, 0x1000),
        (usize::MAX, memory, 0x1000),
        (5, wide, 0x1000),
        (0, memory, 0x1001),
        (0, memory, 8),
        (0, memory, 0),
        (0, memory, 1 << 32),
        (0, BarKind::Io, 512),
    ] {
        config.add_bar(bar, kind, size).unwrap_err();
    }
    config.add_bar(2, wide, 0x1000).unwrap();
    config.add_bar(3, memory, 0x1000).unwrap_err();
    config.add_bar(1, wide, 0x1000).unwrap_err();
    config.add_bar(2, memory, 0x1000).unwrap_err();
}

#[test]
fn capabilities_form_a_list_with_writable_bits_where_asked() {
    let Rig { mut config, msix_at, .. } = rig();
    let mut pointer = [0];
    config.read(0x34, &mut pointer);
    assert_eq!(pointer, [0x40]);
    assert_eq!(read32(&config, 0x40), u32::from_le_bytes([0x09, 0x48, 14, 1]));
    assert_eq!(msix_at, 0x48);
    assert_eq!(read32(&config, 0x48), 0x0003_0011, "4 vectors, end of list");
    assert_eq!(read32(&config, 0x4c), 0x804);
    assert_eq!(read32(&config, 0x50), 0xc04);
    write32(&mut config, 0x40, u32::MAX);
    write32(&mut config, 0x44, u32::MAX);
    assert_eq!(read32(&config, 0x40), u32::from_le_bytes([0x09, 0x48, 14, 1]));
    assert_eq!(read32(&config, 0x44), u32::from_le_bytes([0xf0, 0, 7, 0]));
}

#[test]
fn capability_space_ends() {
    let mut config = ConfigSpace::new(IDENTITY);
    config.add_capability(9, &[0; 192], &[]).unwrap_err();
    config.add_capability(9, &[0; 190], &[]).unwrap();
    assert_eq!(config.add_capability(9, &[], &[]), Err(PciError::CapabilitySpace { len: 0 }));
}

#[test]
fn msix_must_lie_in_its_bar() {
    for (size, fits) in [(0x1000, true), (0x800, false)] {
        let mut config = ConfigSpace::new(IDENTITY);
        config.add_bar(4, BarKind::Memory64 { prefetchable: false }, size).unwrap();
        let table = MsixTable::new(4, LAYOUT, Arc::new(Sink::default())).unwrap();
        assert_eq!(config.add_msix(table).is_ok(), fits);
    }
}

#[test]
fn message_control_turns_the_table_on_and_masks_it() {
    let Rig { mut config, table, sink, msix_at, .. } = rig();
    assert!(!table.fire(0), "disabled: the caller uses INTx");
    assert!(!write16(&mut config, msix_at + 2, 0xc000));
    // Unmask the vector itself.
    assert!(table.bar_write(4, 0x80c, &[0; 4]));
    assert!(table.fire(0));
    assert!(sink.0.lock().unwrap().is_empty(), "function mask");
    // The high byte alone is enough.
    assert!(!config.write(msix_at + 3, &[0x80]).bars);
    assert_eq!(*sink.0.lock().unwrap(), [0]);
    assert_eq!(read32(&config, msix_at), 0x8003_0011, "the size is read-only");
    assert!(!config.write(msix_at + 3, &[0]).bars);
    assert!(!table.is_enabled());
}

#[test]
fn intx_shows_in_status_and_can_be_disabled() {
    let Rig { mut config, wire, intx, .. } = rig();
    let level = || wire.0.load(Ordering::SeqCst);
    intx.set(true);
    assert!(level());
    assert_eq!(read32(&config, 0x04) >> 16, 0x18);
    write16(&mut config, 0x04, 0x400);
    assert!(!level(), "disabled");
    assert_eq!(read32(&config, 0x04), 0x0018_0400, "still pending");
    write16(&mut config, 0x04, 0);
    assert!(level());
    intx.set(false);
    assert!(!level());
}

#[test]
fn reset_is_power_on() {
    let mut used = rig();
    let fresh = used.config.save();
    write32(&mut used.config, 0x10, 0xc000_0000);
    write16(&mut used.config, 0x04, 0x407);
    write16(&mut used.config, used.msix_at + 2, 0x8000);
    used.intx.set(true);
    assert_ne!(used.config.save(), fresh);
    used.config.reset();
    assert_eq!(used.config.save(), fresh);
    assert!(!used.table.is_enabled());
    assert!(!used.wire.0.load(Ordering::SeqCst));
    used.intx.set(true);
    assert!(used.wire.0.load(Ordering::SeqCst), "the disable bit is gone too");
}

#[test]
fn a_saved_function_goes_on_elsewhere() {
    let mut source = rig();
    write32(&mut source.config, 0x10, 0xc000_0000);
    write16(&mut source.config, 0x04, 0x3);
    write16(&mut source.config, source.msix_at + 2, 0x8000);
    source.table.bar_write(4, 0x80c, &[0; 4]);
    source.intx.set(true);
    let mut dest = rig();
    dest.table.restore(&source.table.save()).unwrap();
    dest.config.restore(&source.config.save()).unwrap();
    assert_eq!(dest.config.bar_base(0), Some(0xc000_0000));
    assert!(dest.wire.0.load(Ordering::SeqCst));
    assert!(dest.table.fire(0));
    assert_eq!(*dest.sink.0.lock().unwrap(), [0]);
    assert_eq!(dest.config.save(), source.config.save());
}

#[test]
fn a_saved_interrupt_that_is_disabled_stays_off_the_line() {
    let mut source = rig();
    write16(&mut source.config, 0x04, 0x400);
    source.intx.set(true);
    let mut dest = rig();
    dest.config.restore(&source.config.save()).unwrap();
    assert!(!dest.wire.0.load(Ordering::SeqCst));
    write16(&mut dest.config, 0x04, 0);
    assert!(dest.wire.0.load(Ordering::SeqCst));
}

#[test]
fn restore_refuses_another_device() {
    let mut rig = rig();
    let good = rig.config.save();
    let mut other = good.clone();
    other.registers.0[0] ^= 1;
    let error = rig.config.restore(&other).unwrap_err();
    assert!(error.report().contains("at 0x00"), "{}", error.report());
    let mut bar_type = good.clone();
    bar_type.registers.0[0x10] |= 1;
    rig.config.restore(&bar_type).unwrap_err();
    let mut short = good.clone();
    short.registers.0.pop();
    rig.config.restore(&short).unwrap_err();
    assert_eq!(rig.config.save(), good);
    let mut plain = ConfigSpace::new(IDENTITY);
    let mut asserted = plain.save();
    asserted.intx_asserted = true;
    plain.restore(&asserted).unwrap_err();
}

proptest! {
    /// Any access: no panic, read-only bits keep their value, writable ones take it, and what was
    /// written byte by byte equals what was written at once.
    #[test]
    fn any_access_keeps_to_the_masks(
        accesses in prop::collection::vec(
            (any::<u16>().prop_map(|at| at % 300), prop::collection::vec(any::<u8>(), 0..9)),
            1..40,
        ),
    ) {
        let mut whole = rig().config;
        let mut pieces = rig().config;
        for (offset, data) in accesses {
            let before = whole.registers;
            let mut bars = false;
            for (at, byte) in (offset..).zip(&data) {
                bars |= pieces.write(at, &[*byte]).bars;
            }
            prop_assert_eq!(whole.write(offset, &data).bars, bars);
            prop_assert_eq!(whole.registers, pieces.registers);
            for (at, (old, new)) in before.iter().zip(&whole.registers).enumerate() {
                let mask = whole.writable[at];
                prop_assert_eq!(old & !mask, new & !mask);
                let written = at.checked_sub(usize::from(offset)).and_then(|i| data.get(i));
                prop_assert_eq!(new & mask, written.unwrap_or(old) & mask);
            }
            let mut back = data.clone();
            whole.read(offset, &mut back);
            for (bar, base) in (0..BAR_COUNT).filter_map(|bar| Some((bar, whole.bar_base(bar)?))) {
                let (_, size) = whole.bar(bar).unwrap();
                prop_assert_eq!(base % size, 0);
                prop_assert!(base.checked_add(size).is_some());
            }
        }
    }

    /// Hostile saved states: either refused, or a configuration that the guest could have made.
    #[test]
    fn any_saved_state_is_refused_or_harmless(
        changes in prop::collection::vec((0usize..256, any::<u8>()), 0..6),
        intx_asserted in any::<bool>(),
    ) {
        let mut rig = rig();
        let mut state = rig.config.save();
        state.intx_asserted = intx_asserted;
        for (at, byte) in changes {
            state.registers.0[at] = byte;
        }
        let before = rig.config.save();
        match rig.config.restore(&state) {
            Ok(()) => prop_assert_eq!(rig.config.save(), state),
            Err(_) => prop_assert_eq!(rig.config.save(), before),
        }
    }
}
