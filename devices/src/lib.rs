//! ferry's device models: buses, serial, RTC, PCI and virtio.
//!
//! Nothing here knows of KVM: interrupts and doorbells leave through the traits of [`irq`], the
//! guest comes in through [`bus::Bus`], and what ends the machine leaves through
//! [`power::PowerEvents`]. Every device treats offsets, lengths and values as an attacker's, and
//! its saved state likewise: the types in each `state` module are what crosses to another process
//! and are checked before they become a device.
//!
//! Order of a restore: interrupt controllers first, for a device that owes an interrupt raises it
//! while it is restored; then every device; at last [`pci::PciBus::sync_bars`].

pub mod bus;
pub mod i8042;
pub mod irq;
pub mod pci;
pub mod power;
pub mod pvpanic;
pub mod rtc;
pub mod serial;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod virtio;

/// A clock that a device is given: time since an origin that the device names. Devices never read a
/// clock of the host themselves, so that tests and restores decide what time it is.
pub type TimeSource = std::sync::Arc<dyn Fn() -> std::time::Duration + Send + Sync>;

/// The guest's memory: mapped regions that record which pages our own devices wrote.
pub type GuestMemory = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;

/// Checks `sample` against the golden files of its kind (`resources/state`).
#[cfg(test)]
pub(crate) fn check_golden<S: ferry_migration::state::State>(sample: &S) {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/state");
    if let Err(problem) = ferry_migration::state::golden::check(std::path::Path::new(dir), sample) {
        panic!("{problem}");
    }
}
