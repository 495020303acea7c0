//! What ends, restarts or breaks the machine, and the ACPI registers by which a guest asks for it.
//!
//! The machine is a *full* ACPI platform, not a hardware-reduced one. Linux treats hardware-reduced
//! as "no legacy interrupt controller and no PIT", which takes the serial port's and the timer's
//! interrupts away; power-off would need sleep control registers and the power button a generic
//! event device. The fixed registers here (ACPI 6.4, section 4.8.3) need nothing of that: power-off
//! is one write, the power button one status bit and the SCI.
//!
//! What the FADT must say is in the constants of this module and of [`crate::pci`] (reset
//! register). There is no SMI command port, so the machine is in ACPI mode from the start; no GPE
//! block, as nothing uses one; and no sleep state but S5.

pub mod state;

use std::sync::Arc;

use ferry_migration::state::{Migrate, Sections};
use ferry_migration::{Error as StateError, Result as StateResult};

use crate::TimeSource;
use crate::bus::{BusDevice, BusRange};
use crate::irq::IrqLine;
use state::PowerState;

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

/// Where devices report [`PowerEvent`]s. Called on vCPU threads with the device locked: it must not
/// block and must not come back to the device.
pub type PowerEvents = Arc<dyn Fn(PowerEvent) + Send + Sync>;

/// The I/O ports of [`AcpiPower`].
pub const POWER_PORTS: BusRange = BusRange::new(0x600, 0x10);
/// FADT `PM1a_EVT_BLK`; [`PM1A_EVENT_LEN`] bytes.
pub const PM1A_EVENT_PORT: u16 = 0x600;
/// FADT `PM1_EVT_LEN`.
pub const PM1A_EVENT_LEN: u8 = 4;
/// FADT `PM1a_CNT_BLK`; [`PM1A_CONTROL_LEN`] bytes.
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// FADT `PM1_CNT_LEN`.
pub const PM1A_CONTROL_LEN: u8 = 2;
/// FADT `PM_TMR_BLK`; [`PM_TIMER_LEN`] bytes, of which the timer uses 24 bits.
pub const PM_TIMER_PORT: u16 = 0x608;
/// FADT `PM_TMR_LEN`.
pub const PM_TIMER_LEN: u8 = 4;
/// FADT `SCI_INT`: level-triggered, active high; the MADT needs an interrupt source override that
/// says so.
pub const SCI_IRQ: u8 = 9;
/// First element of the DSDT's `_S5` package.
pub const SLEEP_TYPE_S5: u8 = 5;
/// FADT `Flags`: WBINVD works; there is a power button in the fixed registers (bit 4 clear), and
/// neither a sleep button nor RTC wake there (bits 5, 6); the reset register works (bit 10). The
/// timer has 24 bits.
pub const FADT_FLAGS: u32 = 1 | 1 << 5 | 1 << 6 | 1 << 10;
/// FADT `IAPC_BOOT_ARCH`: legacy ISA devices; no VGA (bit 2). The 8042 bit (1) is clear, so that
/// Linux does not search for a keyboard; MSI works (bit 3 clear) and so does the CMOS clock (bit 5
/// clear).
pub const IAPC_BOOT_ARCH: u16 = 1 | 1 << 2;

/// PM1 status and enable bits (sections 4.8.3.1.1 and 4.8.3.1.2).
const TIMER: u16 = 1 << 0;
const GLOBAL: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const SLEEP_BUTTON: u16 = 1 << 9;
const RTC: u16 = 1 << 10;
/// All that a guest can enable. Some of these never happen, but ACPI drivers read back what they
/// enabled.
const ENABLES: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC;

/// PM1 control bits (section 4.8.3.2.1).
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 7 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u16 = 1 << 13;
/// Bits a guest can set and read back: bus master wake-up and the sleep type.
const CONTROL_WRITABLE: u16 = 1 << 1 | SLEEP_TYPE_MASK;

/// The timer's frequency (section 4.8.3.3).
const TIMER_HZ: u128 = 3_579_545;
const TIMER_MASK: u64 = (1 << 24) - 1;
/// The timer status bit is set whenever this bit of the count changes.
const TIMER_CARRY_SHIFT: u32 = 23;

/// The fixed ACPI registers: PM1a event block, PM1a control block and power management timer.
///
/// Absent: the timer carry interrupt. The status bit is right whenever it is read, but nothing
/// wakes up to raise the SCI for it; no current system enables it.
pub struct AcpiPower {
    sci: Arc<dyn IrqLine>,
    clock: TimeSource,
    events: PowerEvents,
    status: u16,
    enable: u16,
    control: u16,
    /// Added to the clock's ticks, so that the count goes on where it was saved.
    timer_offset: u64,
    /// The count's upper part when the timer status bit was last brought up to date.
    carries_seen: u64,
}

impl AcpiPower {
    /// The registers after power-on. `clock` is monotonic with any origin; `sci` is line
    /// [`SCI_IRQ`].
    pub fn new(sci: Arc<dyn IrqLine>, clock: TimeSource, events: PowerEvents) -> Self {
        let mut power = Self {
            sci,
            clock,
            events,
            status: 0,
            enable: 0,
            control: SCI_ENABLE,
            timer_offset: 0,
            carries_seen: 0,
        };
        power.reset();
        power
    }

    /// Back to the state after power-on. The timer starts at zero.
    pub fn reset(&mut self) {
        self.status = 0;
        self.enable = 0;
        self.control = SCI_ENABLE;
        self.set_ticks(0);
        self.drive_sci();
    }

    /// Someone pressed the power button (`system_powerdown`). Returns whether the guest listens to
    /// it now; if it does not, the press stays recorded until it does.
    pub fn press_power_button(&mut self) -> bool {
        self.status |= POWER_BUTTON;
        self.drive_sci();
        self.enable & POWER_BUTTON != 0
    }

    fn ticks(&self) -> u64 {
        clock_ticks(&self.clock).wrapping_add(self.timer_offset)
    }

    /// Lets the timer go on from `ticks`.
    fn set_ticks(&mut self, ticks: u64) {
        self.timer_offset = ticks.wrapping_sub(clock_ticks(&self.clock));
        self.carries_seen = ticks >> TIMER_CARRY_SHIFT;
    }

    fn update_timer_status(&mut self) {
        let carries = self.ticks() >> TIMER_CARRY_SHIFT;
        if carries != self.carries_seen {
            self.carries_seen = carries;
            self.status |= TIMER;
        }
    }

    fn drive_sci(&self) {
        self.sci.set_level(self.status & self.enable != 0);
    }

    /// The registers as they lie in the ports; unused ports read as zero.
    fn image(&self) -> [u8; 16] {
        let [s0, s1] = self.status.to_le_bytes();
        let [e0, e1] = self.enable.to_le_bytes();
        let [c0, c1] = self.control.to_le_bytes();
        let [t0, t1, t2, ..] = (self.ticks() & TIMER_MASK).to_le_bytes();
        [s0, s1, e0, e1, c0, c1, 0, 0, t0, t1, t2, 0, 0, 0, 0, 0]
    }

    /// Writes one byte; guests may write registers in pieces (section 4.8.1 allows byte accesses).
    fn write_byte(&mut self, port: u64, byte: u8) {
        let shift = (port & 1) * 8;
        let (value, mask) = (u16::from(byte) << shift, 0xff_u16 << shift);
        match port {
            0 | 1 => self.status &= !value,
            2 | 3 => self.enable = (self.enable & !mask) | (value & ENABLES),
            4 | 5 => {
                let kept = self.control & !(mask & CONTROL_WRITABLE);
                self.control = kept | (value & CONTROL_WRITABLE);
                if value & SLEEP_ENABLE != 0 {
                    self.sleep();
                }
            }
            _ => {}
        }
    }

    fn sleep(&self) {
        let kind = (self.control & SLEEP_TYPE_MASK) >> SLEEP_TYPE_SHIFT;
        if kind == u16::from(SLEEP_TYPE_S5) {
            (self.events)(PowerEvent::PowerOff);
        } else {
            tracing::debug!("guest asked for sleep type {kind}, which does not exist");
        }
    }
}

fn clock_ticks(clock: &TimeSource) -> u64 {
    let ticks = clock().as_nanos().saturating_mul(TIMER_HZ) / 1_000_000_000;
    // Only the low bits matter; 64 of them last for 160,000 years.
    u64::try_from(ticks & u128::from(u64::MAX)).unwrap_or(0)
}

impl BusDevice for AcpiPower {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.update_timer_status();
        let image = self.image();
        for (at, byte) in (offset..).zip(data.iter_mut()) {
            let at = usize::try_from(at).ok();
            *byte = at.and_then(|at| image.get(at)).copied().unwrap_or(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.update_timer_status();
        for (port, byte) in (offset..).zip(data) {
            self.write_byte(port, *byte);
        }
        self.drive_sci();
    }
}

impl Migrate for AcpiPower {
    fn save(&self, out: &mut Sections) -> StateResult<()> {
        let carried = self.ticks() >> TIMER_CARRY_SHIFT != self.carries_seen;
        let state = PowerState {
            status: self.status | if carried { TIMER } else { 0 },
            enable: self.enable,
            control: self.control,
            timer_ticks: self.ticks(),
        };
        out.save("power", &state)
    }

    fn restore(&mut self, from: &mut Sections) -> StateResult<()> {
        let PowerState { status, enable, control, timer_ticks } = from.load("power")?;
        let strange = status & !(ENABLES) != 0
            || enable & !ENABLES != 0
            || control & !(CONTROL_WRITABLE | SCI_ENABLE) != 0
            || control & SCI_ENABLE == 0;
        if strange {
            return Err(StateError::state(format!(
                "saved ACPI registers cannot be: status {status:#x}, enable {enable:#x}, \
                 control {control:#x}"
            )));
        }
        self.status = status;
        self.enable = enable;
        self.control = control;
        self.set_ticks(timer_ticks);
        self.drive_sci();
        Ok(())
    }
}

#[cfg(test)]
#[path = "power_tests.rs"]
mod tests;
