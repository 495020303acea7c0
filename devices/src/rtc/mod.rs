//! The CMOS clock: a Motorola MC146818A on ports 0x70 and 0x71, with 128 bytes of memory.
//!
//! Time is the host's plus what the guest has set it ahead. While the guest sets it (register B,
//! SET), the time registers are bytes that stand still; afterwards the clock goes on from them.
//!
//! Interrupts are in `interrupt`: the clock knows when the next is due, its owner waits for it.

mod calendar;
mod interrupt;
pub mod state;

use std::sync::Arc;

use ferry_migration::state::{Bytes, Migrate, Sections};
use ferry_migration::{Error as StateError, Result as StateResult};

use crate::TimeSource;
use crate::bus::{BusDevice, BusRange};
use crate::irq::IrqLine;
use calendar::Calendar;
use state::RtcState;

/// Index port 0x70 and data port 0x71.
pub const RTC_PORTS: BusRange = BusRange::new(0x70, 2);
/// The clock's interrupt in the ACPI tables.
pub const RTC_IRQ: u8 = 8;
/// FADT `CENTURY`: the register of the century.
pub const RTC_CENTURY: u8 = 0x32;

const MEMORY_LEN: usize = 128;
/// Port 0x70, bit 7 masks the NMI; the other bits are the index.
const INDEX_MASK: u8 = 0x7f;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;

/// Register A: an update is in progress, the time must not be read.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Register A after power-on: 32.768 kHz time base, 1024 Hz periodic rate.
const REGISTER_A_POWER_ON: u8 = 0x26;
/// Register B.
const SET: u8 = 1 << 7;
const UPDATE_INTERRUPT: u8 = 1 << 4;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Register C: any enabled interrupt, and an update has ended.
const INTERRUPT: u8 = 1 << 7;
const UPDATE_ENDED: u8 = 1 << 4;
/// Register D: memory and time are valid.
const VALID: u8 = 1 << 7;
/// Hours in 12-hour mode: afternoon.
const PM: u8 = 1 << 7;

const NANOS_PER_SECOND: i128 = 1_000_000_000;
/// An update takes 1984 us at a 32 kHz time base, and is announced 244 us before.
const UPDATE_NANOS: i128 = 2_228_000;
/// The first second after the clock was set is half as long (the divider starts in its middle).
const NANOS_AFTER_SET: i128 = NANOS_PER_SECOND / 2;
/// More than the 10,000 years that the registers can show.
const MAX_AHEAD_SECONDS: i64 = 400_000_000_000;

/// The order of the time registers in [`Rtc::held`] and in the saved state.
const TIME_REGISTERS: [u8; 8] = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, RTC_CENTURY];

/// Told that [`Rtc::tick`] may have another answer now, on vCPU threads with the clock locked: it must not
/// block nor come back to the clock.
pub type RtcNotify = Arc<dyn Fn() + Send + Sync>;

/// The clock.
pub struct Rtc {
    clock: TimeSource,
    line: Arc<dyn IrqLine>,
    /// What the line was driven to last.
    level: bool,
    changed: RtcNotify,
    /// `changed` was called since the last tick.
    told: bool,
    index: u8,
    memory: [u8; MEMORY_LEN],
    /// What the guest's time is ahead of the host's, in nanoseconds.
    ahead: i128,
    /// The time registers while the guest sets them.
    held: Option<[u8; 8]>,
    /// The second in which register C was last read.
    flags_read_at: i64,
    /// The same moment to the nanosecond, for the periodic interrupt.
    periodic_read_at: i128,
}

impl Rtc {
    /// A clock that shows the time of `clock`, which counts from the start of 1970 (UTC). `line` is line
    /// [`RTC_IRQ`].
    pub fn new(clock: TimeSource, line: Arc<dyn IrqLine>, changed: RtcNotify) -> Self {
        let mut memory = [0; MEMORY_LEN];
        memory[usize::from(REGISTER_A)] = REGISTER_A_POWER_ON;
        memory[usize::from(REGISTER_B)] = HOURS_24;
        let mut rtc = Self {
            clock,
            line,
            level: false,
            changed,
            told: false,
            index: 0,
            memory,
            ahead: 0,
            held: None,
            flags_read_at: 0,
            periodic_read_at: 0,
        };
        rtc.forget_flags();
        rtc
    }

    /// A reset of the machine: the clock has a battery and goes on; the interrupt enables are
    /// cleared.
    pub fn reset(&mut self) {
        self.index = 0;
        let modes = SET | BINARY | HOURS_24 | 1;
        self.memory[usize::from(REGISTER_B)] &= modes;
        self.after_access();
    }

    /// The guest's time in nanoseconds since 1970.
    fn now(&self) -> i128 {
        let host = i128::try_from((self.clock)().as_nanos()).unwrap_or(i128::MAX);
        host.saturating_add(self.ahead)
    }

    fn seconds(&self) -> i64 {
        i64::try_from(self.now().div_euclid(NANOS_PER_SECOND)).unwrap_or(i64::MAX)
    }

    fn register_b(&self) -> u8 {
        self.memory[usize::from(REGISTER_B)]
    }

    /// The time registers now.
    fn time_registers(&self) -> [u8; 8] {
        self.held
            .unwrap_or_else(|| encode(Calendar::from_seconds(self.seconds()), self.register_b()))
    }

    fn set_time(&mut self, registers: [u8; 8], nanos: i128) {
        let seconds = decode(registers, self.register_b()).to_seconds();
        let wanted = i128::from(seconds) * NANOS_PER_SECOND + nanos;
        self.ahead += wanted - self.now();
        self.forget_flags();
    }

    fn read_register(&mut self) -> u8 {
        let stored = self.memory[usize::from(self.index)];
        match self.index {
            REGISTER_A => {
                let left = NANOS_PER_SECOND - self.now().rem_euclid(NANOS_PER_SECOND);
                let updating = self.held.is_none() && left <= UPDATE_NANOS;
                stored | if updating { UPDATE_IN_PROGRESS } else { 0 }
            }
            REGISTER_C => self.take_flags(),
            REGISTER_D => VALID,
            index => match TIME_REGISTERS.iter().position(|register| *register == index) {
                Some(at) => self.time_registers()[at],
                None => stored,
            },
        }
    }

    fn write_register(&mut self, value: u8) {
        match self.index {
            REGISTER_A => self.memory[usize::from(REGISTER_A)] = value & !UPDATE_IN_PROGRESS,
            REGISTER_B => self.write_register_b(value),
            REGISTER_C | REGISTER_D => {}
            index => match TIME_REGISTERS.iter().position(|register| *register == index) {
                Some(at) => self.write_time(at, value),
                None => self.memory[usize::from(index)] = value,
            },
        }
    }

    fn write_register_b(&mut self, value: u8) {
        let shown = self.time_registers();
        self.memory[usize::from(REGISTER_B)] = value;
        if value & SET == 0 {
            if let Some(registers) = self.held.take() {
                self.set_time(registers, NANOS_AFTER_SET);
            }
        } else if self.held.is_none() {
            self.held = Some(shown);
        }
    }

    fn write_time(&mut self, at: usize, value: u8) {
        match &mut self.held {
            Some(registers) => registers[at] = value,
            // Without SET a real clock may mangle the write; ours takes it at once.
            None => {
                let within_second = self.now().rem_euclid(NANOS_PER_SECOND);
                let mut registers = self.time_registers();
                registers[at] = value;
                self.set_time(registers, within_second);
            }
        }
    }
}

/// Register bytes of a time, in the modes of register B.
fn encode(time: Calendar, register_b: u8) -> [u8; 8] {
    let number = |value: u8| if register_b & BINARY != 0 { value } else { to_bcd(value) };
    let hour = if register_b & HOURS_24 != 0 {
        number(time.hour)
    } else {
        let hour = if time.hour.is_multiple_of(12) { 12 } else { time.hour % 12 };
        number(hour) | if time.hour >= 12 { PM } else { 0 }
    };
    [
        number(time.second),
        number(time.minute),
        hour,
        number(time.weekday),
        number(time.day),
        number(time.month),
        number(time.year),
        number(time.century),
    ]
}

/// The time that register bytes mean; the weekday follows from the date.
fn decode(registers: [u8; 8], register_b: u8) -> Calendar {
    let number = |value: u8| if register_b & BINARY != 0 { value } else { from_bcd(value) };
    let [second, minute, hour, weekday, day, month, year, century] = registers;
    let hour = if register_b & HOURS_24 != 0 {
        number(hour)
    } else {
        number(hour & !PM) % 12 + if hour & PM != 0 { 12 } else { 0 }
    };
    Calendar {
        second: number(second),
        minute: number(minute),
        hour,
        weekday: number(weekday),
        day: number(day),
        month: number(month),
        year: number(year),
        century: number(century),
    }
}

fn to_bcd(value: u8) -> u8 {
    ((value / 10 % 10) << 4) | (value % 10)
}

fn from_bcd(value: u8) -> u8 {
    (value >> 4) * 10 + (value & 0xf)
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data.iter_mut()) {
            // The index cannot be read back.
            *byte = if port == 1 { self.read_register() } else { 0xff };
        }
        self.after_access();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (port, byte) in (offset..).zip(data) {
            match port {
                0 => self.index = byte & INDEX_MASK,
                1 => self.write_register(*byte),
                _ => {}
            }
        }
        self.after_access();
    }
}

impl Migrate for Rtc {
    fn save(&self, out: &mut Sections) -> StateResult<()> {
        let seconds = self.ahead.div_euclid(NANOS_PER_SECOND);
        let nanos = self.ahead.rem_euclid(NANOS_PER_SECOND);
        let state = RtcState {
            index: self.index,
            ahead_seconds: i64::try_from(seconds).unwrap_or(MAX_AHEAD_SECONDS),
            ahead_nanos: u32::try_from(nanos).unwrap_or(0),
            held: Bytes(self.held.map_or_else(Vec::new, |held| held.to_vec())),
            flags_read_at: self.flags_read_at,
            memory: Bytes(self.memory.to_vec()),
        };
        out.save("rtc", &state)
    }

    fn restore(&mut self, from: &mut Sections) -> StateResult<()> {
        let state: RtcState = from.load("rtc")?;
        let bad = |what: &str| StateError::state(format!("saved clock: {what}"));
        let memory = <[u8; MEMORY_LEN]>::try_from(state.memory.0)
            .map_err(|memory| bad(&format!("{} bytes of memory, not 128", memory.len())))?;
        let setting = memory[usize::from(REGISTER_B)] & SET != 0;
        let held = match <[u8; 8]>::try_from(state.held.0) {
            Ok(held) if setting => Some(held),
            Err(none) if none.is_empty() && !setting => None,
            _ => return Err(bad("time registers do not fit to register B")),
        };
        if state.index > INDEX_MASK {
            return Err(bad("the index is out of range"));
        }
        if state.ahead_seconds.unsigned_abs() > MAX_AHEAD_SECONDS.unsigned_abs()
            || i128::from(state.ahead_nanos) >= NANOS_PER_SECOND
        {
            return Err(bad("the time is out of range"));
        }
        self.index = state.index;
        self.memory = memory;
        self.memory[usize::from(REGISTER_A)] &= !UPDATE_IN_PROGRESS;
        self.held = held;
        self.ahead =
            i128::from(state.ahead_seconds) * NANOS_PER_SECOND + i128::from(state.ahead_nanos);
        self.flags_read_at = state.flags_read_at;
        self.periodic_read_at = self.now();
        self.after_access();
        Ok(())
    }
}

#[cfg(test)]
#[path = "rtc_tests.rs"]
mod tests;
