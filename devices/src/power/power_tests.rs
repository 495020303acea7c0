use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Wire(AtomicBool);

impl IrqLine for Wire {
    fn set_level(&self, level: bool) {
        self.0.store(level, Ordering::SeqCst);
    }
}

struct Rig {
    power: AcpiPower,
    sci: Arc<Wire>,
    nanos: Arc<AtomicU64>,
    events: Arc<Mutex<Vec<PowerEvent>>>,
}

fn rig() -> Rig {
    let sci = Arc::new(Wire::default());
    let nanos = Arc::new(AtomicU64::new(123_456_789));
    let events = Arc::new(Mutex::new(Vec::new()));
    let (clock, log) = (Arc::clone(&nanos), Arc::clone(&events));
    let power = AcpiPower::new(
        Arc::clone(&sci) as Arc<dyn IrqLine>,
        Arc::new(move || Duration::from_nanos(clock.load(Ordering::SeqCst))),
        Arc::new(move |event| log.lock().unwrap().push(event)),
    );
    Rig { power, sci, nanos, events }
}

impl Rig {
    fn inw(&mut self, port: u16) -> u16 {
        let mut data = [0; 2];
        self.power.read(u64::from(port) - POWER_PORTS.base, &mut data);
        u16::from_le_bytes(data)
    }

    fn outw(&mut self, port: u16, value: u16) {
        self.power.write(u64::from(port) - POWER_PORTS.base, &value.to_le_bytes());
    }

    fn timer(&mut self) -> u32 {
        let mut data = [0; 4];
        self.power.read(u64::from(PM_TIMER_PORT) - POWER_PORTS.base, &mut data);
        u32::from_le_bytes(data)
    }

    fn sci(&self) -> bool {
        self.sci.0.load(Ordering::SeqCst)
    }
}

const STATUS: u16 = PM1A_EVENT_PORT;
const ENABLE: u16 = PM1A_EVENT_PORT + PM1A_EVENT_LEN as u16 / 2;
const CONTROL: u16 = PM1A_CONTROL_PORT;

/// As ACPICA enters S5: the type first, then type and enable together.
#[test]
fn sleep_type_5_is_power_off() {
    let mut rig = rig();
    assert_eq!(rig.inw(CONTROL), SCI_ENABLE, "ACPI mode from the start");
    let s5 = u16::from(SLEEP_TYPE_S5) << 10;
    rig.outw(CONTROL, s5);
    assert!(rig.events.lock().unwrap().is_empty());
    rig.outw(CONTROL, s5 | SLEEP_ENABLE);
    assert_eq!(*rig.events.lock().unwrap(), [PowerEvent::PowerOff]);
    assert_eq!(rig.inw(CONTROL), s5 | SCI_ENABLE, "the enable bit reads as zero");
    // Another sleep state than S5 does not exist.
    rig.outw(CONTROL, 1 << 10 | SLEEP_ENABLE);
    assert_eq!(rig.events.lock().unwrap().len(), 1);
}

#[test]
fn power_off_works_byte_by_byte() {
    let mut rig = rig();
    rig.power.write(5, &[SLEEP_TYPE_S5 << 2 | 1 << 5]);
    assert_eq!(*rig.events.lock().unwrap(), [PowerEvent::PowerOff]);
}

#[test]
fn the_power_button_raises_the_sci_until_it_is_acknowledged() {
    let mut rig = rig();
    rig.outw(ENABLE, POWER_BUTTON);
    assert_eq!(rig.inw(ENABLE), POWER_BUTTON);
    assert!(!rig.sci());
    assert!(rig.power.press_power_button());
    assert!(rig.sci());
    assert_eq!(rig.inw(STATUS), POWER_BUTTON);
    rig.outw(STATUS, 0);
    assert!(rig.sci(), "writing zeros acknowledges nothing");
    rig.outw(STATUS, POWER_BUTTON);
    assert!(!rig.sci());
    assert_eq!(rig.inw(STATUS), 0);
}

#[test]
fn a_press_before_the_guest_listens_is_kept() {
    let mut rig = rig();
    assert!(!rig.power.press_power_button());
    assert!(!rig.sci());
    rig.outw(ENABLE, POWER_BUTTON);
    assert!(rig.sci());
}

#[test]
fn the_timer_counts_at_its_frequency_in_24_bits() {
    let mut rig = rig();
    assert_eq!(rig.timer(), 0);
    rig.nanos.fetch_add(1_000_000_000, Ordering::SeqCst);
    assert!(rig.timer().abs_diff(3_579_545) <= 1);
    assert_eq!(rig.inw(STATUS), 0);
    rig.nanos.fetch_add(2_000_000_000, Ordering::SeqCst);
    assert_eq!(rig.inw(STATUS), TIMER, "the highest bit changed");
    rig.outw(STATUS, TIMER);
    assert_eq!(rig.inw(STATUS), 0);
    rig.nanos.fetch_add(2_000_000_000, Ordering::SeqCst);
    assert!(rig.timer().abs_diff(5 * 3_579_545 - (1 << 24)) <= 1, "it wraps");
    assert_eq!(rig.inw(STATUS), TIMER);
}

#[test]
fn state_goes_elsewhere() {
    let mut source = rig();
    source.outw(ENABLE, POWER_BUTTON | TIMER);
    source.outw(CONTROL, 3 << 10);
    source.power.press_power_button();
    source.nanos.fetch_add(4_000_000_000, Ordering::SeqCst);
    let mut sections = Sections::new();
    source.power.save(&mut sections).unwrap();
    let mut dest = rig();
    dest.nanos.store(1, Ordering::SeqCst);
    dest.power.restore(&mut sections).unwrap();
    sections.finish().unwrap();
    assert!(dest.sci());
    assert_eq!(dest.inw(STATUS), POWER_BUTTON | TIMER);
    assert_eq!(dest.inw(ENABLE), POWER_BUTTON | TIMER);
    assert_eq!(dest.inw(CONTROL), 3 << 10 | SCI_ENABLE);
    let saved_at = source.timer();
    assert_eq!(dest.timer(), saved_at);
    dest.outw(STATUS, TIMER);
    assert_eq!(dest.inw(STATUS), POWER_BUTTON);
}

fn good_state() -> PowerState {
    PowerState { status: 0, enable: 0, control: SCI_ENABLE, timer_ticks: u64::MAX }
}

#[test]
fn restore_refuses_registers_that_cannot_be() {
    let restore = |state: PowerState| {
        let mut sections = Sections::new();
        sections.save("power", &state).unwrap();
        let mut rig = rig();
        rig.power.restore(&mut sections).map(|()| rig)
    };
    let mut restored = restore(good_state()).unwrap();
    assert_eq!(restored.inw(STATUS), 0, "the timer's past does not count");
    restore(PowerState { status: 1 << 15, ..good_state() }).err().unwrap();
    restore(PowerState { enable: 2, ..good_state() }).err().unwrap();
    restore(PowerState { control: 0, ..good_state() }).err().unwrap();
    restore(PowerState { control: SCI_ENABLE | SLEEP_ENABLE, ..good_state() }).err().unwrap();
}

#[test]
fn golden_state() {
    crate::check_golden(&good_state());
}

proptest! {
    /// The SCI is high exactly while an enabled status bit is set, whatever a guest does.
    #[test]
    fn any_access_is_harmless(
        accesses in prop::collection::vec(
            (
                0u64..16,
                prop::collection::vec(any::<u8>(), 0..20),
                any::<bool>(),
                0u64..5_000_000_000,
            ),
            1..100,
        ),
    ) {
        let mut rig = rig();
        for (offset, mut data, press, nanos) in accesses {
            rig.power.write(offset, &data);
            if press {
                rig.power.press_power_button();
            }
            prop_assert_eq!(rig.sci(), rig.power.status & rig.power.enable != 0);
            rig.power.read(offset, &mut data);
            rig.nanos.fetch_add(nanos, Ordering::SeqCst);
            let mut sections = Sections::new();
            rig.power.save(&mut sections).unwrap();
            rig.power.restore(&mut sections).unwrap();
        }
        let s5 = rig.events.lock().unwrap().iter().all(|event| *event == PowerEvent::PowerOff);
        prop_assert!(s5);
    }
}
