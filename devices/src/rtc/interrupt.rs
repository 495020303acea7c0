//! What the clock interrupts for: its alarm, the end of each update, a periodic rate.
//!
//! Nothing here runs by itself. What is pending follows from the time and from when register C was last read;
//! whoever owns the clock asks when that changes next ([`Rtc::tick`]) and comes back then.

use std::time::Duration;

use super::{
    BINARY, HOURS_24, INTERRUPT, NANOS_PER_SECOND, PM, REGISTER_A, Rtc, UPDATE_ENDED,
    UPDATE_INTERRUPT, from_bcd,
};

/// Register B enables, and register C shows, at the same bits.
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const ENABLES: u8 = PERIODIC | ALARM | UPDATE_INTERRUPT;
/// Alarm registers: second, minute, hour.
const ALARM_REGISTERS: [usize; 3] = [0x01, 0x03, 0x05];
/// Both highest bits of an alarm register: any value will do.
const ANY: u8 = 0b11 << 6;
/// Ticks of the time base in a second.
const TIME_BASE: i128 = 32_768;

impl Rtc {
    /// Drives the interrupt line; says after what time to do so again, unless the clock tells earlier that
    /// something changed. `None`: not before it does.
    pub fn tick(&mut self) -> Option<Duration> {
        self.told = false;
        self.drive();
        self.due()
    }

    /// Drives the line after an access, and tells the owner when that may have changed what is due.
    pub(super) fn after_access(&mut self) {
        self.drive();
        if self.register_b() & ENABLES != 0 && !std::mem::replace(&mut self.told, true) {
            (self.changed)();
        }
    }

    fn drive(&mut self) {
        let level = self.pending() != 0;
        if std::mem::replace(&mut self.level, level) != level {
            self.line.set_level(level);
        }
    }

    fn pending(&self) -> u8 {
        self.flags() & self.register_b() & ENABLES
    }

    /// What has happened since register C was last read, whether it is enabled or not.
    fn flags(&self) -> u8 {
        let now = self.seconds();
        let updated = self.held.is_none() && now > self.flags_read_at;
        let rang = updated && self.next_alarm().is_some_and(|alarm| alarm <= now);
        let beats = |shift| beat(self.now(), shift) > beat(self.periodic_read_at, shift);
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        flag(updated, UPDATE_ENDED)
            | flag(rang, ALARM)
            | flag(self.periodic_shift().is_some_and(beats), PERIODIC)
    }

    /// Register C: reading clears it.
    pub(super) fn take_flags(&mut self) -> u8 {
        let flags = self.flags();
        let any = if self.pending() != 0 { INTERRUPT } else { 0 };
        self.forget_flags();
        flags | any
    }

    /// From now on only what is to come counts.
    pub(super) fn forget_flags(&mut self) {
        self.flags_read_at = self.seconds();
        self.periodic_read_at = self.now();
    }

    /// How long until something that is enabled happens. Nothing more does before register C is read.
    fn due(&self) -> Option<Duration> {
        if self.pending() != 0 {
            return None;
        }
        let enabled = |bit: u8| self.register_b() & bit != 0;
        let second = |at: i64| i128::from(at) * NANOS_PER_SECOND;
        let runs = self.held.is_none();
        let next_second = self.seconds().max(self.flags_read_at).saturating_add(1);
        let update = (runs && enabled(UPDATE_INTERRUPT)).then(|| second(next_second));
        let alarm = self.next_alarm().filter(|_| runs && enabled(ALARM)).map(second);
        let periodic = self.periodic_shift().filter(|_| enabled(PERIODIC)).map(|shift| {
            // The first moment of the next beat, rounded up so as not to come just before it.
            let ticks = (beat(self.now(), shift) + 1) << shift;
            (ticks * NANOS_PER_SECOND).div_euclid(TIME_BASE) + 1
        });
        let first = [update, alarm, periodic].into_iter().flatten().min()?;
        let wait = u64::try_from((first - self.now()).max(0)).unwrap_or(u64::MAX);
        Some(Duration::from_nanos(wait))
    }

    /// The first second after the last read of register C that the alarm registers mean.
    fn next_alarm(&self) -> Option<i64> {
        let [second, minute, hour] = ALARM_REGISTERS.map(|at| self.memory[at]);
        let mode = self.register_b();
        let number = |value: u8| if mode & BINARY != 0 { value } else { from_bcd(value) };
        let field = |value: u8| (value & ANY != ANY).then(|| i64::from(number(value)));
        let hour = (hour & ANY != ANY).then(|| {
            if mode & HOURS_24 != 0 {
                return i64::from(number(hour));
            }
            i64::from(number(hour & !PM)) % 12 + if hour & PM != 0 { 12 } else { 0 }
        });
        let wanted = [(hour, 3600, 24), (field(minute), 60, 60), (field(second), 1, 60)];
        let possible = wanted.iter().all(|(value, _, count)| value.is_none_or(|v| v < *count));
        let mut at = self.flags_read_at.checked_add(1).filter(|_| possible)?;
        // The coarsest field that is wrong moves on to its next value: at most 24 + 60 + 60 steps.
        while let Some((_, unit, _)) = wanted.iter().find(|(value, unit, count)| {
            value.is_some_and(|value| at.div_euclid(*unit).rem_euclid(*count) != value)
        }) {
            at = at.div_euclid(*unit).checked_add(1)?.checked_mul(*unit)?;
        }
        Some(at)
    }

    /// The periodic rate as a power of two of the time base's ticks (register A, rate selection).
    fn periodic_shift(&self) -> Option<u32> {
        match u32::from(self.memory[usize::from(REGISTER_A)] & 0xf) {
            0 => None,
            // The two fastest are not: they are those of 8 and 9.
            rate @ 1..=2 => Some(rate + 6),
            rate => Some(rate - 1),
        }
    }
}

/// Beats of the periodic rate until `time`.
fn beat(time: i128, shift: u32) -> i128 {
    (time * TIME_BASE).div_euclid(NANOS_PER_SECOND) >> shift
}

#[cfg(test)]
#[path = "interrupt_tests.rs"]
mod tests;
