//! Saved state of the ACPI registers.

use ferry_migration::state::State;
use serde::{Deserialize, Serialize};

/// The fixed ACPI registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    /// PM1a status.
    pub status: u16,
    /// PM1a enable.
    pub enable: u16,
    /// PM1a control.
    pub control: u16,
    /// The power management timer's count, with the bits that the guest does not see.
    pub timer_ticks: u64,
}

impl State for PowerState {
    const KIND: &'static str = "acpi-power";
    const VERSION: u16 = 1;
    type Older = Self;
}
