//! What the guest reads with the CPUID instruction.

use std::arch::x86_64::__cpuid;
use std::ops::RangeInclusive;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::error::{Error, Result};

/// Leaf of KVM's paravirtual interface.
const KVM_SIGNATURE: u32 = 0x4000_0000;
/// Leaf that names the TSC and bus frequency; every hypervisor has it at the same place.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;

/// The processor's name in words.
const NAME: RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;

const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
/// `ecx` bits 8 to 15 of a topology subleaf: what kind of level it is.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// One machine's CPUID; each vCPU gets its own copy with its own number in it.
#[derive(Debug, Clone)]
pub struct CpuidTemplate {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u32,
}

impl CpuidTemplate {
    /// All that this host's KVM supports, for a machine of `cpus` single-threaded cores in one socket.
    pub fn new(kvm: &Kvm, cpus: u32) -> Result<CpuidTemplate> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|e| Error::host("ask KVM for the CPU features it supports", e))?;
        let mut supported = supported.as_slice().to_vec();
        // KVM leaves the name empty. It decides nothing, but people and their tools look at it.
        for entry in supported.iter_mut().filter(|entry| NAME.contains(&entry.function)) {
            let here = __cpuid(entry.function);
            *entry = leaf(entry.function, 0, [here.eax, here.ebx, here.ecx, here.edx]);
        }
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(CpuidTemplate::from_entries(&supported, cpus, deadline))
    }

    fn from_entries(supported: &[kvm_cpuid_entry2], cpus: u32, deadline: bool) -> CpuidTemplate {
        let mut entries = supported.to_vec();
        // Topology leaves are rebuilt for each vCPU; performance counters are not migratable.
        entries.retain(|e| !matches!(e.function, 0xb | 0x1f | 0xa | 0x8000_0026));
        for entry in &mut entries {
            match entry.function {
                0x1 => {
                    entry.ecx |= LEAF1_ECX_HYPERVISOR;
                    if deadline {
                        entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
                    }
                    set_bits(&mut entry.edx, LEAF1_EDX_HTT, cpus > 1);
                    entry.ebx = entry.ebx & 0x0000_ffff | cpus.min(255) << 16;
                }
                // Intel's caches: threads that share them in bits 14 to 25, cores in bits 26 to 31 of EAX.
                0x4 if entry.eax & 0x1f != 0 => {
                    let shared_by_all = entry.eax >> 5 & 0x7 >= 3;
                    let sharing = if shared_by_all { id_space(cpus) - 1 } else { 0 };
                    let cores = id_space(cpus) - 1;
                    entry.eax =
                        entry.eax & 0x3fff | sharing.min(0xfff) << 14 | cores.min(0x3f) << 26;
                }
                // AMD: number of cores less one, and how many bits of the APIC id number them.
                0x8000_0008 => {
                    let bits = id_space(cpus).trailing_zeros();
                    entry.ecx = entry.ecx & !0xf0ff | (cpus - 1).min(0xff) | bits << 12;
                }
                _ => {}
            }
        }
        CpuidTemplate { entries, cpus }
    }

    /// The CPUID of vCPU `index`, whose APIC id is the same number. `tsc_khz` is 0 when unknown.
    pub fn of_vcpu(&self, index: u32, tsc_khz: u32) -> Result<CpuId> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match entry.function {
                0x1 => entry.ebx = entry.ebx & 0x00ff_ffff | index << 24,
                // AMD's extended APIC id, and one thread for each core.
                0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (index, index & 0xff, 0),
                KVM_SIGNATURE if tsc_khz != 0 => entry.eax = entry.eax.max(HYPERVISOR_TIMING),
                _ => {}
            }
        }
        if tsc_khz != 0 && entries.iter().any(|e| e.function == KVM_SIGNATURE) {
            entries.retain(|e| e.function != HYPERVISOR_TIMING);
            // The in-kernel APIC's bus runs at 1 GHz.
            entries.push(leaf(HYPERVISOR_TIMING, 0, [tsc_khz, 1_000_000, 0, 0]));
        }
        let highest =
            entries.iter().filter(|e| e.function < KVM_SIGNATURE).map(|e| e.function).max();
        if highest.is_some_and(|highest| highest >= 0xb) {
            let bits = id_space(self.cpus).trailing_zeros();
            let sub = [
                [0, 1, LEVEL_THREAD, index],
                [bits, self.cpus, LEVEL_CORE | 1, index],
                [0, 0, 2, index],
            ];
            entries
                .extend((0..).zip(sub).map(|(number, registers)| subleaf(0xb, number, registers)));
        }
        CpuId::from_entries(&entries).map_err(|e| Error::state(format!("CPUID table: {e:?}")))
    }
}

/// Features that a guest relies on and this host does not have, in words; `None` when it can run here.
///
/// KVM itself takes any table, and the guest would die of the first instruction that does not exist.
pub fn missing_features(guest: &[kvm_cpuid_entry2], host: &CpuId) -> Option<String> {
    let mut missing = Vec::new();
    for entry in guest {
        let same = |e: &&kvm_cpuid_entry2| (e.function, e.index) == (entry.function, entry.index);
        let here = host.as_slice().iter().find(same).copied().unwrap_or_default();
        let registers = [
            ("eax", entry.eax & !here.eax),
            ("ebx", entry.ebx & !here.ebx),
            ("ecx", entry.ecx & !here.ecx),
            ("edx", entry.edx & !here.edx),
        ];
        for ((name, lacking), features) in registers.into_iter().zip(feature_bits(entry)) {
            if lacking & features != 0 {
                let (leaf, index, bits) = (entry.function, entry.index, lacking & features);
                missing.push(format!("CPUID leaf {leaf:#x}.{index} {name} bits {bits:#x}"));
            }
        }
    }
    (!missing.is_empty()).then(|| missing.join(", "))
}

/// Which bits of EAX to EDX are features of the processor. Left out are those that follow what the guest does
/// (OSXSAVE, MONITOR, OSPKE, APIC) and numbers.
fn feature_bits(entry: &kvm_cpuid_entry2) -> [u32; 4] {
    const ALL: u32 = u32::MAX;
    match (entry.function, entry.index) {
        (0x1, _) => [0, 0, !(1 << 27 | 1 << 3), !(1 << 9)],
        (0x7, 0) => [0, ALL, !(1 << 4), ALL],
        (0x7, 1) | (0xd, 1) => [ALL, 0, 0, 0],
        (0xd, 0) => [ALL, 0, 0, ALL],
        (0x8000_0001, _) => [0, 0, ALL, !(1 << 9)],
        (0x8000_0008, _) => [0, ALL, 0, 0],
        (0x4000_0001, _) => [ALL, 0, 0, 0],
        _ => [0; 4],
    }
}

/// Numbers of an APIC id that `cpus` take: a power of two.
fn id_space(cpus: u32) -> u32 {
    cpus.next_power_of_two()
}

fn set_bits(register: &mut u32, bits: u32, on: bool) {
    *register = if on { *register | bits } else { *register & !bits };
}

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, index, flags: 0, eax, ebx, ecx, edx, padding: [0; 3] }
}

fn subleaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let flags = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    kvm_cpuid_entry2 { flags, ..leaf(function, index, registers) }
}

#[cfg(test)]
#[path = "cpuid_tests.rs"]
mod tests;
