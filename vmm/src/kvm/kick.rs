//! The flag by which another thread keeps a vCPU from entering the guest.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::VcpuFd;

/// The `immediate_exit` byte of the page that KVM shares with us for one vCPU.
///
/// Keep it beside the [`VcpuFd`] that it was made from: the page goes when that is dropped.
#[derive(Debug)]
pub struct KickFlag {
    flag: NonNull<AtomicU8>,
}

// SAFETY: the byte is only accessed atomically, from whatever thread.
unsafe impl Send for KickFlag {}
// SAFETY: as above.
unsafe impl Sync for KickFlag {}

impl KickFlag {
    /// The flag of `vcpu`.
    pub fn of(vcpu: &mut VcpuFd) -> KickFlag {
        KickFlag { flag: NonNull::from(&mut vcpu.get_kvm_run().immediate_exit).cast() }
    }

    /// With `true`, every `KVM_RUN` finishes what was under way and returns `EINTR` before the guest's next
    /// instruction.
    pub fn set(&self, stay_out: bool) {
        // SAFETY: the page is mapped as long as the vCPU's descriptor, which lives beside this flag.
        let flag = unsafe { self.flag.as_ref() };
        flag.store(stay_out.into(), Ordering::SeqCst);
    }

    /// Set the flag if `stay_out`, else leave it as it is.
    pub fn set_if(&self, stay_out: bool) {
        if stay_out {
            self.set(true);
        }
    }
}
