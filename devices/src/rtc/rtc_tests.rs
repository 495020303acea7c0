use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// 2024-02-29 23:59:58 UTC.
const START: u64 = 1_709_251_198;

struct Rig {
    rtc: Rtc,
    micros: Arc<AtomicU64>,
}

struct NoLine;

impl IrqLine for NoLine {
    fn set_level(&self, _level: bool) {}
}

fn rig() -> Rig {
    let micros = Arc::new(AtomicU64::new(START * 1_000_000));
    let clock = Arc::clone(&micros);
    let time = move || Duration::from_micros(clock.load(Ordering::SeqCst));
    let rtc = Rtc::new(Arc::new(time), Arc::new(NoLine), Arc::new(|| {}));
    Rig { rtc, micros }
}

impl Rig {
    fn pass(&self, micros: u64) {
        self.micros.fetch_add(micros, Ordering::SeqCst);
    }

    fn read(&mut self, index: u8) -> u8 {
        self.rtc.write(0, &[index]);
        let mut data = [0];
        self.rtc.read(1, &mut data);
        data[0]
    }

    fn write(&mut self, index: u8, value: u8) {
        self.rtc.write(0, &[index]);
        self.rtc.write(1, &[value]);
    }

    /// Century, year, month, day, hour, minute, second.
    fn time(&mut self) -> [u8; 7] {
        [0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00].map(|index| self.read(index))
    }

    fn set_time(&mut self, time: [u8; 7]) {
        for (index, value) in [0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00].into_iter().zip(time) {
            self.write(index, value);
        }
    }
}

#[test]
fn shows_the_host_time_in_bcd() {
    let mut rig = rig();
    assert_eq!(rig.time(), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58]);
    assert_eq!(rig.read(0x06), 5, "a Thursday");
    rig.pass(2_000_000);
    assert_eq!(rig.time(), [0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00]);
}

#[test]
fn shows_binary_and_12_hours_when_asked() {
    let mut rig = rig();
    rig.write(0x0b, BINARY | HOURS_24);
    assert_eq!(rig.time(), [20, 24, 2, 29, 23, 59, 58]);
    rig.write(0x0b, 0);
    assert_eq!(rig.read(0x04), 0x91, "11 pm");
    rig.pass(2_000_000);
    assert_eq!(rig.read(0x04), 0x12, "12 am");
    rig.pass(12 * 3600 * 1_000_000);
    assert_eq!(rig.read(0x04), 0x92, "12 pm");
}

/// What Linux's `mc146818_get_time` and `cmos_do_probe` look at.
#[test]
fn looks_alive_to_linux() {
    let mut rig = rig();
    assert_eq!(rig.read(0x0d), 0x80);
    assert_eq!(rig.read(0x0a), 0x26);
    assert_eq!(rig.read(0x0b), 0x02);
    rig.pass(997_771);
    assert_eq!(rig.read(0x0a), 0x26);
    rig.pass(1);
    assert_eq!(rig.read(0x0a), 0xa6, "an update is in progress");
    rig.pass(2_227);
    assert_eq!(rig.read(0x0a), 0xa6);
    rig.pass(1);
    assert_eq!(rig.read(0x0a), 0x26);
    assert_eq!(rig.read(0x00), 0x59);
}

/// The order in which Linux's `mc146818_set_time` sets the clock.
#[test]
fn the_guest_sets_the_clock() {
    let mut rig = rig();
    rig.write(0x0b, SET | HOURS_24);
    rig.write(0x0a, 0x66);
    rig.pass(5_000_000);
    assert_eq!(rig.read(0x00), 0x58, "time stands still");
    rig.pass(999_000);
    assert_eq!(rig.read(0x0a), 0x66, "and is not updated");
    let wanted = [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59];
    rig.set_time(wanted);
    rig.pass(3_000_000);
    assert_eq!(rig.time(), wanted);
    rig.write(0x0b, HOURS_24);
    rig.write(0x0a, 0x26);
    rig.pass(499_999);
    assert_eq!(rig.time(), wanted);
    rig.pass(1);
    assert_eq!(rig.time(), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]);
}

#[test]
fn a_write_without_set_counts_at_once() {
    let mut rig = rig();
    rig.pass(250_000);
    rig.write(0x09, 0x30);
    rig.write(0x04, 0x05);
    // 2030 has no 29th of February.
    assert_eq!(rig.time(), [0x20, 0x30, 0x03, 0x01, 0x05, 0x59, 0x58]);
    rig.pass(750_000);
    assert_eq!(rig.read(0x00), 0x59, "the second was not cut");
}

#[test]
fn register_c_tells_of_updates_once() {
    // The periodic flag comes and goes whether it is enabled or not.
    let of_updates = UPDATE_ENDED | INTERRUPT;
    let mut rig = rig();
    assert_eq!(rig.read(0x0c) & of_updates, 0);
    rig.pass(1_000_000);
    assert_eq!(rig.read(0x0c) & of_updates, UPDATE_ENDED);
    assert_eq!(rig.read(0x0c) & of_updates, 0);
    rig.write(0x0b, HOURS_24 | UPDATE_INTERRUPT);
    rig.pass(3_000_000);
    assert_eq!(rig.read(0x0c) & of_updates, UPDATE_ENDED | INTERRUPT);
}

#[test]
fn memory_is_memory_and_fixed_registers_are_fixed() {
    let mut rig = rig();
    for index in 0x0e..0x80 {
        if index != RTC_CENTURY {
            rig.write(index, index ^ 0x55);
        }
    }
    for index in 0x0e..0x80 {
        if index != RTC_CENTURY {
            assert_eq!(rig.read(index), index ^ 0x55);
        }
    }
    rig.write(0x0c, 0xff);
    rig.write(0x0d, 0);
    assert_eq!([rig.read(0x0c), rig.read(0x0d)], [0, 0x80]);
    rig.write(0x8f, 1);
    assert_eq!(rig.read(0x0f), 1, "bit 7 of the index is the NMI's");
    let mut data = [0; 2];
    rig.rtc.read(0, &mut data);
    assert_eq!(data, [0xff, 1], "a word access is both ports");
}

#[test]
fn state_goes_elsewhere() {
    let mut source = rig();
    source.write(0x32, 0x19);
    source.write(0x40, 0xaa);
    source.write(0x0a, 0x2f);
    source.rtc.write(0, &[0x40]);
    let mut sections = Sections::new();
    source.rtc.save(&mut sections).unwrap();
    let mut dest = rig();
    dest.pass(10_000_000);
    dest.rtc.restore(&mut sections).unwrap();
    sections.finish().unwrap();
    let mut data = [0];
    dest.rtc.read(1, &mut data);
    assert_eq!(data, [0xaa], "the index");
    // The host's clock has gone on in the meantime, and so has the guest's. 1924 was a leap year
    // too.
    assert_eq!(dest.time(), [0x19, 0x24, 0x03, 0x01, 0x00, 0x00, 0x08]);
    assert_eq!(dest.read(0x0a), 0x2f);
}

#[test]
fn a_clock_that_is_being_set_goes_on_being_set() {
    let mut source = rig();
    source.write(0x0b, SET | HOURS_24);
    source.write(0x02, 0x30);
    let mut sections = Sections::new();
    source.rtc.save(&mut sections).unwrap();
    let mut dest = rig();
    dest.pass(100_000_000);
    dest.rtc.restore(&mut sections).unwrap();
    dest.write(0x0b, HOURS_24);
    assert_eq!(dest.time(), [0x20, 0x24, 0x02, 0x29, 0x23, 0x30, 0x58]);
}

fn good_state() -> RtcState {
    RtcState {
        index: 0,
        ahead_seconds: -5,
        ahead_nanos: 1,
        held: Bytes(vec![]),
        flags_read_at: 0,
        memory: Bytes(vec![0; 128]),
    }
}

#[test]
fn restore_refuses_what_no_clock_has() {
    let restore = |state: &RtcState| {
        let mut sections = Sections::new();
        sections.save("rtc", state).unwrap();
        rig().rtc.restore(&mut sections)
    };
    restore(&good_state()).unwrap();
    restore(&RtcState { index: 128, ..good_state() }).unwrap_err();
    restore(&RtcState { ahead_seconds: i64::MIN, ..good_state() }).unwrap_err();
    restore(&RtcState { ahead_nanos: 1_000_000_000, ..good_state() }).unwrap_err();
    restore(&RtcState { held: Bytes(vec![0; 8]), ..good_state() }).unwrap_err();
    restore(&RtcState { held: Bytes(vec![0; 7]), ..good_state() }).unwrap_err();
    restore(&RtcState { memory: Bytes(vec![0; 127]), ..good_state() }).unwrap_err();
    let mut setting = good_state();
    setting.memory.0[0x0b] = SET;
    restore(&setting).unwrap_err();
    restore(&RtcState { held: Bytes(vec![0xff; 8]), ..setting }).unwrap();
}

#[test]
fn golden_state() {
    let sample = RtcState { held: Bytes(vec![1; 8]), ..good_state() };
    crate::check_golden(&sample);
}

proptest! {
    /// Whatever a guest does with the clock, it neither panics nor leaves the calendar.
    #[test]
    fn any_access_is_harmless(
        accesses in prop::collection::vec(
            (0u64..2, prop::collection::vec(any::<u8>(), 0..6), 0u64..10_000_000_000),
            1..100,
        ),
    ) {
        let mut rig = rig();
        for (offset, mut data, micros) in accesses {
            rig.rtc.write(offset, &data);
            rig.rtc.read(offset, &mut data);
            rig.pass(micros);
            let mut sections = Sections::new();
            rig.rtc.save(&mut sections).unwrap();
            rig.rtc.restore(&mut sections).unwrap();
        }
        rig.write(0x0b, HOURS_24 | BINARY);
        let [century, year, month, day, hour, minute, second] = rig.time();
        prop_assert!(century < 100 && year < 100 && (1..13).contains(&month));
        prop_assert!((1..32).contains(&day) && hour < 24 && minute < 60 && second < 60);
    }
}
