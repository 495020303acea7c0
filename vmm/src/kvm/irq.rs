//! Interrupts into the guest: lines of the interrupt controllers and message-signalled interrupts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ferry_devices::irq::{IrqLine, MsiMessage, MsiSink};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irqchip,
};
use tracing::error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Vm;
use crate::arch::x86_64::layout::IOAPIC_PINS;
use crate::error::{Error, Result};

/// Pins of one 8259.
const PIC_PINS: u32 = 8;

/// The table of what each global system interrupt (GSI) does. KVM only takes it whole.
#[derive(Debug)]
pub(super) struct Routes {
    /// Message of each GSI from `IOAPIC_PINS` on; `None` while unrouted.
    messages: Vec<Option<MsiMessage>>,
}

impl Routes {
    pub(super) fn new() -> Routes {
        Routes { messages: Vec::new() }
    }

    fn allocate(&mut self, count: usize) -> u32 {
        let first = IOAPIC_PINS + u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        self.messages.resize(self.messages.len() + count, None);
        first
    }

    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let mut entries = Vec::new();
        for pin in 0..2 * PIC_PINS {
            let chip = if pin < PIC_PINS { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
            entries.push(pin_route(pin, chip, pin % PIC_PINS));
        }
        for gsi in 0..IOAPIC_PINS {
            // As on every PC, the timer's interrupt 0 arrives at pin 2 and the PIC cascade nowhere.
            match gsi {
                0 => entries.push(pin_route(0, KVM_IRQCHIP_IOAPIC, 2)),
                2 => {}
                _ => entries.push(pin_route(gsi, KVM_IRQCHIP_IOAPIC, gsi)),
            }
        }
        for (gsi, message) in (IOAPIC_PINS..).zip(&self.messages) {
            if let Some(message) = message {
                entries.push(message_route(gsi, *message));
            }
        }
        entries
    }
}

fn pin_route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

fn message_route(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    let [b0, b1, b2, b3, b4, b5, b6, b7] = message.address.to_le_bytes();
    entry.u.msi.address_lo = u32::from_le_bytes([b0, b1, b2, b3]);
    entry.u.msi.address_hi = u32::from_le_bytes([b4, b5, b6, b7]);
    entry.u.msi.data = message.data;
    entry
}

impl Vm {
    /// Make these inputs of the PICs level-triggered, as firmware does for PCI devices and ACPI. The IOAPIC has
    /// that in its own registers, which the guest sets.
    pub(super) fn set_level_triggered(&self, irqs: &[u8]) -> Result<()> {
        for (chip_id, first) in [(KVM_IRQCHIP_PIC_MASTER, 0), (KVM_IRQCHIP_PIC_SLAVE, PIC_PINS)] {
            let pins = irqs.iter().filter_map(|irq| u32::from(*irq).checked_sub(first));
            let level: u8 = pins.filter(|pin| *pin < PIC_PINS).map(|pin| 1 << pin).sum();
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            let failed = |e| Error::host("set up KVM's interrupt controllers", e);
            self.fd.get_irqchip(&mut chip).map_err(failed)?;
            chip.chip.pic.elcr = level;
            self.fd.set_irqchip(&chip).map_err(failed)?;
        }
        Ok(())
    }

    /// Give KVM the routing table.
    pub(super) fn install_routes(&self) -> Result<()> {
        self.change_routes(|_| ())
    }

    fn change_routes(&self, change: impl FnOnce(&mut Routes)) -> Result<()> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut routes);
        let table = KvmIrqRouting::from_entries(&routes.entries())
            .map_err(|e| Error::state(format!("interrupt routing table: {e:?}")))?;
        self.fd.set_gsi_routing(&table).map_err(|e| Error::host("route interrupts in KVM", e))
    }
}

/// One pin of the interrupt controllers.
#[derive(Debug)]
pub struct Line {
    vm: Arc<Vm>,
    gsi: u32,
}

impl Line {
    /// Pin `gsi` of the IOAPIC, and of the PICs when it is below 16.
    pub fn new(vm: &Arc<Vm>, gsi: u32) -> Arc<Line> {
        Arc::new(Line { vm: Arc::clone(vm), gsi })
    }
}

impl IrqLine for Line {
    fn set_level(&self, level: bool) {
        if let Err(e) = self.vm.fd.set_irq_line(self.gsi, level) {
            error!("interrupt {}: KVM refused level {level}: {e}", self.gsi);
        }
    }
}

/// The message-signalled interrupts of one device: an eventfd and a GSI for each vector.
#[derive(Debug)]
pub struct MsiVectors {
    vm: Arc<Vm>,
    first_gsi: u32,
    vectors: Vec<Vector>,
    /// Serialises changes; `fire` does not take it.
    changing: Mutex<()>,
}

#[derive(Debug)]
struct Vector {
    event: EventFd,
    /// Whether the eventfd is tied to the GSI.
    tied: AtomicBool,
}

impl MsiVectors {
    /// `count` vectors, none routed.
    pub fn new(vm: &Arc<Vm>, count: u16) -> Result<Arc<MsiVectors>> {
        let vectors = (0..count)
            .map(|_| {
                let event = EventFd::new(EFD_NONBLOCK)
                    .map_err(|e| Error::host("create an interrupt's event descriptor", e))?;
                Ok(Vector { event, tied: AtomicBool::new(false) })
            })
            .collect::<Result<Vec<_>>>()?;
        let first_gsi =
            vm.routes.lock().unwrap_or_else(PoisonError::into_inner).allocate(usize::from(count));
        Ok(Arc::new(MsiVectors {
            vm: Arc::clone(vm),
            first_gsi,
            vectors,
            changing: Mutex::new(()),
        }))
    }

    fn change(&self, vector: u16, message: Option<MsiMessage>) -> Result<()> {
        let Some(entry) = self.vectors.get(usize::from(vector)) else {
            return Err(Error::state(format!("the device has no interrupt vector {vector}")));
        };
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let gsi = self.first_gsi + u32::from(vector);
        let index = usize::try_from(gsi - IOAPIC_PINS).unwrap_or(usize::MAX);
        if message.is_none() && entry.tied.swap(false, Ordering::AcqRel) {
            let untied = self.vm.fd.unregister_irqfd(&entry.event, gsi);
            untied.map_err(|e| Error::host("untie an interrupt from its event", e))?;
        }
        self.vm.change_routes(|routes| routes.messages[index] = message)?;
        if message.is_some() && !entry.tied.load(Ordering::Acquire) {
            let tied = self.vm.fd.register_irqfd(&entry.event, gsi);
            tied.map_err(|e| Error::host("tie an interrupt to its event", e))?;
            entry.tied.store(true, Ordering::Release);
        }
        Ok(())
    }
}

impl MsiSink for MsiVectors {
    fn route(&self, vector: u16, message: Option<MsiMessage>) {
        if let Err(e) = self.change(vector, message) {
            error!("interrupt vector {vector}: {}", e.line());
        }
    }

    fn fire(&self, vector: u16) {
        let Some(entry) = self.vectors.get(usize::from(vector)) else { return };
        if !entry.tied.load(Ordering::Acquire) {
            return;
        }
        // A full counter means that the interrupt is pending already, so nothing is lost.
        if let Err(e) = entry.event.write(1)
            && e.kind() != std::io::ErrorKind::WouldBlock
        {
            error!("interrupt vector {vector}: cannot signal: {e}");
        }
    }
}

impl Drop for MsiVectors {
    fn drop(&mut self) {
        for vector in 0..self.vectors.len() {
            self.route(u16::try_from(vector).unwrap_or(u16::MAX), None);
        }
    }
}

#[cfg(test)]
#[path = "irq_tests.rs"]
mod tests;
