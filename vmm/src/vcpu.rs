//! vCPU threads: run the guest, emulate what it touches, stop and go on when told.
//!
//! A thread holds its vCPU's lock only while it runs the guest, so whoever has paused the machine may take
//! the lock and read or write registers.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use ferry_devices::bus::Bus;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::error::{Error, Result};
use crate::kvm::{Exit, KickFlag, decode_exit};
use crate::machine::Brake;

/// Device code on a vCPU thread is shallow; the pages of a larger stack would never be touched anyway.
const STACK: usize = 256 << 10;

/// Why a vCPU stopped by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VcpuEvent {
    /// The guest asked for power-off by a paravirtual call.
    PowerOff,
    /// The guest asked for a reset by a paravirtual call.
    Reset,
    /// The CPU shut down.
    TripleFault,
    /// KVM cannot go on; says why.
    Failed(String),
}

/// Where vCPUs report, from their threads: the vCPU's number and what happened.
pub type VcpuEvents = Arc<dyn Fn(u32, VcpuEvent) + Send + Sync>;

/// The two address spaces that a vCPU reaches.
#[derive(Debug, Clone)]
pub struct Buses {
    /// Ports.
    pub pio: Arc<Bus>,
    /// Memory that is not RAM.
    pub mmio: Arc<Bus>,
}

/// What a vCPU thread shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Wanted {
    Pause = 0,
    Run = 1,
    End = 2,
}

/// One vCPU as its thread and the rest of the machine share it.
struct Vcpu {
    index: u32,
    fd: Mutex<VcpuFd>,
    /// A [`Wanted`]; also read without the lock, between two entries into the guest.
    wanted: AtomicU8,
    /// Set by devices: stop, whatever is wanted.
    brake: Brake,
    kick: KickFlag,
    /// True while the thread is in, or on its way into, the guest.
    running: Mutex<bool>,
    changed: Condvar,
}

/// All vCPUs of a machine. Created paused.
pub struct Vcpus {
    vcpus: Vec<Arc<Vcpu>>,
    brake: Brake,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// Take `fds`, in the order of their numbers, and start a thread for each; none runs the guest yet.
    pub(crate) fn new(
        fds: Vec<VcpuFd>,
        buses: &Buses,
        events: &VcpuEvents,
        brake: &Brake,
    ) -> Result<Vcpus> {
        // The handler does nothing: the signal is only there to interrupt KVM_RUN.
        register_signal_handler(SIGRTMIN(), on_kick)
            .map_err(|e| Error::host("install the signal that stops vCPUs", e))?;
        let mut set = Vcpus { vcpus: Vec::new(), brake: Arc::clone(brake), threads: Vec::new() };
        for (index, mut fd) in (0..).zip(fds) {
            let vcpu = Arc::new(Vcpu {
                index,
                kick: KickFlag::of(&mut fd),
                fd: Mutex::new(fd),
                wanted: AtomicU8::new(Wanted::Pause as u8),
                brake: Arc::clone(brake),
                running: Mutex::new(false),
                changed: Condvar::new(),
            });
            let (thread_vcpu, buses, events) =
                (Arc::clone(&vcpu), buses.clone(), Arc::clone(events));
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(STACK)
                .spawn(move || thread_vcpu.work(&buses, &events))
                .map_err(|e| Error::host("start a vCPU thread", e))?;
            set.vcpus.push(vcpu);
            set.threads.push(thread);
        }
        Ok(set)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.vcpus.len()
    }

    /// Whether there are none; never true for a machine.
    pub fn is_empty(&self) -> bool {
        self.vcpus.is_empty()
    }

    /// Let all run the guest, whatever had stopped them.
    pub fn resume(&self) {
        self.brake.store(false, Ordering::SeqCst);
        for vcpu in &self.vcpus {
            vcpu.want(Wanted::Run);
        }
    }

    /// Ask all to stop without waiting.
    fn hold(&self) {
        for (vcpu, thread) in self.vcpus.iter().zip(&self.threads) {
            vcpu.want(Wanted::Pause);
            vcpu.kick(thread);
        }
    }

    /// Stop all and wait until none is in the guest. Accesses that were under way are complete then, so the
    /// registers are those of an instruction boundary.
    pub fn pause(&self) {
        self.hold();
        for vcpu in &self.vcpus {
            let mut running = lock(&vcpu.running);
            while *running {
                running = vcpu.changed.wait(running).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Call `f` with vCPU `index`. Pause first: a vCPU in the guest is waited for.
    pub fn with<R>(&self, index: usize, f: impl FnOnce(&VcpuFd) -> Result<R>) -> Result<R> {
        let Some(vcpu) = self.vcpus.get(index) else {
            return Err(Error::state(format!("there is no vCPU {index}")));
        };
        f(&lock(&vcpu.fd))
    }

    /// Call `f` with each vCPU in turn. Pause first: a vCPU in the guest is waited for.
    pub fn for_each(&self, mut f: impl FnMut(u32, &VcpuFd) -> Result<()>) -> Result<()> {
        self.vcpus.iter().try_for_each(|vcpu| f(vcpu.index, &lock(&vcpu.fd)))
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        for (vcpu, thread) in self.vcpus.iter().zip(&self.threads) {
            vcpu.want(Wanted::End);
            vcpu.kick(thread);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }
}

impl Vcpu {
    fn want(&self, wanted: Wanted) {
        let _waiting_threads_see_it = lock(&self.running);
        self.wanted.store(wanted as u8, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Stop by ourselves. Whoever wants the thread to end has the last word.
    fn stop_unless_ended(&self) {
        let _waiting_threads_see_it = lock(&self.running);
        let (run, pause) = (Wanted::Run as u8, Wanted::Pause as u8);
        let _was_not_running =
            self.wanted.compare_exchange(run, pause, Ordering::SeqCst, Ordering::SeqCst);
    }

    fn wants(&self, wanted: Wanted) -> bool {
        self.wanted.load(Ordering::SeqCst) == wanted as u8
    }

    /// Get the thread out of the guest. The flag makes the next entry return at once, the signal ends the
    /// present one: whichever side of the entry the thread is on, it comes back.
    fn kick(&self, thread: &JoinHandle<()>) {
        self.kick.set(true);
        if let Err(e) = thread.kill(SIGRTMIN()) {
            tracing::error!("vCPU {}: cannot signal its thread: {e}", self.index);
        }
    }

    fn work(&self, buses: &Buses, events: &VcpuEvents) {
        while self.wait_for_work() {
            let stopped = self.run(&mut lock(&self.fd), buses);
            if let Some(event) = stopped {
                // Not to be entered again before somebody decided what this means.
                self.stop_unless_ended();
                events(self.index, event);
            } else if self.brake.load(Ordering::SeqCst) {
                self.stop_unless_ended();
            }
        }
    }

    /// Say that the guest is not running and wait; false when the thread shall end.
    fn wait_for_work(&self) -> bool {
        let mut running = lock(&self.running);
        *running = false;
        self.changed.notify_all();
        while self.wants(Wanted::Pause) {
            running = self.changed.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running = true;
        !self.wants(Wanted::End)
    }

    /// Run the guest until told to stop, or until it cannot go on.
    fn run(&self, fd: &mut VcpuFd, buses: &Buses) -> Option<VcpuEvent> {
        loop {
            // The order is the point: clear, look, enter. Whoever wants a stop sets `wanted` and then the
            // flag, so either we see the first here or the entry sees the second.
            self.kick.set(false);
            let stopping = !self.wants(Wanted::Run) || self.brake.load(Ordering::SeqCst);
            // An access that was emulated is only finished by entering again; with the flag set, KVM finishes
            // it and returns before the next instruction.
            self.kick.set_if(stopping);
            match fd.run().map(drop) {
                Ok(()) => {}
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                    if stopping {
                        return None;
                    }
                    continue;
                }
                Err(e) => return Some(VcpuEvent::Failed(format!("KVM_RUN failed: {e}"))),
            }
            if let Some(event) = emulate(decode_exit(fd), buses) {
                return Some(event);
            }
        }
    }
}

/// Do what an exit asks for.
fn emulate(exit: Exit<'_>, buses: &Buses) -> Option<VcpuEvent> {
    match exit {
        Exit::PortOut { port, size, data } => {
            for value in data.chunks(size.max(1)) {
                buses.pio.write(port.into(), value);
            }
        }
        Exit::PortIn { port, size, data } => {
            for value in data.chunks_mut(size.max(1)) {
                buses.pio.read(port.into(), value);
            }
        }
        Exit::MmioWrite { addr, data } => {
            buses.mmio.write(addr, data);
        }
        Exit::MmioRead { addr, data } => {
            buses.mmio.read(addr, data);
        }
        Exit::Nothing => {}
        Exit::TripleFault => return Some(VcpuEvent::TripleFault),
        Exit::PowerOff => return Some(VcpuEvent::PowerOff),
        Exit::Reset => return Some(VcpuEvent::Reset),
        Exit::Failed(why) => return Some(VcpuEvent::Failed(why)),
    }
    None
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "vcpu_tests.rs"]
mod tests;
