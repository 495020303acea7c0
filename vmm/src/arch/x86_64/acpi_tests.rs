//! The tables as a kernel finds them.

use super::*;

struct Found {
    memory: GuestMemory,
}

impl Found {
    fn new(cpus: u32) -> Found {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_tables(&memory, RamLayout::new(1 << 30), cpus).unwrap();
        Found { memory }
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn u64(&self, at: u64) -> u64 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// A whole table; its length and checksum must be right.
    fn table(&self, at: u64) -> Vec<u8> {
        let len: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        let table = self.bytes(at, len as usize);
        assert_eq!(sum(&table), 0, "checksum of {:?}", String::from_utf8_lossy(&table[..4]));
        table
    }

    /// The tables that the root names, by signature.
    fn listed(&self) -> Vec<Vec<u8>> {
        let xsdt = self.table(self.u64(ACPI_START + 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let (entries, []) = xsdt[36..].as_chunks::<8>() else { panic!("whole entries") };
        entries.iter().map(|entry| self.table(u64::from_le_bytes(*entry))).collect()
    }

    fn find(&self, signature: &[u8; 4]) -> Vec<u8> {
        self.listed().into_iter().find(|table| &table[..4] == signature).unwrap()
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn the_root_pointer_leads_to_every_table() {
    let found = Found::new(2);
    let root = found.bytes(ACPI_START, 36);
    assert_eq!(&root[..8], b"RSD PTR ");
    assert_eq!((sum(&root[..20]), sum(&root)), (0, 0));
    let names: Vec<_> = found.listed().iter().map(|table| table[..4].to_vec()).collect();
    assert_eq!(names, [b"FACP".to_vec(), b"APIC".to_vec(), b"MCFG".to_vec()]);
    let rsdt = found.table(u32::from_le_bytes(root[16..20].try_into().unwrap()).into());
    let (narrow, []) = rsdt[36..].as_chunks::<4>() else { panic!("whole entries") };
    let narrow = narrow.iter().map(|entry| found.table(u32::from_le_bytes(*entry).into()));
    assert_eq!(narrow.collect::<Vec<_>>(), found.listed(), "the RSDT has the same");
    let fadt = found.find(b"FACP");
    let dsdt = u64::from(u32::from_le_bytes(fadt[40..44].try_into().unwrap()));
    assert_eq!(&found.table(dsdt)[..4], b"DSDT");
    let facs = u32::from_le_bytes(fadt[36..40].try_into().unwrap());
    assert_eq!(found.bytes(facs.into(), 4), b"FACS");
    assert_eq!(facs % 64, 0);
}

#[test]
fn every_cpu_has_its_local_apic() {
    for cpus in [1, 2, 254] {
        let madt = Found::new(cpus).find(b"APIC");
        let mut rest = &madt[44..];
        let mut ids = Vec::new();
        let mut overrides = Vec::new();
        while let [kind, len, ..] = *rest {
            let entry = &rest[..len.into()];
            match kind {
                0 => ids.push(entry[3]),
                2 => overrides.push((entry[3], entry[4])),
                _ => {}
            }
            rest = &rest[len.into()..];
        }
        assert_eq!(ids, (0..=u8::MAX).take(cpus as usize).collect::<Vec<_>>());
        assert_eq!(overrides, [(0, 2), (9, 9)], "the timer's pin and ACPI's own");
    }
}

#[test]
fn the_fixed_hardware_is_where_the_devices_are() {
    let fadt = Found::new(1).find(b"FACP");
    let word = |at: usize| u32::from_le_bytes(fadt[at..at + 4].try_into().unwrap());
    assert_eq!(word(56), u32::from(power::PM1A_EVENT_PORT));
    assert_eq!(word(64), u32::from(power::PM1A_CONTROL_PORT));
    assert_eq!(word(76), u32::from(power::PM_TIMER_PORT));
    assert_eq!(u16::from_le_bytes([fadt[46], fadt[47]]), u16::from(power::SCI_IRQ));
    // The reset register: system I/O, 8 bits, at its port; then the value to write there.
    assert_eq!(fadt[116..120], [1, 8, 0, 1]);
    assert_eq!((word(120), fadt[128]), (u32::from(RESET_PORT), RESET_VALUE));
    assert_ne!(word(112) & 1 << 10, 0, "the reset register is announced");
}

#[test]
fn configuration_space_is_announced() {
    let mcfg = Found::new(1).find(b"MCFG");
    assert_eq!(u64::from_le_bytes(mcfg[44..52].try_into().unwrap()), ECAM_START);
    assert_eq!((mcfg[54], mcfg[55]), (0, 0));
}
