//! ACPI tables: what the guest's kernel learns about the machine (ACPI 6.5, chapters 5 and 6).
//!
//! The register addresses are those of the device models; this file only announces them.

use acpi_tables::aml::{
    AddressSpace as Range, AddressSpaceCacheable as Cache, Device, EISAName, IO, Interrupt,
    Memory32Fixed, Name, Package, PackageBuilder, ResourceTemplate, Scope,
};
use acpi_tables::fadt::FADTBuilder;
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml::Path};
use ferry_devices::GuestMemory;
use ferry_devices::pci::{RESET_PORT, RESET_VALUE, SLOT_COUNT, intx_gsi};
use ferry_devices::power;
use ferry_devices::pvpanic::{PVPANIC_HID, PVPANIC_PORT};
use vm_memory::{Bytes, GuestAddress};

use super::layout::{
    ACPI_START, COM1_IRQ, COM1_PORT, ECAM_LEN, ECAM_START, HIGH_MEMORY, IOAPIC_BASE, LAPIC_BASE,
    MMIO32_LEN, MMIO32_START, MMIO64_LEN, RTC_IRQ, RamLayout,
};
use crate::error::{Error, Result};

const OEM: [u8; 6] = *b"FERRY ";
const TABLE: [u8; 8] = *b"FERRYPC1";
const REVISION: u32 = 1;
/// Buses that the configuration space window covers: 1 MiB each.
const BUSES: u64 = ECAM_LEN >> 20;

// Flags of an interrupt source override: polarity in bits 0 and 1, trigger in bits 2 and 3.
const BUS_DEFAULT: u16 = 0;
const LEVEL_ACTIVE_HIGH: u16 = 0b1101;

/// Where the root pointer has its two sums, and of how many bytes each is; and where it names the RSDT
/// (section 5.2.5.3).
const ROOT_SUMS: [(usize, usize); 2] = [(8, 20), (32, 36)];
const ROOT_RSDT: std::ops::Range<usize> = 16..20;

/// Write all tables to guest memory: the root pointer at [`ACPI_START`], the others after it.
pub fn write_tables(guest: &GuestMemory, ram: RamLayout, cpus: u32) -> Result<()> {
    let mut area = Area { guest, next: ACPI_START + Rsdp::len() as u64 };
    let facs = area.put(&facs())?;
    let dsdt = area.put(dsdt(ram, cpus).as_slice())?;
    let tables = [
        area.put(&bytes(&fadt(dsdt, facs)?))?,
        area.put(madt(cpus)?.as_slice())?,
        area.put(&bytes(&mcfg()))?,
    ];
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    let mut narrow = Vec::new();
    for at in tables {
        xsdt.add_entry(at);
        narrow.extend_from_slice(&below_4_gib(at)?.to_le_bytes());
    }
    let xsdt = area.put(&bytes(&xsdt))?;
    let rsdt = area.put(table(*b"RSDT", 1, &narrow).as_slice())?;
    area.next = ACPI_START;
    area.put(&root_pointer(below_4_gib(rsdt)?, xsdt))?;
    Ok(())
}

/// The root pointer. Small systems, written after ACPI 1.0, look for the RSDT only.
fn root_pointer(rsdt: u32, xsdt: u64) -> Vec<u8> {
    let mut root = bytes(&Rsdp::new(OEM, xsdt));
    root[ROOT_RSDT].copy_from_slice(&rsdt.to_le_bytes());
    for (at, len) in ROOT_SUMS {
        root[at] = 0;
        root[at] = root[..len].iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    }
    root
}

fn below_4_gib(at: u64) -> Result<u32> {
    u32::try_from(at).map_err(|e| Error::host("place the ACPI tables", e))
}

/// The memory that tables are put into, one after the other.
struct Area<'a> {
    guest: &'a GuestMemory,
    next: u64,
}

impl Area<'_> {
    /// The FACS must lie at a multiple of 64; for the others it does no harm.
    fn put(&mut self, table: &[u8]) -> Result<u64> {
        let at = if self.next == ACPI_START { ACPI_START } else { self.next.next_multiple_of(64) };
        self.next = at + table.len() as u64;
        if self.next > HIGH_MEMORY {
            return Err(Error::state("the ACPI tables do not fit below 1 MiB"));
        }
        self.guest
            .write_slice(table, GuestAddress(at))
            .map_err(|e| Error::host("write the ACPI tables", e))?;
        Ok(at)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// An empty Firmware ACPI Control Structure (section 5.2.10): there is no waking and no global lock owner.
fn facs() -> [u8; 64] {
    let mut facs = [0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = 64;
    facs[32] = 2;
    facs
}

fn io(port: u16, bytes: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bytes * 8, 0, access, port.into())
}

/// The fixed hardware (section 5.2.9).
fn fadt(dsdt: u64, facs: u64) -> Result<acpi_tables::fadt::FADT> {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION);
    fadt.dsdt = below_4_gib(dsdt)?.into();
    fadt.x_dsdt = dsdt.into();
    fadt.firmware_ctrl = below_4_gib(facs)?.into();
    fadt.sci_int = u16::from(power::SCI_IRQ).into();
    fadt.pm1a_evt_blk = u32::from(power::PM1A_EVENT_PORT).into();
    fadt.pm1_evt_len = power::PM1A_EVENT_LEN;
    fadt.x_pm1a_evt_blk = io(power::PM1A_EVENT_PORT, power::PM1A_EVENT_LEN, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(power::PM1A_CONTROL_PORT).into();
    fadt.pm1_cnt_len = power::PM1A_CONTROL_LEN;
    fadt.x_pm1a_cnt_blk =
        io(power::PM1A_CONTROL_PORT, power::PM1A_CONTROL_LEN, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(power::PM_TIMER_PORT).into();
    fadt.pm_tmr_len = power::PM_TIMER_LEN;
    fadt.x_pm_tmr_blk = io(power::PM_TIMER_PORT, power::PM_TIMER_LEN, AccessSize::DwordAccess);
    // Higher latencies than these say that there are no C2 and C3.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    // Where the clock keeps the century.
    fadt.century = 0x32;
    fadt.iapc_boot_arch = power::IAPC_BOOT_ARCH.into();
    fadt.flags = power::FADT_FLAGS.into();
    fadt.reset_reg = io(RESET_PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    Ok(fadt.finalize())
}

/// Processors and interrupt controllers (section 5.2.12).
fn madt(cpus: u32) -> Result<Sdt> {
    let mut body = Vec::new();
    body.extend_from_slice(&LAPIC_BASE.to_le_bytes());
    // PC-AT compatible: there are 8259s to be masked.
    body.extend_from_slice(&1u32.to_le_bytes());
    for cpu in 0..cpus {
        let id = u8::try_from(cpu).map_err(|e| Error::host("number the vCPUs", e))?;
        body.extend_from_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    body.extend_from_slice(&[1, 12, 0, 0]);
    body.extend_from_slice(&IOAPIC_BASE.to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    // The timer arrives at pin 2, as on every PC; ACPI's own interrupt is level-triggered.
    for (irq, gsi, flags) in
        [(0, 2u32, BUS_DEFAULT), (power::SCI_IRQ, u32::from(power::SCI_IRQ), LEVEL_ACTIVE_HIGH)]
    {
        body.extend_from_slice(&[2, 10, 0, irq]);
        body.extend_from_slice(&gsi.to_le_bytes());
        body.extend_from_slice(&flags.to_le_bytes());
    }
    // Every local APIC's second input is the NMI.
    body.extend_from_slice(&[4, 6, 0xff, 0, 0, 1]);
    Ok(table(*b"APIC", 5, &body))
}

/// Where PCI configuration space is in memory (PCI Firmware Specification 3.2, section 4.1.2).
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(ECAM_START, 0, 0, u8::try_from(BUSES - 1).unwrap_or(u8::MAX));
    mcfg
}

fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, 36, revision, OEM, TABLE, REVISION);
    table.append_slice(body);
    table
}

/// The devices that are found in no other way.
fn dsdt(ram: RamLayout, cpus: u32) -> Sdt {
    let mut body = Vec::new();
    // The package for \_S5 holds what to write to PM1a and PM1b control, and two reserved values.
    let off = power::SLEEP_TYPE_S5;
    let s5 = Package::new(vec![&off, &0u8, &0u8, &0u8]);
    Name::new(Path::new("\\_S5_"), &s5).to_aml_bytes(&mut body);
    processors(cpus, &mut body);
    pci_host(ram, &mut body);
    legacy_devices(&mut body);
    table(*b"DSDT", 2, &body)
}

/// One device for each processor, matched to the MADT by its number.
fn processors(cpus: u32, body: &mut Vec<u8>) {
    for cpu in 0..cpus {
        let path = Path::new(&format!("\\_SB_.C{cpu:03X}"));
        let hid = Name::new(Path::new("_HID"), &"ACPI0007");
        let uid = Name::new(Path::new("_UID"), &cpu);
        Device::new(path, vec![&hid, &uid]).to_aml_bytes(body);
    }
}

fn pci_host(ram: RamLayout, body: &mut Vec<u8>) {
    let buses = Range::new_bus_number(0, u16::try_from(BUSES - 1).unwrap_or(0));
    // The bridge's own ports split those that devices may use.
    let config_ports = IO::new(0xcf8, 0xcf8, 1, 8);
    let below_config = Range::new_io(0u16, 0xcf7, None);
    let above_config = Range::new_io(0xd00u16, 0xffff, None);
    let last32 = u32::try_from(MMIO32_START + MMIO32_LEN - 1).unwrap_or(u32::MAX);
    let first32 = u32::try_from(MMIO32_START).unwrap_or(u32::MAX);
    let memory32 = Range::new_memory(Cache::NotCacheable, true, first32, last32, None);
    let first64 = ram.mmio64_start();
    let last64 = first64 + MMIO64_LEN - 1;
    let memory64 = Range::new_memory(Cache::NotCacheable, true, first64, last64, None);
    let windows = ResourceTemplate::new(vec![
        &buses,
        &config_ports,
        &below_config,
        &above_config,
        &memory32,
        &memory64,
    ]);
    let routes = interrupt_routes();
    let (pcie, pci) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
    let children: [&dyn Aml; 6] = [
        &Name::new(Path::new("_HID"), &pcie),
        &Name::new(Path::new("_CID"), &pci),
        &Name::new(Path::new("_SEG"), &0u8),
        &Name::new(Path::new("_UID"), &0u8),
        &Name::new(Path::new("_CRS"), &windows),
        &Name::new(Path::new("_PRT"), &routes),
    ];
    Device::new(Path::new("\\_SB_.PCI0"), children.to_vec()).to_aml_bytes(body);
    // The configuration space belongs to the board, not to the bus, or Linux does not believe the MCFG.
    let start = u32::try_from(ECAM_START).unwrap_or(u32::MAX);
    let len = u32::try_from(ECAM_LEN).unwrap_or(u32::MAX);
    let ecam = Memory32Fixed::new(true, start, len);
    device("\\_SB_.MBRD", "PNP0C02", &ResourceTemplate::new(vec![&ecam]), body);
}

/// For each slot's pin A: the pin of the IOAPIC that it arrives at (section 6.2.13). Our devices have no
/// other pin.
fn interrupt_routes() -> PackageBuilder {
    let mut routes = PackageBuilder::new();
    for slot in 0..SLOT_COUNT {
        let address = u32::from(slot) << 16 | 0xffff;
        let gsi = u32::from(intx_gsi(slot));
        routes.add_element(&Package::new(vec![&address, &0u8, &0u8, &gsi]));
    }
    routes
}

fn legacy_devices(body: &mut Vec<u8>) {
    let com1_port = IO::new(COM1_PORT, COM1_PORT, 0, 8);
    let com1_irq = Interrupt::new(true, true, false, false, COM1_IRQ);
    device("\\_SB_.COM1", "PNP0501", &ResourceTemplate::new(vec![&com1_port, &com1_irq]), body);
    let rtc_ports = IO::new(0x70, 0x70, 0, 2);
    let rtc_irq = Interrupt::new(true, true, false, false, RTC_IRQ);
    device("\\_SB_.RTC0", "PNP0B00", &ResourceTemplate::new(vec![&rtc_ports, &rtc_irq]), body);
    // The panic device has no EISA name; Linux looks for this one.
    let port = u16::try_from(PVPANIC_PORT.base).unwrap_or(u16::MAX);
    let port = IO::new(port, port, 1, 1);
    let resources = ResourceTemplate::new(vec![&port]);
    let children: [&dyn Aml; 3] = [
        &Name::new(Path::new("_HID"), &PVPANIC_HID),
        &Name::new(Path::new("_STA"), &0xfu8),
        &Name::new(Path::new("_CRS"), &resources),
    ];
    let panic = Device::new(Path::new("PEVT"), children.to_vec());
    Scope::new(Path::new("\\_SB_"), vec![&panic]).to_aml_bytes(body);
}

fn device(path: &str, id: &str, resources: &ResourceTemplate<'_>, body: &mut Vec<u8>) {
    let id = EISAName::new(id);
    let children: [&dyn Aml; 3] = [
        &Name::new(Path::new("_HID"), &id),
        &Name::new(Path::new("_UID"), &0u8),
        &Name::new(Path::new("_CRS"), resources),
    ];
    Device::new(Path::new(path), children.to_vec()).to_aml_bytes(body);
}

#[cfg(test)]
#[path = "acpi_tests.rs"]
mod tests;
