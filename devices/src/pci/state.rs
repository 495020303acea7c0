//! Saved state of what every PCI function has, and of the host bridge.

use ferry_migration::state::{Bytes, State};
use serde::{Deserialize, Serialize};

/// A function's configuration space, for devices to put into their own state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    /// The 256 bytes as the guest would read them, without the interrupt status bit.
    pub registers: Bytes,
    /// Whether the INTx pin is asserted.
    pub intx_asserted: bool,
}

/// A function's MSI-X table, for devices to put into their own state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// The table, entry by entry.
    pub vectors: Vec<MsixVectorState>,
}

/// One entry of an MSI-X table (PCI 3.0, section 6.8.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixVectorState {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// The mask bit of vector control.
    pub masked: bool,
    /// The bit in the pending bit array.
    pub pending: bool,
}

/// The host bridge at 00:00.0 and the configuration ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciHostState {
    /// Configuration space of the host bridge.
    pub config: ConfigState,
}

impl State for PciHostState {
    const KIND: &'static str = "pci-host";
    const VERSION: u16 = 1;
    type Older = Self;
}

/// The latches behind the configuration ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciPortsState {
    /// CONFIG_ADDRESS, port 0xCF8.
    pub address: u32,
    /// The reset control register, port 0xCF9.
    pub reset_control: u8,
}

impl State for PciPortsState {
    const KIND: &'static str = "pci-ports";
    const VERSION: u16 = 1;
    type Older = Self;
}
