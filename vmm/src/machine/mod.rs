//! The machine: everything a guest consists of, built in one visible order.
//!
//! A machine belongs to the control thread and decides nothing by itself: it reports what its guest does
//! ([`MachineEvent`]) and does as it is told. `control` decides.

mod disks;
mod events;
mod platform;

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex};

use ferry_block::{BlockHandle, IoThread, IoThreadOptions};
use ferry_devices::TimeSource;
use ferry_devices::rtc::Rtc;
use ferry_devices::serial::SerialSink;
use ferry_devices::virtio::transport::VirtioPci;
use ferry_migration::state::{Migrate, Sections};
use kvm_ioctls::{Cap, VcpuFd};

pub use disks::Disk;
pub(crate) use events::Brake;
pub use events::{MachineEvent, MachineEvents};

use crate::arch::x86_64::acpi;
use crate::arch::x86_64::boot::BootFiles;
use crate::arch::x86_64::cpuid::{CpuidTemplate, missing_features};
use crate::arch::x86_64::msr::{self, MsrList};
use crate::arch::x86_64::regs::{self, Entry};
use crate::arch::x86_64::state::{self, ClockStateV1, IrqchipStateV1, Scope, VcpuStateV1};
use crate::config::Config;
use crate::console::SharedSerial;
use crate::error::{Error, Result};
use crate::kvm::Vm;
use crate::lifecycle::{BadTransition, Lifecycle, RunState};
use crate::memory::Ram;
use crate::vcpu::Vcpus;
use platform::{Platform, lock};

/// Name of the sections that belong to the machine as a whole.
const INSTANCE: &str = "machine";

/// What a machine gets from outside.
pub struct MachineParts {
    /// Where the serial port's output goes.
    pub sink: Box<dyn SerialSink>,
    /// Where the machine reports.
    pub events: MachineEvents,
    /// Monotonic time.
    pub clock: TimeSource,
}

/// A virtual machine with its vCPUs stopped or running.
pub struct Machine {
    // The vCPU threads end first: they use everything below.
    vcpus: Vcpus,
    disks: Vec<Disk>,
    platform: Platform,
    io_thread: IoThread,
    ram: Ram,
    vm: Arc<Vm>,
    boot: Option<BootFiles>,
    power_on: PowerOn,
    msrs: MsrList,
    /// The disks have stopped taking requests.
    quiesced: Cell<bool>,
    /// The guest's clock, while it stands still.
    stopped_clock: Cell<Option<ClockStateV1>>,
    lifecycle: RefCell<Lifecycle>,
}

/// What CPUs and interrupt controllers were before the first instruction; a reset goes back to it.
struct PowerOn {
    irqchip: IrqchipStateV1,
    vcpus: Vec<VcpuStateV1>,
}

impl Machine {
    /// Build a machine. Nothing of the guest runs yet.
    ///
    /// To be awaited on the executor of the control thread.
    pub async fn new(config: &Config, parts: MachineParts) -> Result<Machine> {
        // Files first: a typing mistake should not cost more than a message.
        let boot = BootFiles::open(config)?;
        let vm = Vm::create()?;
        check_cpus(&vm, config.cpus)?;
        let ram = Ram::new(&vm, config.memory)?;
        let brake = Brake::default();
        let reports = events::device_reports(&parts.events, &brake);
        let platform = Platform::new(&vm, ram.layout(), parts.clock, parts.sink, reports)?;
        let io_thread = IoThread::spawn("io0", IoThreadOptions::default())
            .map_err(|e| Error::host("start the I/O thread", e))?;
        let board = disks::Board {
            vm: &vm,
            ram: &ram,
            pci: &platform.pci,
            graph: &io_thread.handle(),
            events: &parts.events,
            brake: &brake,
        };
        let disks = disks::build(config, &board).await?;
        let fds = create_vcpus(&vm, config.cpus)?;
        let msrs = MsrList::of_host(vm.kvm())?;
        let power_on = PowerOn {
            irqchip: state::save_irqchip(&vm)?,
            vcpus: fds
                .iter()
                .map(|fd| state::save_vcpu(&vm, fd, &msrs))
                .collect::<Result<Vec<_>>>()?,
        };
        let reports = events::vcpu_reports(&parts.events);
        let vcpus = Vcpus::new(fds, &platform.buses, &reports, &brake)?;
        let machine = Machine {
            vcpus,
            disks,
            platform,
            io_thread,
            ram,
            vm,
            boot,
            power_on,
            msrs,
            quiesced: Cell::new(false),
            stopped_clock: Cell::new(None),
            lifecycle: RefCell::new(Lifecycle::new(config.incoming.is_some())),
        };
        if config.incoming.is_none() {
            machine.load_guest()?;
        } else {
            machine.quiesce_disks().await;
        }
        Ok(machine)
    }

    /// Kernel and tables into memory, the first vCPU to the kernel's entry point.
    fn load_guest(&self) -> Result<()> {
        let Some(boot) = &self.boot else {
            return Err(Error::config("there is no kernel to boot: give --kernel FILE"));
        };
        let entry: Entry = boot.load(self.ram.guest(), self.ram.layout())?;
        let cpus = u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX);
        acpi::write_tables(self.ram.guest(), self.ram.layout(), cpus)?;
        self.vcpus.with(0, |vcpu| regs::set_registers(vcpu, entry))
    }

    /// The run state.
    pub fn run_state(&self) -> RunState {
        self.lifecycle.borrow().state()
    }

    /// Change the run state without touching vCPUs, for states that only say why they stand still.
    pub fn set_run_state(&self, to: RunState) -> std::result::Result<RunState, BadTransition> {
        self.lifecycle.borrow_mut().transition(to)
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// How many vCPUs there are.
    pub fn cpus(&self) -> usize {
        self.vcpus.len()
    }

    /// The door to the block graph that the disks are in.
    pub fn block(&self) -> BlockHandle {
        self.io_thread.handle()
    }

    /// The I/O thread.
    pub fn io_thread(&self) -> &IoThread {
        &self.io_thread
    }

    /// The disks, in the order of their slots.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// The serial port, for the console. Do not hold its lock for long: a vCPU may wait.
    pub fn shared_serial(&self) -> SharedSerial {
        Arc::clone(&self.platform.serial)
    }

    /// The CMOS clock, for whoever waits until it interrupts. Do not hold its lock for long: a vCPU may wait.
    pub fn shared_clock(&self) -> Arc<Mutex<Rtc>> {
        Arc::clone(&self.platform.rtc)
    }

    /// Press the power button; whether the guest listens to it.
    pub fn press_power_button(&self) -> bool {
        self.platform.press_power_button()
    }

    /// Let the guest run, and its disks take requests.
    ///
    /// # Errors
    /// When the run state does not allow it, or KVM refuses the clock; the guest stays stopped then.
    pub fn resume(&self) -> Result<()> {
        if self.set_run_state(RunState::Running)? == RunState::Running {
            return Ok(());
        }
        self.go()
    }

    fn go(&self) -> Result<()> {
        if let Some(clock) = self.stopped_clock.take() {
            state::restore_clock(&self.vm, clock)?;
            self.tell_guest_it_was_paused()?;
        }
        if self.quiesced.replace(false) {
            self.disks.iter().for_each(Disk::resume);
        }
        self.vcpus.resume();
        Ok(())
    }

    /// Stop the guest at an instruction boundary of each vCPU, and its clock; the run state becomes `to`. The
    /// disks go on with what they have: [`Machine::quiesce_disks`] and [`Machine::flush_disks`] usually follow.
    ///
    /// # Errors
    /// When the run state does not allow it.
    pub fn pause(&self, to: RunState) -> Result<()> {
        self.set_run_state(to)?;
        self.vcpus.pause();
        if self.stopped_clock.get().is_none() {
            self.stopped_clock.set(Some(state::save_clock(&self.vm)?));
        }
        Ok(())
    }

    /// Wait until no disk has a request in flight; none takes another before the machine resumes. The vCPUs must
    /// be paused.
    pub async fn quiesce_disks(&self) {
        // All begin at once, so this takes as long as the slowest.
        let pending: Vec<_> =
            self.disks.iter().map(|disk| VirtioPci::quiesce(disk.device())).collect();
        for quiet in pending {
            quiet.await;
        }
        self.quiesced.set(true);
    }

    /// Make everything durable that the guest has written. The disks must be quiet.
    ///
    /// # Errors
    /// The first node that refuses; the others are flushed all the same.
    pub async fn flush_disks(&self) -> Result<()> {
        let block = self.block();
        let flushed = block.call(|graph| async move {
            let mut result = Ok(());
            for node in graph.nodes() {
                if node.is_active() && !node.is_read_only() {
                    result = result.and(node.flush().await);
                }
            }
            result
        });
        Ok(flushed.await.and_then(|result| result)?)
    }

    /// Have KVM tell the guest's clock that time was lost, so that its watchdogs do not fire.
    fn tell_guest_it_was_paused(&self) -> Result<()> {
        if !self.vm.fd().check_extension(Cap::KvmclockCtrl) {
            return Ok(());
        }
        self.vcpus.for_each(|_, vcpu| match vcpu.kvmclock_ctrl() {
            // A guest that does not use the clock has nothing to be told.
            Err(e) if e.errno() == libc::EINVAL => Ok(()),
            told => told.map_err(|e| Error::host("tell the guest that it was paused", e)),
        })
    }

    /// Back to power-on with the kernel loaded again. A running guest starts again, a stopped one stays stopped.
    ///
    /// # Errors
    /// When there is no kernel to load, or KVM refuses; the guest must not run then.
    pub async fn reset(&self) -> Result<()> {
        let running = self.run_state() == RunState::Running;
        self.vcpus.pause();
        self.quiesce_disks().await;
        self.platform.reset();
        state::restore_irqchip(&self.vm, &self.power_on.irqchip)?;
        self.vcpus.for_each(|index, vcpu| {
            let Some(state) = self.power_on.vcpus.get(index as usize) else {
                return Err(Error::state(format!("vCPU {index} has no power-on state")));
            };
            state::restore_vcpu(&self.vm, vcpu, state, Scope::Reset)
        })?;
        self.ram.forget_contents()?;
        self.load_guest()?;
        self.lifecycle.borrow_mut().after_reset();
        if running { self.go() } else { Ok(()) }
    }

    /// Add the state of everything but the disks' contents. The vCPUs must be paused and the disks quiesced.
    pub fn save_state(&self, out: &mut Sections) -> Result<()> {
        let clock = match self.stopped_clock.get() {
            Some(clock) => clock,
            None => state::save_clock(&self.vm)?,
        };
        out.save(INSTANCE, &clock)?;
        self.vcpus.for_each(|index, vcpu| {
            let state = state::save_vcpu(&self.vm, vcpu, &self.msrs)?;
            Ok(out.save(&index.to_string(), &state)?)
        })?;
        out.save(INSTANCE, &state::save_irqchip(&self.vm)?)?;
        self.platform.save(out)?;
        self.disks.iter().try_for_each(|disk| Ok(lock(disk.device()).save(out)?))
    }

    /// Become what `from` says. The vCPUs must never have run. After an error they must never run.
    ///
    /// Leaves what it does not know in `from`: the caller adds its own and calls `finish`.
    pub fn restore_state(&self, from: &mut Sections) -> Result<()> {
        let clock: ClockStateV1 = from.load(INSTANCE)?;
        let irqchip: IrqchipStateV1 = from.load(INSTANCE)?;
        self.vcpus.for_each(|index, vcpu| {
            let state: VcpuStateV1 = from.load(&index.to_string())?;
            let here = vcpu
                .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
                .map_err(|e| Error::host("read a vCPU's CPU features", e))?;
            if let Some(missing) = missing_features(&state.cpuid, &here) {
                return Err(Error::state(format!("this host's CPU lacks features: {missing}")));
            }
            state::restore_vcpu(&self.vm, vcpu, &state, Scope::Everything)
                .map_err(|e| Error::because(e.kind(), format!("vCPU {index}"), e))
        })?;
        state::restore_irqchip(&self.vm, &irqchip)?;
        self.platform.restore(from)?;
        self.disks.iter().try_for_each(|disk| lock(disk.device()).restore(from))?;
        // Only now are all BARs known.
        self.platform.pci.sync_bars();
        self.stopped_clock.set(Some(clock));
        Ok(())
    }
}

fn check_cpus(vm: &Vm, cpus: u32) -> Result<()> {
    let most = vm.kvm().get_max_vcpus();
    if cpus as usize > most {
        return Err(Error::config(format!("--cpus {cpus}: this host's KVM allows {most} at most")));
    }
    Ok(())
}

/// Create vCPUs and fix what may not change once one has run.
fn create_vcpus(vm: &Vm, cpus: u32) -> Result<Vec<VcpuFd>> {
    let cpuid = CpuidTemplate::new(vm.kvm(), cpus)?;
    let create = |index| {
        let vcpu = vm
            .fd()
            .create_vcpu(u64::from(index))
            .map_err(|e| Error::host(&format!("create vCPU {index}"), e))?;
        let tsc_khz = vcpu.get_tsc_khz().unwrap_or(0);
        vcpu.set_cpuid2(&cpuid.of_vcpu(index, tsc_khz)?)
            .map_err(|e| Error::host("tell KVM the guest's CPU features", e))?;
        msr::set_power_on(&vcpu);
        Ok(vcpu)
    };
    (0..cpus).map(create).collect()
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
