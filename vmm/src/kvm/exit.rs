//! Why a vCPU came back from the guest, decoded from the page that KVM shares with us.

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_OUT,
    KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT,
    KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::VcpuFd;

/// What the guest wants, or why it cannot go on.
#[derive(Debug)]
pub enum Exit<'a> {
    /// Bytes for a port.
    PortOut {
        /// Which.
        port: u16,
        /// Bytes of one access; an instruction that repeats makes several.
        size: usize,
        /// All of them.
        data: &'a [u8],
    },
    /// Bytes from a port, to be filled in before the vCPU runs again.
    PortIn {
        /// Which.
        port: u16,
        /// Bytes of one access; an instruction that repeats makes several.
        size: usize,
        /// Room for all of them.
        data: &'a mut [u8],
    },
    /// A write to an address without memory.
    MmioWrite {
        /// Guest-physical address.
        addr: u64,
        /// What is written.
        data: &'a [u8],
    },
    /// A read from an address without memory, to be filled in before the vCPU runs again.
    MmioRead {
        /// Guest-physical address.
        addr: u64,
        /// Room for what is read.
        data: &'a mut [u8],
    },
    /// Nothing to do; run again.
    Nothing,
    /// The vCPU shut down: a fault while it delivered a double fault.
    TripleFault,
    /// A paravirtual request for power-off.
    PowerOff,
    /// A paravirtual request for a reset.
    Reset,
    /// KVM cannot go on.
    Failed(String),
}

/// Decode the exit after a successful `KVM_RUN` of `fd`.
///
/// `kvm-ioctls` has its own decoder, which hides the size of one access of a repeated port instruction
/// (`rep outsb`): without it eight bytes for one port look like an access to eight ports.
pub fn decode_exit(fd: &mut VcpuFd) -> Exit<'_> {
    let run = fd.get_kvm_run();
    match run.exit_reason {
        KVM_EXIT_IO => {
            // SAFETY: the exit reason says that this member of the union is set.
            let io = unsafe { run.__bindgen_anon_1.io };
            let size = usize::from(io.size);
            let len = size * usize::try_from(io.count).unwrap_or(0);
            let base: *mut u8 = std::ptr::from_mut(run).cast();
            let offset = usize::try_from(io.data_offset).unwrap_or(0);
            // SAFETY: KVM put the data at this offset of the mapping that `run` starts.
            let data = unsafe { base.add(offset) };
            // SAFETY: the data is `count` accesses of `size` bytes long and borrowed from `fd`.
            let data = unsafe { std::slice::from_raw_parts_mut(data, len) };
            if u32::from(io.direction) == KVM_EXIT_IO_OUT {
                Exit::PortOut { port: io.port, size, data }
            } else {
                Exit::PortIn { port: io.port, size, data }
            }
        }
        KVM_EXIT_MMIO => {
            // SAFETY: the exit reason says that this member of the union is set.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let len = mmio.data.len().min(usize::try_from(mmio.len).unwrap_or(0));
            if mmio.is_write != 0 {
                Exit::MmioWrite { addr: mmio.phys_addr, data: &mmio.data[..len] }
            } else {
                Exit::MmioRead { addr: mmio.phys_addr, data: &mut mmio.data[..len] }
            }
        }
        KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN => Exit::Nothing,
        KVM_EXIT_SHUTDOWN => Exit::TripleFault,
        KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: the exit reason says that this member of the union is set.
            let kind = unsafe { run.__bindgen_anon_1.system_event.type_ };
            match kind {
                KVM_SYSTEM_EVENT_SHUTDOWN => Exit::PowerOff,
                KVM_SYSTEM_EVENT_RESET => Exit::Reset,
                _ => Exit::Failed(format!("unknown system event {kind}")),
            }
        }
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: the exit reason says that this member of the union is set.
            let fail = unsafe { run.__bindgen_anon_1.fail_entry };
            let reason = fail.hardware_entry_failure_reason;
            Exit::Failed(format!("the CPU refused to enter the guest, reason {reason:#x}"))
        }
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: the exit reason says that this member of the union is set.
            let kind = unsafe { run.__bindgen_anon_1.internal.suberror };
            let text = match kind {
                1 => "an instruction could not be emulated",
                2 => "an event could not be delivered",
                3 => "several exceptions at once",
                4 => "an unexpected reason to leave the guest",
                _ => "unknown kind",
            };
            Exit::Failed(format!("internal error {kind} of KVM: {text}"))
        }
        reason => Exit::Failed(format!("unknown exit reason {reason}")),
    }
}
