//! The state of CPUs, interrupt controllers, timer and clock: reading it from KVM and giving it back.
//!
//! The registers travel as the structures of KVM's interface (`linux/kvm.h`), whose layout the kernel
//! promises never to change; each is a byte string under its own name.

#![expect(unsafe_code, reason = "KVM reads and writes XSAVE areas of a size that it chooses")]

use ferry_migration::state::{Bytes, State};
use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Xsave,
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, VcpuFd};
use serde::{Deserialize, Serialize};

use super::msr::{self, MsrList};
use crate::error::{Error, Result};
use crate::kvm::Vm;

/// One vCPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VcpuStateV1 {
    /// What CPUID answers, in KVM's order.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Frequency of the time stamp counter; 0 when KVM does not tell.
    pub tsc_khz: u32,
    /// Running, halted, waiting for SIPI.
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments, control registers, EFER, APIC base.
    pub sregs: kvm_sregs,
    /// The XSAVE area, in the size that the source's KVM uses.
    pub xsave: Bytes,
    /// Extended control registers.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debugregs: kvm_debugregs,
    /// The local APIC's registers.
    pub lapic: kvm_lapic_state,
    /// Model-specific registers as (number, value).
    pub msrs: Vec<(u32, u64)>,
    /// Pending exceptions, interrupts and NMIs.
    pub events: kvm_vcpu_events,
}

impl State for VcpuStateV1 {
    const KIND: &'static str = "vcpu";
    const VERSION: u16 = 1;
    type Older = Self;
}

/// The two PICs, the IOAPIC and the interval timer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IrqchipStateV1 {
    /// First 8259.
    pub pic_master: kvm_irqchip,
    /// Second 8259.
    pub pic_slave: kvm_irqchip,
    /// The IOAPIC.
    pub ioapic: kvm_irqchip,
    /// The 8254.
    pub pit: kvm_pit_state2,
}

impl State for IrqchipStateV1 {
    const KIND: &'static str = "irqchip";
    const VERSION: u16 = 1;
    type Older = Self;
}

/// The paravirtual clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStateV1 {
    /// Nanoseconds that the guest has counted since it was started.
    pub nanoseconds: u64,
}

impl State for ClockStateV1 {
    const KIND: &'static str = "kvmclock";
    const VERSION: u16 = 1;
    type Older = Self;
}

/// How much of a state to give a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything, on a vCPU that has not run yet.
    Everything,
    /// What a reset clears: CPUID and the counter's frequency are fixed once a vCPU has run, and time goes on.
    Reset,
}

fn save_failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |e| Error::host(&format!("save a vCPU's {what}"), e)
}

fn restore_failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |e| Error::host(&format!("restore a vCPU's {what}"), e)
}

/// Read a vCPU that does not run.
///
/// The order matters: asking for `mp_state` makes KVM take pending INITs and SIPIs, which changes registers
/// and events, so it comes first. Asking for events has older kernels move the address of a pending page fault into
/// CR2, and the cause of a debug exception into DR6, so the registers come after it.
pub fn save_vcpu(vm: &Vm, vcpu: &VcpuFd, msrs: &MsrList) -> Result<VcpuStateV1> {
    let mp_state = vcpu.get_mp_state().map_err(save_failed("run state"))?;
    let events = vcpu.get_vcpu_events().map_err(save_failed("pending events"))?;
    let regs = vcpu.get_regs().map_err(save_failed("registers"))?;
    let sregs = vcpu.get_sregs().map_err(save_failed("system registers"))?;
    let xsave = get_xsave(vm, vcpu)?;
    let xcrs = vcpu.get_xcrs().map_err(save_failed("extended control registers"))?;
    let debugregs = vcpu.get_debug_regs().map_err(save_failed("debug registers"))?;
    let lapic = vcpu.get_lapic().map_err(save_failed("local APIC"))?;
    let cpuid =
        vcpu.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(save_failed("CPUID table"))?;
    Ok(VcpuStateV1 {
        cpuid: cpuid.as_slice().to_vec(),
        tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debugregs,
        lapic,
        msrs: msrs.read(vcpu)?,
        events,
    })
}

/// Give a vCPU a state that was read from another, or from itself earlier.
///
/// The order matters: CPUID decides which bits the others may hold; the APIC base in the system registers
/// comes before the local APIC, the APIC's timer mode before the deadline MSR, and setting registers drops
/// pending exceptions, so events come last.
pub fn restore_vcpu(vm: &Vm, vcpu: &VcpuFd, state: &VcpuStateV1, scope: Scope) -> Result<()> {
    let mut msrs = state.msrs.clone();
    match scope {
        Scope::Everything => restore_fixed(vcpu, state)?,
        Scope::Reset => msrs.retain(|&(index, _)| index != msr::IA32_TSC),
    }
    vcpu.set_mp_state(state.mp_state).map_err(restore_failed("run state"))?;
    vcpu.set_regs(&state.regs).map_err(restore_failed("registers"))?;
    vcpu.set_sregs(&state.sregs).map_err(restore_failed("system registers"))?;
    set_xsave(vm, vcpu, &state.xsave)?;
    vcpu.set_xcrs(&state.xcrs).map_err(restore_failed("extended control registers"))?;
    vcpu.set_debug_regs(&state.debugregs).map_err(restore_failed("debug registers"))?;
    vcpu.set_lapic(&state.lapic).map_err(restore_failed("local APIC"))?;
    msr::write(vcpu, &msrs)?;
    vcpu.set_vcpu_events(&state.events).map_err(restore_failed("pending events"))
}

fn restore_fixed(vcpu: &VcpuFd, state: &VcpuStateV1) -> Result<()> {
    let cpuid = CpuId::from_entries(&state.cpuid)
        .map_err(|e| Error::state(format!("the CPUID table has too many entries: {e:?}")))?;
    vcpu.set_cpuid2(&cpuid).map_err(restore_failed("CPUID table"))?;
    let here = vcpu.get_tsc_khz().unwrap_or(0);
    if state.tsc_khz != 0 && state.tsc_khz != here && vcpu.set_tsc_khz(state.tsc_khz).is_err() {
        // Within what the kernel itself calls equal, a guest cannot tell.
        let apart = state.tsc_khz.abs_diff(here);
        if apart > here / 4000 {
            return Err(Error::state(format!(
                "the guest's time stamp counter runs at {} kHz, this host's at {here} kHz and its KVM cannot \
                 scale it",
                state.tsc_khz
            )));
        }
    }
    Ok(())
}

/// Size of the XSAVE area of this host's KVM.
fn xsave_len(vm: &Vm) -> usize {
    let len = usize::try_from(vm.fd().check_extension_int(Cap::Xsave2)).unwrap_or(0);
    len.max(size_of::<kvm_xsave>())
}

/// An empty XSAVE area that is as large as KVM may read or write.
fn new_xsave(vm: &Vm) -> Result<Xsave> {
    let extra = (xsave_len(vm) - size_of::<kvm_xsave>()).div_ceil(size_of::<u32>());
    Xsave::new(extra).map_err(|e| Error::state(format!("XSAVE area: {e:?}")))
}

fn get_xsave(vm: &Vm, vcpu: &VcpuFd) -> Result<Bytes> {
    let mut area = new_xsave(vm)?;
    if vm.fd().check_extension_int(Cap::Xsave2) > 0 {
        // SAFETY: the area has the size that KVM asked for.
        unsafe { vcpu.get_xsave2(&mut area) }.map_err(save_failed("vector registers"))?;
    } else {
        let small = vcpu.get_xsave().map_err(save_failed("vector registers"))?;
        // SAFETY: the whole of the fixed part is plain old data.
        unsafe { area.as_mut_fam_struct() }.xsave = small;
    }
    let fixed = area.as_fam_struct_ref().xsave.region;
    let words = fixed.iter().chain(area.as_slice());
    Ok(Bytes(words.flat_map(|word| word.to_le_bytes()).collect()))
}

fn set_xsave(vm: &Vm, vcpu: &VcpuFd, bytes: &Bytes) -> Result<()> {
    let mut area = new_xsave(vm)?;
    let (words, odd) = bytes.0.as_chunks::<4>();
    let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
    // SAFETY: the number of entries stays as it is.
    let fixed = unsafe { area.as_mut_fam_struct() };
    for (slot, word) in fixed.xsave.region.iter_mut().zip(&mut words) {
        *slot = word;
    }
    for (slot, word) in area.as_mut_slice().iter_mut().zip(&mut words) {
        *slot = word;
    }
    if !odd.is_empty() || words.any(|word| word != 0) {
        return Err(Error::state(format!(
            "the guest's vector registers take {} bytes, this host's only {}",
            bytes.0.len(),
            xsave_len(vm)
        )));
    }
    // SAFETY: the area has the size that KVM asked for.
    unsafe { vcpu.set_xsave2(&area) }.map_err(restore_failed("vector registers"))
}

/// Read PICs, IOAPIC and timer.
pub fn save_irqchip(vm: &Vm) -> Result<IrqchipStateV1> {
    let chip = |chip_id| {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        let got = vm.fd().get_irqchip(&mut chip);
        got.map_err(|e| Error::host("save the interrupt controllers", e)).map(|()| chip)
    };
    Ok(IrqchipStateV1 {
        pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
        pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
        ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
        pit: vm.fd().get_pit2().map_err(|e| Error::host("save the interval timer", e))?,
    })
}

/// Give PICs, IOAPIC and timer their state.
pub fn restore_irqchip(vm: &Vm, state: &IrqchipStateV1) -> Result<()> {
    let chips = [
        (KVM_IRQCHIP_PIC_MASTER, &state.pic_master),
        (KVM_IRQCHIP_PIC_SLAVE, &state.pic_slave),
        (KVM_IRQCHIP_IOAPIC, &state.ioapic),
    ];
    for (chip_id, chip) in chips {
        if chip.chip_id != chip_id {
            let found = chip.chip_id;
            return Err(Error::state(format!(
                "interrupt controller {found} where {chip_id} belongs"
            )));
        }
        vm.fd()
            .set_irqchip(chip)
            .map_err(|e| Error::host("restore the interrupt controllers", e))?;
    }
    vm.fd().set_pit2(&state.pit).map_err(|e| Error::host("restore the interval timer", e))
}

/// Read the clock.
pub fn save_clock(vm: &Vm) -> Result<ClockStateV1> {
    let clock = vm.fd().get_clock().map_err(|e| Error::host("read the guest's clock", e))?;
    Ok(ClockStateV1 { nanoseconds: clock.clock })
}

/// Set the clock; it goes on from there at once.
pub fn restore_clock(vm: &Vm, state: ClockStateV1) -> Result<()> {
    // No flags: time that passed while the guest stood still does not exist for it.
    let clock = kvm_clock_data { clock: state.nanoseconds, ..Default::default() };
    vm.fd().set_clock(&clock).map_err(|e| Error::host("set the guest's clock", e))
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
