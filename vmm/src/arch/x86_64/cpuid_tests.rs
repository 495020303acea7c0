//! Topology and feature leaves.

use super::*;

fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
    *cpuid.as_slice().iter().find(|e| (e.function, e.index) == (function, index)).unwrap()
}

fn host() -> Vec<kvm_cpuid_entry2> {
    vec![
        leaf(0x0, 0, [0xd, 0, 0, 0]),
        leaf(0x1, 0, [0x663, 0x0901_0800, 0, 0]),
        leaf(0xa, 0, [0x0730_0402, 0, 0, 0]),
        subleaf(0xb, 0, [9, 9, 9, 9]),
        subleaf(0xd, 0, [7, 0, 0, 0]),
        leaf(KVM_SIGNATURE, 0, [0x4000_0001, 0, 0, 0]),
        leaf(0x8000_0008, 0, [0x3030, 0, 0x700f, 0]),
    ]
}

#[test]
fn each_vcpu_reads_its_own_number_and_the_same_topology() {
    let template = CpuidTemplate::from_entries(&host(), 3, true);
    let cpuid = template.of_vcpu(2, 2_000_000).unwrap();

    let one = find(&cpuid, 1, 0);
    assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (2, 3));
    assert_eq!(one.ebx & 0xffff, 0x0800, "the flush size stays");
    assert_ne!(one.ecx & LEAF1_ECX_HYPERVISOR, 0);
    assert_ne!(one.ecx & LEAF1_ECX_TSC_DEADLINE, 0);
    assert_ne!(one.edx & LEAF1_EDX_HTT, 0);
    let core = find(&cpuid, 0xb, 1);
    assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 3, 0x201, 2));
    assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 2 | 2 << 12);
    assert_eq!(find(&cpuid, KVM_SIGNATURE, 0).eax, HYPERVISOR_TIMING);
    assert_eq!(find(&cpuid, HYPERVISOR_TIMING, 0).eax, 2_000_000);
    assert!(!cpuid.as_slice().iter().any(|e| e.function == 0xa), "no performance counters");
}

#[test]
fn a_guest_that_knows_more_than_this_host_is_found_out() {
    let template = CpuidTemplate::from_entries(&host(), 1, true);
    let here = template.of_vcpu(0, 0).unwrap();
    let mut guest = here.as_slice().to_vec();
    for entry in guest.iter_mut().filter(|e| e.function == 1) {
        // Its number, and that it uses XSAVE, are no features.
        entry.ebx |= 3 << 24;
        entry.ecx |= 1 << 27;
    }
    assert_eq!(missing_features(&guest, &here), None);
    for entry in guest.iter_mut().filter(|e| e.function == 1) {
        entry.ecx |= 1 << 28;
    }
    guest.push(subleaf(0x7, 0, [0, 1 << 16, 0, 0]));
    let missing = missing_features(&guest, &here).unwrap();
    assert_eq!(missing, "CPUID leaf 0x1.0 ecx bits 0x10000000, CPUID leaf 0x7.0 ebx bits 0x10000");
}

#[test]
fn the_processor_has_its_name() {
    if !crate::testing::has_kvm() {
        return;
    }
    let cpuid = CpuidTemplate::new(&Kvm::new().unwrap(), 1).unwrap().of_vcpu(0, 0).unwrap();
    for function in NAME {
        let (there, here) = (find(&cpuid, function, 0), __cpuid(function));
        assert_eq!(
            [there.eax, there.ebx, there.ecx, there.edx],
            [here.eax, here.ebx, here.ecx, here.edx]
        );
    }
}

#[test]
fn one_cpu_is_not_hyperthreaded() {
    let cpuid = CpuidTemplate::from_entries(&host(), 1, false).of_vcpu(0, 0).unwrap();
    assert_eq!(find(&cpuid, 1, 0).edx & LEAF1_EDX_HTT, 0);
    assert_eq!(find(&cpuid, 1, 0).ecx & LEAF1_ECX_TSC_DEADLINE, 0);
    assert_eq!(find(&cpuid, KVM_SIGNATURE, 0).eax, 0x4000_0001);
}
