//! Stopping and starting vCPUs of a bare virtual machine.

use std::sync::mpsc::channel;
use std::time::Duration;

use super::*;
use crate::kvm::Vm;
use crate::testing::has_kvm;

#[test]
fn vcpus_that_wait_for_a_startup_interrupt_stop_too() {
    if !has_kvm() {
        return;
    }
    let vm = Vm::create().unwrap();
    let fds = (0..3).map(|index| vm.fd().create_vcpu(index).unwrap()).collect();
    let buses = Buses { pio: Arc::new(Bus::new("ports")), mmio: Arc::new(Bus::new("memory")) };
    let (sender, events) = channel();
    let sender = Mutex::new(sender);
    let report: VcpuEvents = Arc::new(move |index, event| {
        lock(&sender).send((index, event)).unwrap_or(());
    });
    let vcpus = Vcpus::new(fds, &buses, &report, &Brake::default()).unwrap();
    // The boot processor finds no memory at its reset vector and cannot go on; the others wait for it.
    vcpus.resume();
    let (index, _) = events.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(index, 0);
    for _ in 0..50 {
        vcpus.pause();
        let look = |_, vcpu: &VcpuFd| match vcpu.get_regs() {
            Ok(_) => Ok(()),
            Err(e) => Err(Error::host("read registers", e)),
        };
        vcpus.for_each(look).unwrap();
        vcpus.resume();
    }
}

#[test]
fn the_brake_keeps_vcpus_out_until_they_are_resumed() {
    if !has_kvm() {
        return;
    }
    let vm = Vm::create().unwrap();
    let fds = vec![vm.fd().create_vcpu(0).unwrap()];
    let buses = Buses { pio: Arc::new(Bus::new("ports")), mmio: Arc::new(Bus::new("memory")) };
    let (sender, events) = channel();
    let sender = Mutex::new(sender);
    let report: VcpuEvents = Arc::new(move |_, event| lock(&sender).send(event).unwrap_or(()));
    let brake = Brake::default();
    let vcpus = Vcpus::new(fds, &buses, &report, &brake).unwrap();
    vcpus.resume();
    events.recv_timeout(Duration::from_secs(20)).expect("it cannot go on without memory");
    brake.store(true, Ordering::SeqCst);
    vcpus.vcpus[0].want(Wanted::Run);
    assert!(events.recv_timeout(Duration::from_millis(50)).is_err(), "it stays out");
    vcpus.resume();
    events.recv_timeout(Duration::from_secs(20)).expect("it runs again");
}
