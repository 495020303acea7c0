use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::*;
use crate::bus::BusDevice;
use crate::irq::IrqLine;
use crate::rtc::{REGISTER_B, REGISTER_C, SET};

/// 2024-02-29 23:59:58 UTC.
const START: u64 = 1_709_251_198;

#[derive(Default)]
struct Line(AtomicBool);

impl IrqLine for Line {
    fn set_level(&self, level: bool) {
        self.0.store(level, Ordering::SeqCst);
    }
}

struct Rig {
    rtc: Rtc,
    nanos: Arc<AtomicU64>,
    line: Arc<Line>,
    told: Arc<AtomicUsize>,
}

impl Rig {
    fn new() -> Self {
        let nanos = Arc::new(AtomicU64::new(START * 1_000_000_000 + 250_000_000));
        let (clock, line) = (Arc::clone(&nanos), Arc::new(Line::default()));
        let told = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&told);
        let rtc = Rtc::new(
            Arc::new(move || Duration::from_nanos(clock.load(Ordering::SeqCst))),
            Arc::clone(&line) as Arc<dyn IrqLine>,
            Arc::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            }),
        );
        Self { rtc, nanos, line, told }
    }

    fn read(&mut self, index: u8) -> u8 {
        BusDevice::write(&mut self.rtc, 0, &[index]);
        let mut data = [0];
        BusDevice::read(&mut self.rtc, 1, &mut data);
        data[0]
    }

    fn write(&mut self, index: u8, value: u8) {
        BusDevice::write(&mut self.rtc, 0, &[index]);
        BusDevice::write(&mut self.rtc, 1, &[value]);
    }

    fn interrupts(&self) -> bool {
        self.line.0.load(Ordering::SeqCst)
    }

    /// Lets the time pass until something is due; how much that was.
    fn wait(&mut self) -> Duration {
        let wait = self.rtc.tick().expect("something is due");
        assert!(!self.interrupts());
        let nanos = u64::try_from(wait.as_nanos()).unwrap();
        self.nanos.fetch_add(nanos, Ordering::SeqCst);
        self.rtc.tick();
        wait
    }
}

#[test]
fn an_idle_clock_waits_for_nothing() {
    let mut rig = Rig::new();
    assert_eq!(rig.rtc.tick(), None);
    rig.read(REGISTER_C);
    assert_eq!(rig.told.load(Ordering::SeqCst), 0);
}

#[test]
fn each_second_interrupts_until_it_is_seen() {
    let mut rig = Rig::new();
    rig.write(REGISTER_B, HOURS_24 | UPDATE_INTERRUPT);
    assert_eq!(rig.wait(), Duration::from_millis(750));
    assert!(rig.interrupts());
    assert_eq!(rig.rtc.tick(), None, "it is not seen yet");
    assert_eq!(rig.read(REGISTER_C) & (INTERRUPT | UPDATE_ENDED), INTERRUPT | UPDATE_ENDED);
    assert!(!rig.interrupts());
    assert_eq!(rig.wait(), Duration::from_secs(1));
    assert!(rig.interrupts());
}

#[test]
fn the_alarm_rings_when_all_its_fields_match() {
    // Second, minute and hour of the alarm, and how many seconds after the start that is.
    let alarms = [
        ([0x59, 0x59, 0x23], 1),
        ([0x05, ANY, ANY], 7),
        ([0x00, 0x10, ANY], 602),
        ([0x00, 0x00, 0x12], 2 + 12 * 3600),
        ([0x57, 0x59, 0x23], 86_399),
        ([ANY, ANY, ANY], 1),
    ];
    for (alarm, seconds) in alarms {
        let mut rig = Rig::new();
        for (index, value) in [1, 3, 5].into_iter().zip(alarm) {
            rig.write(index, value);
        }
        rig.write(REGISTER_B, HOURS_24 | ALARM);
        assert_eq!(rig.wait(), Duration::from_millis(seconds * 1000 - 250), "{alarm:x?}");
        assert!(rig.interrupts());
        assert_eq!(rig.read(REGISTER_C) & (INTERRUPT | ALARM), INTERRUPT | ALARM);
        assert!(!rig.interrupts());
    }
}

#[test]
fn an_alarm_in_the_other_modes_rings_too_and_an_impossible_one_never() {
    for (mode, hour, rings) in
        [(BINARY | HOURS_24, 23, true), (0, 0x91, true), (HOURS_24, 0x75, false)]
    {
        let mut rig = Rig::new();
        rig.write(REGISTER_B, mode | ALARM);
        let minute = if mode & BINARY != 0 { 59 } else { 0x59 };
        for (index, value) in [(1, ANY), (3, minute), (5, hour)] {
            rig.write(index, value);
        }
        assert_eq!(rig.rtc.tick().is_some(), rings, "{mode} {hour:#x}");
    }
}

#[test]
fn the_periodic_interrupt_has_its_rate() {
    for (rate, hertz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
        let mut rig = Rig::new();
        rig.write(REGISTER_A, 0x20 | rate);
        rig.write(REGISTER_B, HOURS_24 | PERIODIC);
        let mut passed = Duration::ZERO;
        rig.read(REGISTER_C);
        rig.wait();
        for _ in 0..hertz {
            assert_eq!(rig.read(REGISTER_C) & (INTERRUPT | PERIODIC), INTERRUPT | PERIODIC);
            passed += rig.wait();
        }
        assert!(passed.abs_diff(Duration::from_secs(1)) < Duration::from_micros(1), "{passed:?}");
    }
    let mut rig = Rig::new();
    rig.write(REGISTER_A, 0x20);
    rig.write(REGISTER_B, HOURS_24 | PERIODIC);
    assert_eq!(rig.rtc.tick(), None, "no rate");
}

/// However often the guest writes, the owner is told once before it looks.
#[test]
fn the_owner_is_told_once() {
    let mut rig = Rig::new();
    for second in 0..100 {
        rig.write(1, second);
        rig.write(REGISTER_B, HOURS_24 | ALARM);
    }
    assert_eq!(rig.told.load(Ordering::SeqCst), 1);
    rig.rtc.tick();
    rig.read(REGISTER_C);
    assert_eq!(rig.told.load(Ordering::SeqCst), 2);
}

#[test]
fn a_clock_that_is_being_set_does_not_interrupt() {
    let mut rig = Rig::new();
    rig.write(REGISTER_B, HOURS_24 | UPDATE_INTERRUPT | SET);
    assert_eq!(rig.rtc.tick(), None);
    rig.write(REGISTER_B, HOURS_24 | UPDATE_INTERRUPT);
    assert_eq!(rig.wait(), Duration::from_millis(500), "the first second is half as long");
    assert!(rig.interrupts());
    rig.rtc.reset();
    assert!(!rig.interrupts());
}
