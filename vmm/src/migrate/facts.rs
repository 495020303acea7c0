//! What both ends of a migration compare before anything moves.

use ferry_migration::handshake::{DeviceFact, DiskFact, Facts, MemoryRange};
use ferry_migration::ram::PAGE_SIZE;

use crate::arch::x86_64::layout::MACHINE_TYPE;
use crate::machine::Machine;

/// The facts of this machine.
pub(super) fn of(machine: &Machine) -> Facts {
    let disks = machine.disks();
    Facts {
        software: concat!("ferry ", env!("CARGO_PKG_VERSION")).to_owned(),
        machine: MACHINE_TYPE.to_owned(),
        page_size: u32::try_from(PAGE_SIZE).unwrap_or(u32::MAX),
        vcpus: u32::try_from(machine.cpus()).unwrap_or(u32::MAX),
        memory: machine
            .ram()
            .layout()
            .ranges()
            .map(|(start, len)| MemoryRange { start, len })
            .collect(),
        devices: disks
            .iter()
            .map(|disk| DeviceFact {
                id: disk.id().to_owned(),
                kind: "virtio-blk".to_owned(),
                address: format!("PCI 00:{:02x}.0", disk.slot()),
            })
            .collect(),
        disks: disks
            .iter()
            .map(|disk| DiskFact {
                id: disk.id().to_owned(),
                size: disk.control().capacity(),
                read_only: disk.is_read_only(),
            })
            .collect(),
    }
}
