//! The devices that every machine has: serial port, clock, ACPI registers, keyboard reset, panic device, PCI
//! host. Disks are added to its PCI bus.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ferry_devices::TimeSource;
use ferry_devices::bus::{Bus, BusDevice, BusError, BusRange};
use ferry_devices::i8042::{I8042, I8042_PORTS};
use ferry_devices::irq::IrqLine;
use ferry_devices::pci::{CONFIG_PORTS, Ecam, HostBridge, PciBus, PciPorts, PciWindows};
use ferry_devices::power::{AcpiPower, POWER_PORTS, PowerEvents, SCI_IRQ};
use ferry_devices::pvpanic::{PVPANIC_PORT, Pvpanic};
use ferry_devices::rtc::{RTC_IRQ, RTC_PORTS, Rtc, RtcNotify};
use ferry_devices::serial::{COM1_IRQ, COM1_PORTS, SerialNotify, SerialPort, SerialSink};
use ferry_migration::state::{Migrate, Sections};

use crate::arch::x86_64::layout::{
    ECAM_LEN, ECAM_START, MMIO32_LEN, MMIO32_START, MMIO64_LEN, RamLayout,
};
use crate::error::{Error, Result};
use crate::kvm::{Line, Vm};
use crate::vcpu::Buses;

/// Ports that PCI devices may decode.
const PCI_IO_START: u64 = 0xc000;
/// End of those ports.
const PCI_IO_END: u64 = 0x1_0000;

/// Where the devices report to.
pub(super) struct Reports {
    /// What ends or restarts the machine.
    pub(super) power: PowerEvents,
    /// The serial port's output waits, or has room for input again.
    pub(super) serial: SerialNotify,
    /// The clock wants to be looked at.
    pub(super) clock: RtcNotify,
}

/// The devices, and the buses that they are on.
pub(super) struct Platform {
    pub(super) buses: Buses,
    pub(super) pci: Arc<PciBus>,
    pub(super) serial: Arc<Mutex<SerialPort>>,
    host_bridge: Arc<Mutex<HostBridge>>,
    pci_ports: Arc<Mutex<PciPorts>>,
    power: Arc<Mutex<AcpiPower>>,
    pub(super) rtc: Arc<Mutex<Rtc>>,
    i8042: Arc<Mutex<I8042>>,
    pvpanic: Arc<Mutex<Pvpanic>>,
}

impl Platform {
    pub(super) fn new(
        vm: &Arc<Vm>,
        ram: RamLayout,
        clock: TimeSource,
        sink: Box<dyn SerialSink>,
        reports: Reports,
    ) -> Result<Platform> {
        let line = |irq: u8| -> Arc<dyn IrqLine> { Line::new(vm, irq.into()) };
        let buses =
            Buses { pio: Arc::new(Bus::new("port bus")), mmio: Arc::new(Bus::new("memory bus")) };
        let first64 = ram.mmio64_start();
        let windows = PciWindows {
            mmio32: MMIO32_START..MMIO32_START + MMIO32_LEN,
            mmio64: first64..first64 + MMIO64_LEN,
            io: PCI_IO_START..PCI_IO_END,
        };
        let pci = PciBus::new(Arc::clone(&buses.mmio), Arc::clone(&buses.pio), windows);
        let platform = Platform {
            serial: shared(SerialPort::new("com1", line(COM1_IRQ), sink, reports.serial)),
            host_bridge: HostBridge::new(),
            pci_ports: shared(PciPorts::new(Arc::clone(&pci), Arc::clone(&reports.power))),
            power: shared(AcpiPower::new(line(SCI_IRQ), clock, Arc::clone(&reports.power))),
            rtc: shared(Rtc::new(Arc::new(since_1970), line(RTC_IRQ), reports.clock)),
            i8042: shared(I8042::new(Arc::clone(&reports.power))),
            pvpanic: shared(Pvpanic::new(reports.power)),
            buses,
            pci,
        };
        platform.plug()?;
        Ok(platform)
    }

    /// Put every device where the guest expects it.
    fn plug(&self) -> Result<()> {
        let ports: [(BusRange, Arc<Mutex<dyn BusDevice>>); 6] = [
            (COM1_PORTS, self.serial.clone()),
            (CONFIG_PORTS, self.pci_ports.clone()),
            (POWER_PORTS, self.power.clone()),
            (RTC_PORTS, self.rtc.clone()),
            (I8042_PORTS, self.i8042.clone()),
            (PVPANIC_PORT, self.pvpanic.clone()),
        ];
        let taken = |e: BusError| Error::state(e.to_string());
        for (range, device) in ports {
            self.buses.pio.insert(range, device).map_err(taken)?;
        }
        let ecam = shared(Ecam::new(Arc::clone(&self.pci)));
        self.buses.mmio.insert(BusRange::new(ECAM_START, ECAM_LEN), ecam).map_err(taken)?;
        self.pci
            .add(0, self.host_bridge.clone())
            .map_err(|e| Error::state(format!("PCI host bridge: {e}")))
    }

    /// Press the power button; whether the guest listens.
    pub(super) fn press_power_button(&self) -> bool {
        lock(&self.power).press_power_button()
    }

    /// Back to the state after power-on, PCI devices included; those must be quiet.
    pub(super) fn reset(&self) {
        lock(&self.serial).reset();
        lock(&self.power).reset();
        lock(&self.rtc).reset();
        lock(&self.i8042).reset();
        self.pci.reset();
    }

    /// Everything with state, in the order of saving.
    fn parts(&self) -> [Arc<Mutex<dyn Migrate>>; 7] {
        [
            self.serial.clone(),
            self.rtc.clone(),
            self.power.clone(),
            self.i8042.clone(),
            self.pvpanic.clone(),
            self.host_bridge.clone(),
            self.pci_ports.clone(),
        ]
    }

    pub(super) fn save(&self, out: &mut Sections) -> Result<()> {
        self.parts().iter().try_for_each(|part| Ok(lock(part).save(out)?))
    }

    pub(super) fn restore(&self, from: &mut Sections) -> Result<()> {
        self.parts().iter().try_for_each(|part| Ok(lock(part).restore(from)?))
    }
}

fn shared<T>(device: T) -> Arc<Mutex<T>> {
    Arc::new(Mutex::new(device))
}

pub(super) fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The host's time of day, which the guest's clock starts from.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
