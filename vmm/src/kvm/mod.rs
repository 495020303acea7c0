//! The door to KVM: one virtual machine with its in-kernel interrupt controllers and timer.
//!
//! Everything that needs `unsafe` because KVM reads or writes memory by address is in this folder.

#![expect(unsafe_code, reason = "KVM maps guest memory by raw address")]

mod exit;
mod irq;
mod kick;
mod notify;

use std::sync::{Arc, Mutex};

use ferry_devices::pci::INTX_IRQS;
use ferry_devices::power::SCI_IRQ;
use kvm_bindings::{
    KVM_API_VERSION, KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

pub use exit::{Exit, decode_exit};
pub use irq::{Line, MsiVectors};
pub use kick::KickFlag;
pub use notify::Doorbells;

use crate::arch::x86_64::layout;
use crate::error::{Error, ErrorKind, Result};

/// What a machine cannot do without, and how a message names it.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IoeventfdNoLength, "KVM_CAP_IOEVENTFD_NO_LENGTH"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
];

/// A virtual machine of KVM. Shared by vCPUs, memory and whatever raises interrupts.
#[derive(Debug)]
pub struct Vm {
    kvm: Kvm,
    fd: VmFd,
    routes: Mutex<irq::Routes>,
}

impl Vm {
    /// Open KVM, check that it can do what a machine needs, and create a virtual machine with PIC, IOAPIC
    /// and PIT in the kernel.
    pub fn create() -> Result<Arc<Vm>> {
        let kvm = open_kvm()?;
        let fd = kvm.create_vm().map_err(|e| Error::host("create a virtual machine in KVM", e))?;
        // Intel needs these before the first vCPU; elsewhere they do nothing.
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(|e| Error::host("set KVM's identity map address", e))?;
        fd.set_tss_address(layout::KVM_TSS).map_err(|e| Error::host("set KVM's TSS address", e))?;
        fd.create_irq_chip().map_err(|e| Error::host("create KVM's interrupt controllers", e))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(|e| Error::host("create KVM's interval timer", e))?;
        let vm = Vm { kvm, fd, routes: Mutex::new(irq::Routes::new()) };
        vm.install_routes()?;
        vm.set_level_triggered(&[&INTX_IRQS[..], &[SCI_IRQ]].concat())?;
        Ok(Arc::new(vm))
    }

    /// KVM itself, for what it supports.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// The virtual machine's descriptor.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Let the guest see `len` bytes at host address `host` as physical memory at `gpa`, or change whether
    /// KVM records writes to them.
    ///
    /// # Safety
    /// `host` must stay mapped, for at least `len` bytes, as long as any vCPU of this machine can run.
    pub unsafe fn map_ram(
        &self,
        slot: u32,
        gpa: u64,
        host: *mut u8,
        len: u64,
        log_dirty: bool,
    ) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: if log_dirty { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: host as u64,
        };
        // SAFETY: the caller keeps the memory mapped.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(|e| {
            Error::host(&format!("give the guest {} MiB of memory at {gpa:#x}", len >> 20), e)
        })
    }
}

fn open_kvm() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|e| {
        let context = match e.errno() {
            libc::ENOENT | libc::ENXIO | libc::ENODEV => {
                "no KVM on this host: /dev/kvm is not there; enable virtualisation in the firmware \
                 and load the module kvm_intel or kvm_amd"
            }
            libc::EACCES | libc::EPERM => {
                "no permission on /dev/kvm: add your user to the group that owns it (usually 'kvm') \
                 or run as root"
            }
            _ => "cannot open /dev/kvm",
        };
        Error::because(ErrorKind::Host, context, e)
    })?;
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(Error::new(
            ErrorKind::Host,
            format!("KVM has API version {version}, but {KVM_API_VERSION} is needed"),
        ));
    }
    for &(cap, name) in REQUIRED {
        if !kvm.check_extension(cap) {
            let context = format!("this host's KVM lacks {name}; a newer kernel is needed");
            return Err(Error::new(ErrorKind::Host, context));
        }
    }
    Ok(kvm)
}
