//! What ends, restarts or breaks the machine, and the ACPI registers by which a guest asks for it.

use std::sync::Arc;

/// Something the guest did that concerns the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// The guest switched itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset: ACPI reset register or keyboard controller.
    Reset,
    /// The guest's kernel panicked and stops there.
    Panicked,
    /// The guest's kernel panicked and has started its crash kernel.
    CrashLoaded,
}

/// Where devices report [`PowerEvent`]s. Called on vCPU threads with the device locked: it must not block and
/// must not come back to the device.
pub type PowerEvents = Arc<dyn Fn(PowerEvent) + Send + Sync>;
