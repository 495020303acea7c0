//! Model-specific registers: which there are, and reading and writing them whole.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::error::{Error, Result};

/// The time stamp counter.
pub const IA32_TSC: u32 = 0x10;
/// The moment at which the local APIC's timer fires.
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// KVM takes at most this many at a time.
const BATCH: usize = 128;

/// Miscellaneous enables; bit 0 is fast string operations.
const IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRING: u64 = 1;
/// Memory types: bit 11 turns the registers on, 6 is write-back.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// What firmware leaves in a vCPU's registers. Linux works without, but calls the CPU broken; where KVM refuses
/// one, the guest shall see that.
pub fn set_power_on(vcpu: &VcpuFd) {
    for value in [(IA32_MISC_ENABLE, FAST_STRING), (MTRR_DEF_TYPE, MTRR_WRITE_BACK)] {
        if let Err(e) = write(vcpu, &[value]) {
            tracing::debug!("{}", e.line());
        }
    }
}

/// Numbers of the registers that make up a vCPU's state on this host.
#[derive(Debug, Clone)]
pub struct MsrList {
    indices: Vec<u32>,
}

impl MsrList {
    /// Everything that KVM says has to be saved.
    pub fn of_host(kvm: &Kvm) -> Result<MsrList> {
        let list = kvm
            .get_msr_index_list()
            .map_err(|e| Error::host("ask KVM which model-specific registers there are", e))?;
        Ok(MsrList { indices: list.as_slice().to_vec() })
    }

    /// Read them all. Those that cannot be read on this host (KVM lists some that the CPU's features, or the
    /// host's kind of virtualisation, do not have) are left out.
    pub fn read(&self, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>> {
        let mut values = Vec::with_capacity(self.indices.len());
        let mut rest = self.indices.as_slice();
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(BATCH)];
            let entries: Vec<_> =
                batch.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
            let mut msrs = wrap(&entries)?;
            let read = vcpu
                .get_msrs(&mut msrs)
                .map_err(|e| Error::host("read a vCPU's model-specific registers", e))?;
            values.extend(msrs.as_slice()[..read].iter().map(|entry| (entry.index, entry.data)));
            // KVM stops at the first that it cannot read: step over it.
            rest = &rest[if read == batch.len() { read } else { read + 1 }..];
        }
        Ok(values)
    }
}

/// Write registers. One that cannot be written must have the value already, else this host is no place for
/// the guest. The deadline of the timer goes last: it is armed against the counter.
pub fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<()> {
    let is_last = |&&(index, _): &&(u32, u64)| index == IA32_TSC_DEADLINE;
    let ordered: Vec<_> = values
        .iter()
        .filter(|value| !is_last(value))
        .chain(values.iter().filter(is_last))
        .map(|&(index, data)| kvm_msr_entry { index, data, reserved: 0 })
        .collect();
    let mut rest = ordered.as_slice();
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(BATCH)];
        let written = vcpu
            .set_msrs(&wrap(batch)?)
            .map_err(|e| Error::host("write a vCPU's model-specific registers", e))?;
        if let Some(refused) = batch.get(written) {
            check_same(vcpu, refused)?;
        }
        rest = &rest[if written == batch.len() { written } else { written + 1 }..];
    }
    Ok(())
}

fn check_same(vcpu: &VcpuFd, refused: &kvm_msr_entry) -> Result<()> {
    let mut current = wrap(&[kvm_msr_entry { index: refused.index, ..Default::default() }])?;
    let read = vcpu.get_msrs(&mut current).unwrap_or(0);
    let value = current.as_slice().first().filter(|_| read == 1).map(|entry| entry.data);
    // A register that does not exist here and is zero there never held anything.
    if value.unwrap_or(0) == refused.data {
        return Ok(());
    }
    Err(Error::state(format!(
        "this host's KVM refuses to set model-specific register {:#x} to {:#x}",
        refused.index, refused.data
    )))
}

fn wrap(entries: &[kvm_msr_entry]) -> Result<Msrs> {
    Msrs::from_entries(entries)
        .map_err(|e| Error::state(format!("list of model-specific registers: {e:?}")))
}
