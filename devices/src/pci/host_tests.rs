use proptest::prelude::*;

use super::super::PciWindows;
use super::*;
use crate::bus::Bus;

struct Rig {
    mmio: Bus,
    ports: Arc<Mutex<PciPorts>>,
    bridge: Arc<Mutex<HostBridge>>,
    pio: Bus,
    events: Arc<Mutex<Vec<PowerEvent>>>,
}

const ECAM: u64 = 0xe000_0000;

fn rig() -> Rig {
    let windows = PciWindows { mmio32: 0..0, mmio64: 0..0, io: 0..0 };
    let pci = PciBus::new(Arc::new(Bus::new("bars")), Arc::new(Bus::new("ports")), windows);
    let bridge = HostBridge::new();
    pci.add(0, bridge.clone()).unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let sink: PowerEvents = Arc::new(move |event| log.lock().unwrap().push(event));
    let ports = Arc::new(Mutex::new(PciPorts::new(Arc::clone(&pci), sink)));
    let (mmio, pio) = (Bus::new("mmio"), Bus::new("pio"));
    pio.insert(CONFIG_PORTS, ports.clone()).unwrap();
    let ecam = Arc::new(Mutex::new(Ecam::new(pci)));
    mmio.insert(BusRange::new(ECAM, u64::from(MAX_ECAM_BUSES) << 20), ecam).unwrap();
    Rig { mmio, ports, bridge, pio, events }
}

fn inl(rig: &Rig, port: u64) -> u32 {
    let mut data = [0; 4];
    assert!(rig.pio.read(port, &mut data));
    u32::from_le_bytes(data)
}

fn outl(rig: &Rig, port: u64, value: u32) {
    assert!(rig.pio.write(port, &value.to_le_bytes()));
}

/// What Linux's `pci_check_type1` and `pci_sanity_check` look for.
#[test]
fn linux_recognises_configuration_mechanism_1() {
    let rig = rig();
    assert!(rig.pio.write(0xcfb, &[1]));
    let before = inl(&rig, 0xcf8);
    outl(&rig, 0xcf8, 0x8000_0000);
    assert_eq!(inl(&rig, 0xcf8), 0x8000_0000);
    outl(&rig, 0xcf8, before);
    // Class code of 00:00.0, read as a word: a host bridge.
    outl(&rig, 0xcf8, 0x8000_0008);
    let mut class = [0; 2];
    assert!(rig.pio.read(0xcfe, &mut class));
    assert_eq!(class, [0, 6]);
}

#[test]
fn both_ways_lead_to_the_same_registers() {
    let rig = rig();
    outl(&rig, 0xcf8, 0x8000_0000);
    assert_eq!(inl(&rig, 0xcfc), 0x0008_1b36);
    let mut data = [0; 4];
    assert!(rig.mmio.read(ECAM, &mut data));
    assert_eq!(u32::from_le_bytes(data), 0x0008_1b36);
    // The interrupt line register through one, back through the other.
    assert!(rig.mmio.write(ECAM + 0x3c, &[7]));
    outl(&rig, 0xcf8, 0x8000_003c);
    assert_eq!(inl(&rig, 0xcfc) & 0xff, 7);
    assert!(rig.pio.write(0xcfc, &[9]));
    assert!(rig.mmio.read(ECAM + 0x3c, &mut data[..1]));
    assert_eq!(data[0], 9);
}

#[test]
fn nothing_there_reads_as_ones() {
    let rig = rig();
    for address in [0x8000_0800, 0x8000_0100, 0x8001_0000, 0x0000_0000] {
        outl(&rig, 0xcf8, address);
        assert_eq!(inl(&rig, 0xcfc), u32::MAX, "{address:#x}");
    }
    for offset in [1 << 15, 1 << 12, 1 << 20, 0x100, 0xfff_fffc] {
        let mut data = [0; 4];
        assert!(rig.mmio.read(ECAM + offset, &mut data));
        assert_eq!(data, [0xff; 4], "{offset:#x}");
    }
}

#[test]
fn the_reset_register_resets() {
    let rig = rig();
    outl(&rig, 0xcf8, 0x8000_0004);
    assert!(rig.pio.write(RESET_PORT.into(), &[0x02]));
    assert!(rig.events.lock().unwrap().is_empty(), "only the kind of reset");
    let mut data = [0];
    assert!(rig.pio.read(RESET_PORT.into(), &mut data));
    assert_eq!(data, [2]);
    assert!(rig.pio.write(RESET_PORT.into(), &[RESET_VALUE]));
    assert_eq!(*rig.events.lock().unwrap(), [PowerEvent::Reset]);
    assert_eq!(inl(&rig, 0xcf8), 0x8000_0004, "the address latch is another register");
}

#[test]
fn state_goes_elsewhere() {
    let source = rig();
    outl(&source, 0xcf8, 0x8000_003c);
    assert!(source.pio.write(0xcfc, &[9]));
    assert!(source.pio.write(RESET_PORT.into(), &[0x0a]));
    let mut sections = Sections::new();
    source.ports.lock().unwrap().save(&mut sections).unwrap();
    source.bridge.lock().unwrap().save(&mut sections).unwrap();
    let dest = rig();
    dest.bridge.lock().unwrap().restore(&mut sections).unwrap();
    dest.ports.lock().unwrap().restore(&mut sections).unwrap();
    sections.finish().unwrap();
    assert_eq!(inl(&dest, 0xcfc) & 0xff, 9);
    let mut data = [0];
    assert!(dest.pio.read(RESET_PORT.into(), &mut data));
    assert_eq!(data, [0x0a]);
}

proptest! {
    /// No access of any size at any place panics.
    #[test]
    fn any_access_is_harmless(
        accesses in prop::collection::vec(
            (any::<bool>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..20)),
            1..80,
        ),
    ) {
        let rig = rig();
        for (port, offset, mut data) in accesses {
            let (bus, addr) = if port {
                (&rig.pio, 0xcf8 + offset % 8)
            } else {
                (&rig.mmio, ECAM + offset % (256 << 20))
            };
            bus.write(addr, &data);
            bus.read(addr, &mut data);
        }
    }
}

#[test]
fn golden_states() {
    crate::check_golden(&PciPortsState { address: 1, reset_control: 2 });
    let config = HostBridge::new().lock().unwrap().config.save();
    crate::check_golden(&PciHostState { config });
}
