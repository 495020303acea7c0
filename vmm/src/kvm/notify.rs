//! Doorbells: guest writes that KVM turns into eventfd signals without leaving the kernel.

use std::io;
use std::sync::Arc;

use ferry_devices::irq::NotifyBinder;
use kvm_ioctls::{IoEventAddress, NoDatamatch};
use vmm_sys_util::eventfd::EventFd;

use super::Vm;

/// Binds memory-mapped doorbells to eventfds.
#[derive(Debug)]
pub struct Doorbells {
    vm: Arc<Vm>,
}

impl Doorbells {
    /// Doorbells of `vm`.
    pub fn new(vm: &Arc<Vm>) -> Arc<Doorbells> {
        Arc::new(Doorbells { vm: Arc::clone(vm) })
    }
}

impl NotifyBinder for Doorbells {
    // KVM's fastest path is a doorbell of any length, so `len` is not passed on: whatever the guest
    // writes there, its queue is looked at.
    fn bind(&self, addr: u64, _len: u32, fd: &EventFd) -> io::Result<()> {
        let bound = self.vm.fd.register_ioevent(fd, &IoEventAddress::Mmio(addr), NoDatamatch);
        bound.map_err(io::Error::from)
    }

    fn unbind(&self, addr: u64, _len: u32, fd: &EventFd) -> io::Result<()> {
        let unbound = self.vm.fd.unregister_ioevent(fd, &IoEventAddress::Mmio(addr), NoDatamatch);
        unbound.map_err(io::Error::from)
    }
}
