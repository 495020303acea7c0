//! The registers of the boot processor at the kernel's entry point.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::layout::{BOOT_GDT, BOOT_PAGE_TABLES, BOOT_PARAMS, BOOT_STACK};
use crate::error::{Error, Result};
use ferry_devices::GuestMemory;

/// How the kernel wants to be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// PVH: 32-bit protected mode without paging, start info in EBX.
    Pvh {
        /// Physical address of the first instruction.
        entry: u64,
        /// Physical address of the start info.
        start_info: u64,
    },
    /// Linux boot protocol: 32-bit protected mode without paging, boot parameters in ESI.
    Linux32 {
        /// Physical address of the first instruction.
        entry: u64,
    },
    /// Linux boot protocol: long mode with the first 4 GiB mapped, boot parameters in RSI.
    Linux64 {
        /// Physical address of the first instruction.
        entry: u64,
    },
}

const CR0_PROTECTED: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_ENABLE: u64 = 1 << 8;
const EFER_LONG_ACTIVE: u64 = 1 << 10;
/// Bit 1 of RFLAGS always reads as one.
const RFLAGS_RESERVED: u64 = 1 << 1;

// Selectors that the Linux boot protocol asks for; PVH takes any.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_HUGE: u64 = 1 << 7;

/// Write the descriptor table, and page tables where they are needed, to guest memory. The rest of a boot
/// is in registers: [`set_registers`].
pub fn write_tables(guest: &GuestMemory, entry: Entry) -> Result<()> {
    let long = matches!(entry, Entry::Linux64 { .. });
    let table = [0, 0, descriptor(&code(long)), descriptor(&data()), descriptor(&tss(long))];
    for (index, descriptor) in (0u64..).zip(table) {
        write_u64(guest, BOOT_GDT + 8 * index, descriptor)?;
    }
    if long {
        write_page_tables(guest)?;
    }
    Ok(())
}

/// Map the first 4 GiB to themselves in 2 MiB pages.
fn write_page_tables(guest: &GuestMemory) -> Result<()> {
    let pdpt = BOOT_PAGE_TABLES + 0x1000;
    write_u64(guest, BOOT_PAGE_TABLES, pdpt | PAGE_PRESENT_WRITABLE)?;
    for gib in 0..4 {
        let directory = pdpt + 0x1000 * (gib + 1);
        write_u64(guest, pdpt + 8 * gib, directory | PAGE_PRESENT_WRITABLE)?;
        for index in 0..512 {
            let page = (gib << 30) + (index << 21);
            write_u64(guest, directory + 8 * index, page | PAGE_PRESENT_WRITABLE | PAGE_HUGE)?;
        }
    }
    Ok(())
}

fn write_u64(guest: &GuestMemory, at: u64, value: u64) -> Result<()> {
    guest
        .write_obj(value, GuestAddress(at))
        .map_err(|e| Error::host(&format!("write boot tables at {at:#x}"), e))
}

/// Put the boot processor at the kernel's entry point.
pub fn set_registers(vcpu: &VcpuFd, entry: Entry) -> Result<()> {
    let mut sregs = vcpu.get_sregs().map_err(|e| Error::host("read a vCPU's registers", e))?;
    let long = matches!(entry, Entry::Linux64 { .. });
    set_segments(&mut sregs, long);
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
    sregs.cr4 = 0;
    sregs.efer = 0;
    if long {
        sregs.cr3 = BOOT_PAGE_TABLES;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LONG_ENABLE | EFER_LONG_ACTIVE;
        sregs.cr0 |= CR0_PAGING;
    }
    vcpu.set_sregs(&sregs).map_err(|e| Error::host("set a vCPU's registers", e))?;
    let mut regs = kvm_regs { rflags: RFLAGS_RESERVED, ..Default::default() };
    match entry {
        Entry::Pvh { entry, start_info } => (regs.rip, regs.rbx) = (entry, start_info),
        Entry::Linux32 { entry } => (regs.rip, regs.rsi) = (entry, BOOT_PARAMS),
        Entry::Linux64 { entry } => {
            (regs.rip, regs.rsi) = (entry, BOOT_PARAMS);
            (regs.rsp, regs.rbp) = (BOOT_STACK, BOOT_STACK);
        }
    }
    vcpu.set_regs(&regs).map_err(|e| Error::host("set a vCPU's registers", e))
}

fn set_segments(sregs: &mut kvm_sregs, long: bool) {
    let data = data();
    sregs.cs = code(long);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = tss(long);
    sregs.gdt.base = BOOT_GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
}

fn code(long: bool) -> kvm_segment {
    kvm_segment {
        selector: CODE_SELECTOR,
        type_: 0xb,
        l: long.into(),
        db: (!long).into(),
        ..data()
    }
}

fn data() -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: DATA_SELECTOR,
        type_: 0x3,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// A busy task state segment at 0: PVH asks for one of 0x67 bytes.
fn tss(long: bool) -> kvm_segment {
    let limit = if long { 0xffff } else { 0x67 };
    kvm_segment { limit, selector: TSS_SELECTOR, type_: 0xb, db: 0, s: 0, g: 0, ..data() }
}

/// The segment as an entry of a descriptor table (Intel SDM volume 3, section 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let base = segment.base;
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.avl)
        | u64::from(segment.l) << 1
        | u64::from(segment.db) << 2
        | u64::from(segment.g) << 3;
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_what_the_manual_says() {
        assert_eq!(descriptor(&code(false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&code(true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&tss(false)), 0x0000_8b00_0000_0067);
    }
}
