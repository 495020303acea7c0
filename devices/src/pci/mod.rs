//! PCI: configuration space, base address registers, MSI-X, INTx, the bus and its two ways in.
//!
//! The guest reaches configuration space through the I/O ports 0xCF8/0xCFC ([`PciPorts`], PCI 3.0
//! section 3.2.2.3.2) and through memory ([`Ecam`], PCI Express 4.0 section 7.2.2); both lead to
//! one [`PciBus`]. A device is a [`PciDevice`]: its [`ConfigSpace`] answers configuration accesses,
//! and the bus maps its BARs wherever the guest puts them and hands it what the guest reads and
//! writes there.
//!
//! Absent on purpose: bridges, more than one bus or function, expansion ROMs, and the PCI Express
//! capability. Devices are conventional PCI functions behind an ECAM window, so only the first 256
//! bytes of each configuration space exist.

mod bar;
mod bus;
mod config;
mod host;
mod intx;
mod msix;
pub mod state;

pub use bar::{BAR_COUNT, BarKind};
pub use bus::{FunctionAddress, PciBus, PciWindows, SLOT_COUNT};
pub use config::{ConfigChange, ConfigSpace, PciIdentity};
pub use host::{
    CONFIG_PORTS, Ecam, HostBridge, INTX_IRQS, MAX_ECAM_BUSES, PciPorts, RESET_PORT, RESET_VALUE,
    intx_gsi,
};
pub use intx::Intx;
pub use msix::{MAX_VECTORS, MSIX_ENTRY_LEN, MsixLayout, MsixTable};

/// One PCI function in a slot of the bus.
///
/// The bus calls every method with the device locked, from vCPU threads. No offset, length or value
/// that the guest chooses may panic. A device must not call the bus from inside these methods.
pub trait PciDevice: Send {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Its configuration space, for the bus to place BARs and for restore.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// The guest reads configuration space. `offset + data.len()` is at most 256. A device that has
    /// windows in its configuration space (virtio's PCI configuration access capability) looks here
    /// first.
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// The guest writes configuration space. `offset + data.len()` is at most 256. Returns what
    /// [`ConfigSpace::write`] returned, so that the bus moves the BARs.
    fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigChange {
        self.config_mut().write(offset, data)
    }

    /// The guest reads `data.len()` bytes at `offset` of BAR `bar`; all must be filled.
    /// `offset + data.len()` is within the BAR.
    fn bar_read(&mut self, bar: usize, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset` of BAR `bar`, within the BAR.
    fn bar_write(&mut self, bar: usize, offset: u64, data: &[u8]);

    /// BAR `bar` now answers at `base`, or nowhere. Doorbells bound to addresses follow here.
    fn bar_moved(&mut self, bar: usize, base: Option<u64>);

    /// Back to the state after power-on. The bus resets the configuration space afterwards itself.
    fn reset(&mut self);
}

/// What went wrong while a machine's PCI devices were put together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PciError {
    /// The slot number is too large or the slot is taken.
    #[error("PCI slot {slot} is taken or does not exist; choose a free one below {SLOT_COUNT}")]
    Slot {
        /// The slot asked for.
        slot: u8,
    },
    /// A BAR has a size or a number that cannot be.
    #[error("BAR {bar} of {size:#x} bytes as {kind:?} is not possible: {why}")]
    Bar {
        /// Which BAR.
        bar: usize,
        /// Its size in bytes.
        size: u64,
        /// Its kind.
        kind: BarKind,
        /// The rule it breaks.
        why: &'static str,
    },
    /// There is no room for a BAR in the address window of its kind.
    #[error("no room for {size:#x} bytes of {kind:?} in the PCI address windows")]
    WindowFull {
        /// The BAR's size in bytes.
        size: u64,
        /// The BAR's kind.
        kind: BarKind,
    },
    /// The capabilities of a device do not fit into its configuration space.
    #[error("a capability of {len} bytes does not fit into configuration space any more")]
    CapabilitySpace {
        /// Length in bytes.
        len: usize,
    },
    /// An MSI-X layout that is outside its BAR, overlapping or of zero or too many vectors.
    #[error("the MSI-X layout is not possible: {why}")]
    Msix {
        /// The rule it breaks.
        why: &'static str,
    },
}
