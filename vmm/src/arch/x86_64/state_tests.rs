//! The saved form, which must be readable for ever.

use std::path::PathBuf;

use ferry_migration::state::golden;

use super::*;

fn check<S: State>(sample: &S) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../resources/state");
    golden::check(&dir, sample).unwrap();
}

fn vcpu() -> VcpuStateV1 {
    let entry = kvm_cpuid_entry2 { function: 1, eax: 0x663, ..Default::default() };
    VcpuStateV1 {
        cpuid: vec![entry],
        tsc_khz: 2_300_000,
        mp_state: kvm_mp_state::default(),
        regs: kvm_regs { rip: 0x10_0000, ..Default::default() },
        sregs: kvm_sregs::default(),
        xsave: Bytes(vec![0x7f, 3]),
        xcrs: kvm_xcrs::default(),
        debugregs: kvm_debugregs::default(),
        lapic: kvm_lapic_state::default(),
        msrs: vec![(0x10, 77)],
        events: kvm_vcpu_events::default(),
    }
}

#[test]
fn golden_states_still_load() {
    check(&vcpu());
    check(&IrqchipStateV1 {
        pic_master: kvm_irqchip::default(),
        pic_slave: kvm_irqchip::default(),
        ioapic: kvm_irqchip { chip_id: 2, ..Default::default() },
        pit: kvm_pit_state2::default(),
    });
    check(&ClockStateV1 { nanoseconds: 1 });
}

#[test]
fn register_blobs_are_byte_strings_and_come_back_whole() {
    let section = ferry_migration::state::Section::save("0", &vcpu()).unwrap();
    // A local APIC is 1024 bytes, an XSAVE area 4096 or more: as lists of numbers they would double.
    assert!(section.payload().len() < 4096, "{} bytes", section.payload().len());
    let back: VcpuStateV1 = section.load().unwrap();
    assert_eq!((back.regs.rip, back.cpuid[0].eax), (0x10_0000, 0x663));
    assert_eq!((back.xsave, back.msrs), (Bytes(vec![0x7f, 3]), vec![(0x10, 77)]));
}
