#![expect(clippy::cast_possible_truncation, reason = "tests count small things")]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use ferry_migration::Result as StateResult;
use ferry_migration::state::{Migrate, Sections};
use proptest::prelude::*;

use super::interrupt::NO_VECTOR;
use super::*;
use crate::irq::MsiMessage;
use crate::virtio::testing::{Driver, memory};

const COMMON: u64 = 0;
const FEATURES: u64 = 1 << 5 | 1 << 9;

/// What the device and the machine were asked to do, in order.
type Log = Arc<Mutex<Vec<String>>>;

/// The stops that have not ended yet.
type Stops = Arc<Mutex<Vec<Box<dyn FnOnce() + Send>>>>;

fn note(log: &Log, what: impl Into<String>) {
    log.lock().unwrap().push(what.into());
}

struct Machine(Log);

impl MsiSink for Machine {
    fn route(&self, vector: u16, message: Option<MsiMessage>) {
        note(&self.0, format!("route {vector} {}", message.is_some()));
    }
    fn fire(&self, vector: u16) {
        note(&self.0, format!("msi {vector}"));
    }
}

impl IrqLine for Machine {
    fn set_level(&self, level: bool) {
        if level {
            note(&self.0, "intx");
        }
    }
}

impl NotifyBinder for Machine {
    fn bind(&self, addr: u64, _len: u32, _fd: &EventFd) -> io::Result<()> {
        note(&self.0, format!("bind {addr:#x}"));
        Ok(())
    }
    fn unbind(&self, addr: u64, _len: u32, _fd: &EventFd) -> io::Result<()> {
        note(&self.0, format!("unbind {addr:#x}"));
        Ok(())
    }
}

/// A device with two queues and eight bytes of configuration.
struct Fake {
    log: Log,
    config: [u8; 8],
    link: Option<DeviceLink>,
    /// Whether a stop ends at once.
    prompt: Arc<AtomicBool>,
    stopping: Stops,
}

impl VirtioDevice for Fake {
    fn device_type(&self) -> u16 {
        2
    }
    fn pci_class(&self) -> [u8; 3] {
        [1, 0, 0]
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![8, 16]
    }
    fn attach(&mut self, link: DeviceLink) {
        self.link = Some(link);
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.config.get(at as usize).copied().unwrap_or(0);
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let Some(slot) = self.config.get_mut(at as usize) {
                *slot = *byte;
            }
        }
    }
    fn negotiated(&mut self, features: u64) {
        note(&self.log, format!("negotiated {features:#x}"));
    }
    fn reset(&mut self) {
        note(&self.log, "reset");
        self.config = [0; 8];
    }
    fn start(&mut self, features: u64, queues: Vec<QueueSetup>) {
        let list: Vec<_> = queues
            .iter()
            .map(|q| (q.index, q.ring.size, q.ring.next_avail, q.ring.next_used))
            .collect();
        note(&self.log, format!("start {features:#x} {list:?}"));
    }
    fn stop(&mut self, done: Box<dyn FnOnce() + Send>) {
        note(&self.log, "stop");
        if self.prompt.load(Ordering::SeqCst) {
            done();
        } else {
            self.stopping.lock().unwrap().push(done);
        }
    }
    fn quiesce(&mut self) -> Pending<Vec<QueuePosition>> {
        note(&self.log, "quiesce");
        Box::pin(async { vec![QueuePosition { index: 1, next_avail: 5, next_used: 5 }] })
    }
    fn resume(&mut self) {
        note(&self.log, "resume");
    }
    fn save(&self, _instance: &str, _out: &mut Sections) -> StateResult<()> {
        Ok(())
    }
    fn restore(
        &mut self,
        _instance: &str,
        _from: &mut Sections,
        features: u64,
        queues: &[QueueSetup],
    ) -> StateResult<()> {
        note(&self.log, format!("restore {features:#x} {}", queues.len()));
        Ok(())
    }
}

struct Rig {
    log: Log,
    memory: GuestMemory,
    prompt: Arc<AtomicBool>,
    stopping: Stops,
    device: Arc<Mutex<VirtioPci>>,
}

impl Rig {
    fn new() -> Self {
        let (log, memory) = (Log::default(), memory());
        let prompt = Arc::new(AtomicBool::new(true));
        let stopping = Stops::default();
        let fake = Fake {
            log: Arc::clone(&log),
            config: [0; 8],
            link: None,
            prompt: Arc::clone(&prompt),
            stopping: Arc::clone(&stopping),
        };
        let machine = Arc::new(Machine(Arc::clone(&log)));
        let resources = VirtioPciResources {
            memory: memory.clone(),
            msi: machine.clone(),
            line: machine.clone(),
            gsi: 11,
            binder: machine,
        };
        let device = VirtioPci::new("disk0", Box::new(fake), resources).unwrap();
        Self { log, memory, prompt, stopping, device }
    }

    fn said(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.device.lock().unwrap().bar_read(BAR, offset, &mut data);
        data
    }

    fn read16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    fn read32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.device.lock().unwrap().bar_write(BAR, offset, data);
    }

    fn write16(&self, offset: u64, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    fn write32(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn status(&self) -> u8 {
        self.read::<1>(COMMON + 0x14)[0]
    }

    fn set_status(&self, value: u8) {
        self.write(COMMON + 0x14, &[value]);
    }

    fn accept(&self, features: u64) {
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write32(0x08, select);
            self.write32(0x0c, half as u32);
        }
    }

    fn set_queue(&self, index: u16, driver: &Driver) {
        self.write16(0x16, index);
        self.write16(0x18, driver.size);
        for (register, value) in [(0x20, driver.desc), (0x28, driver.avail), (0x30, driver.used)] {
            self.write32(register, value as u32);
            self.write32(register + 4, (value >> 32) as u32);
        }
        self.write16(0x1c, 1);
    }

    /// Brings the device up as a driver does, with queue 1 of 4 entries.
    fn start(&self) {
        self.set_status(0);
        self.set_status(1);
        self.set_status(3);
        self.accept(features::VERSION_1 | 1 << 9);
        self.set_status(11);
        assert_eq!(self.status(), 11);
        self.set_queue(1, &Driver::new(&self.memory, 0x1000, 4, false));
        self.set_status(15);
    }

    fn enable_msix(&self) {
        let mut device = self.device.lock().unwrap();
        let at = capability_at(&device, 0x11, 0);
        let _change = device.config_write(at + 2, &0x8000u16.to_le_bytes());
        for vector in 0..3u64 {
            device.bar_write(BAR, MSIX_TABLE + vector * 16 + 12, &0u32.to_le_bytes());
        }
    }
}

/// The nth capability with this ID.
fn capability_at(device: &VirtioPci, id: u8, skip: usize) -> u16 {
    let byte = |at: u16| {
        let mut byte = [0];
        device.config().read(at, &mut byte);
        byte[0]
    };
    let mut at = byte(0x34);
    let mut found = Vec::new();
    while at != 0 {
        if byte(u16::from(at)) == id {
            found.push(u16::from(at));
        }
        at = byte(u16::from(at) + 1);
    }
    found[skip]
}

fn now<T>(future: Pending<T>) -> T {
    let mut future = future;
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut cx) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("is not done at once"),
    }
}

#[test]
fn a_driver_finds_identity_and_all_structures() {
    let rig = Rig::new();
    let device = rig.device.lock().unwrap();
    let mut header = [0; 12];
    device.config().read(0, &mut header);
    assert_eq!(header[..4], [0xf4, 0x1a, 0x42, 0x10]);
    assert_eq!(header[8..], [1, 0, 0, 1]);
    let mut found = Vec::new();
    for index in 0..5 {
        let at = capability_at(&device, 0x09, index);
        let mut cap = [0; 20];
        device.config().read(at, &mut cap);
        let word = |at: usize| u32::from_le_bytes(cap[at..at + 4].try_into().unwrap());
        found.push((cap[3], cap[2], cap[4], word(8), word(12)));
        if cap[3] == 2 {
            assert_eq!(word(16), NOTIFY_MULTIPLIER);
        }
    }
    assert_eq!(
        found,
        [
            (1, 16, 0, 0, 0x38),
            (3, 16, 0, 0x1000, 1),
            (4, 16, 0, 0x2000, 0x1000),
            (2, 20, 0, 0x3000, 8),
            (5, 20, 0, 0, 0),
        ]
    );
}

#[test]
fn features_are_offered_accepted_and_checked() {
    let rig = Rig::new();
    let offered = |select: u32| {
        rig.write32(0x00, select);
        rig.read32(0x04)
    };
    assert_eq!(offered(0), (FEATURES | features::TRANSPORT) as u32);
    assert_eq!(offered(1), 1);
    assert_eq!(offered(2), 0);
    for (accepted, good) in [
        (features::VERSION_1, true),
        (features::VERSION_1 | FEATURES, true),
        (FEATURES, false),
        (features::VERSION_1 | 1 << 6, false),
        (features::VERSION_1 | 1 << 63, false),
    ] {
        rig.set_status(0);
        rig.set_status(3);
        rig.accept(accepted);
        rig.set_status(11);
        assert_eq!(rig.status(), if good { 11 } else { 3 }, "{accepted:#x}");
        // Once agreed they stay.
        rig.accept(0);
        rig.write32(0x08, 1);
        assert_eq!(rig.read32(0x0c) == 0, !good);
    }
}

#[test]
fn queues_are_set_up_within_what_is_offered() {
    let rig = Rig::new();
    assert_eq!(rig.read16(0x12), 2);
    for (index, size) in [(0, 8), (1, 16), (2, 0), (u16::MAX, 0)] {
        rig.write16(0x16, index);
        assert_eq!((rig.read16(0x16), rig.read16(0x18)), (index, size));
        assert_eq!(rig.read16(0x1e), if size == 0 { 0 } else { index });
        assert_eq!(rig.read16(0x1c), 0);
    }
    rig.write16(0x16, 1);
    for (size, taken) in [(32, 16), (0, 16), (12, 16), (8, 8), (u16::MAX, 8)] {
        rig.write16(0x18, size);
        assert_eq!(rig.read16(0x18), taken, "{size}");
    }
    rig.write(0x20, &0x1122_3344_5566_7788u64.to_le_bytes());
    assert_eq!(u64::from_le_bytes(rig.read(0x20)), 0x1122_3344_5566_7788);
    rig.write32(0x24, 7);
    assert_eq!(u64::from_le_bytes(rig.read(0x20)), 0x0000_0007_5566_7788);
    rig.write16(0x1c, 1);
    rig.write16(0x18, 4);
    rig.write32(0x20, 0);
    rig.write16(0x1c, 0);
    assert_eq!((rig.read16(0x18), rig.read32(0x20), rig.read16(0x1c)), (8, 0x5566_7788, 1));
}

#[test]
fn vectors_exist_or_read_back_as_none() {
    let rig = Rig::new();
    for (offset, vector, taken) in [
        (0x10, 2, 2),
        (0x10, 3, NO_VECTOR),
        (0x1a, 0, 0),
        (0x1a, 0x800, NO_VECTOR),
        (0x1a, NO_VECTOR, NO_VECTOR),
    ] {
        rig.write16(offset, vector);
        assert_eq!(rig.read16(offset), taken);
    }
    rig.write16(0x10, 1);
    rig.set_status(0);
    assert_eq!(rig.read16(0x10), NO_VECTOR);
}

#[test]
fn driver_ok_starts_the_enabled_queues_once() {
    let rig = Rig::new();
    rig.start();
    rig.set_status(15);
    let agreed = features::VERSION_1 | 1 << 9;
    assert_eq!(
        rig.said(),
        [
            "reset".to_owned(),
            format!("negotiated {agreed:#x}"),
            format!("start {agreed:#x} [(1, 4, 0, 0)]")
        ]
    );
    // What runs cannot be set up any more.
    rig.write16(0x16, 0);
    rig.write16(0x1c, 1);
    assert_eq!(rig.read16(0x1c), 0);
    // Bits stay without a reset.
    rig.set_status(1);
    assert_eq!(rig.status(), 15);
}

#[test]
fn driver_ok_without_features_needs_a_reset() {
    let rig = Rig::new();
    rig.set_status(7);
    assert_eq!(rig.status(), 7 | status::NEEDS_RESET);
    assert!(!rig.said().iter().any(|line| line.starts_with("start")));
    rig.set_status(0);
    assert_eq!(rig.status(), 0);
    rig.start();
    assert_eq!(rig.status(), 15);
}

#[test]
fn a_reset_reads_zero_only_when_requests_have_ended() {
    let rig = Rig::new();
    rig.start();
    rig.prompt.store(false, Ordering::SeqCst);
    rig.said();
    rig.set_status(0);
    assert_eq!(rig.status(), 15);
    // An impatient driver changes nothing meanwhile.
    rig.set_status(0);
    rig.set_status(1);
    rig.write16(0x16, 1);
    assert_eq!(rig.said(), ["stop"]);
    let done = rig.stopping.lock().unwrap().pop().unwrap();
    done();
    assert_eq!(rig.status(), 0);
    assert_eq!(rig.said(), ["reset"]);
    assert_eq!((rig.read16(0x16), rig.read16(0x18)), (0, 8));
    rig.prompt.store(true, Ordering::SeqCst);
    rig.start();
    rig.set_status(0);
    assert_eq!(rig.status(), 0);
}

#[test]
fn a_reset_that_ends_soon_is_waited_for() {
    let rig = Rig::new();
    rig.start();
    rig.prompt.store(false, Ordering::SeqCst);
    let stopping = Arc::clone(&rig.stopping);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            loop {
                if let Some(done) = stopping.lock().unwrap().pop() {
                    return done();
                }
                std::thread::yield_now();
            }
        });
        rig.set_status(0);
    });
    assert_eq!(rig.status(), 0);
}

#[test]
fn interrupts_take_msix_or_the_pin() {
    let rig = Rig::new();
    rig.start();
    let interrupt = Arc::clone(&rig.device.lock().unwrap().interrupt);
    rig.said();
    // Without MSI-X: the pin and the ISR register, which reading clears.
    interrupt.queue(1);
    assert_eq!(rig.said(), ["intx"]);
    interrupt.config();
    assert_eq!(rig.read::<1>(ISR), [3]);
    assert_eq!(rig.read::<1>(ISR), [0]);
    assert!(!rig.device.lock().unwrap().config.save().intx_asserted);
    rig.said();

    rig.enable_msix();
    interrupt.queue(1);
    assert!(!rig.said().contains(&"intx".to_owned()), "unmapped events are silent");
    rig.write16(0x16, 1);
    rig.write16(0x1a, 2);
    rig.write16(0x10, 0);
    rig.said();
    interrupt.queue(1);
    interrupt.config();
    interrupt.queue(7);
    assert_eq!(rig.said(), ["msi 2", "msi 0"]);
    assert_eq!(rig.read::<1>(ISR), [2], "configuration changes show here in any case");
}

#[test]
fn a_configuration_change_is_seen_in_the_generation() {
    let rig = Rig::new();
    let interrupt = Arc::clone(&rig.device.lock().unwrap().interrupt);
    interrupt.config();
    assert!(rig.said().is_empty(), "no interrupt before the driver is ready");
    rig.start();
    rig.read::<4>(DEVICE);
    let before = rig.read::<1>(0x15)[0];
    rig.read::<4>(DEVICE);
    assert_eq!(rig.read::<1>(0x15)[0], before);
    interrupt.config();
    rig.read::<4>(DEVICE);
    assert_eq!(rig.read::<1>(0x15)[0], before.wrapping_add(1));
}

#[test]
fn a_broken_device_says_so_once_until_it_is_reset() {
    let rig = Rig::new();
    rig.start();
    let interrupt = Arc::clone(&rig.device.lock().unwrap().interrupt);
    rig.said();
    interrupt.needs_reset();
    interrupt.needs_reset();
    assert_eq!(rig.said(), ["intx"]);
    rig.set_status(15);
    assert_eq!(rig.status(), 15 | status::NEEDS_RESET);
    rig.set_status(0);
    assert_eq!(rig.status(), 0);
}

#[test]
fn doorbells_follow_the_bar_and_ring_by_exit_too() {
    let rig = Rig::new();
    let mut device = rig.device.lock().unwrap();
    device.bar_moved(BAR, Some(0x10_0000));
    device.bar_moved(BAR, Some(0x20_0000));
    device.bar_moved(BAR, None);
    assert_eq!(
        rig.said(),
        [
            "bind 0x103000",
            "bind 0x103004",
            "unbind 0x103000",
            "bind 0x203000",
            "unbind 0x103004",
            "bind 0x203004",
            "unbind 0x203000",
            "unbind 0x203004",
        ]
    );
    device.bar_write(BAR, NOTIFY + 4, &1u16.to_le_bytes());
    device.bar_write(BAR, NOTIFY + 8, &2u16.to_le_bytes());
    assert_eq!(device.kicks[1].read().unwrap(), 1);
    assert!(device.kicks[0].read().is_err());
}

#[test]
fn the_window_in_configuration_space_reaches_the_registers() {
    let rig = Rig::new();
    let mut device = rig.device.lock().unwrap();
    let window = capability_at(&device, 0x09, 4);
    let aim = |device: &mut VirtioPci, bar: u8, offset: u32, len: u32| {
        let _bar = device.config_write(window + 4, &[bar]);
        let _offset = device.config_write(window + 8, &offset.to_le_bytes());
        let _len = device.config_write(window + 12, &len.to_le_bytes());
    };
    aim(&mut device, 0, 0x12, 2);
    let mut data = [0; 4];
    device.config_read(window + 16, &mut data);
    assert_eq!(data[..2], [2, 0]);
    aim(&mut device, 0, 0x14, 1);
    let _change = device.config_write(window + 16, &[1]);
    assert_eq!(device.interrupt.status(), 1);
    aim(&mut device, 0, NOTIFY as u32 + 4, 2);
    let _change = device.config_write(window + 16, &[1, 0]);
    assert_eq!(device.kicks[1].read().unwrap(), 1);
    // What is not there does nothing.
    for (bar, offset, len) in
        [(1, 0x14, 1), (0, 0x15, 2), (0, 0x14, 8), (0, u32::MAX, 1), (0, 0, 0)]
    {
        aim(&mut device, bar, offset, len);
        let _change = device.config_write(window + 16, &[0; 4]);
        device.config_read(window + 16, &mut data);
        assert_eq!(device.interrupt.status(), 1, "{bar} {offset:#x} {len}");
    }
}

fn saved(rig: &Rig) -> Sections {
    now(VirtioPci::quiesce(&rig.device));
    let mut sections = Sections::new();
    rig.device.lock().unwrap().save(&mut sections).unwrap();
    sections
}

#[test]
fn a_running_device_goes_on_elsewhere() {
    let rig = Rig::new();
    rig.start();
    rig.enable_msix();
    rig.write16(0x10, 2);
    rig.write16(0x1a, 1);
    assert!(rig.device.lock().unwrap().save(&mut Sections::new()).is_err(), "not quiesced");
    let mut sections = saved(&rig);
    let there = Rig::new();
    there.said();
    there.device.lock().unwrap().restore(&mut sections).unwrap();
    sections.finish().unwrap();
    let agreed = features::VERSION_1 | 1 << 9;
    let said: Vec<_> = there.said().into_iter().filter(|line| !line.starts_with("route")).collect();
    assert_eq!(
        said,
        [
            format!("restore {agreed:#x} 1"),
            format!("negotiated {agreed:#x}"),
            "quiesce".to_owned(),
            format!("start {agreed:#x} [(1, 4, 5, 5)]"),
        ]
    );
    for offset in (0..0x38).step_by(4) {
        assert_eq!(there.read32(offset), rig.read32(offset), "{offset:#x}");
    }
    there.device.lock().unwrap().resume();
    there.device.lock().unwrap().interrupt.queue(1);
    assert_eq!(there.said(), ["resume", "msi 1"]);
    assert_eq!(saved(&there).encode().unwrap(), saved(&rig).encode().unwrap());
}

#[test]
fn a_device_nobody_uses_is_saved_and_restored() {
    let rig = Rig::new();
    let mut sections = saved(&rig);
    let there = Rig::new();
    there.device.lock().unwrap().restore(&mut sections).unwrap();
    assert_eq!(there.said().iter().filter(|line| line.starts_with("start")).count(), 0);
    there.device.lock().unwrap().resume();
    there.start();
    assert_eq!(there.status(), 15);
}

#[test]
fn impossible_states_are_refused() {
    let rig = Rig::new();
    rig.start();
    let state: state::VirtioPciState = saved(&rig).load("disk0").unwrap();
    type Edit = fn(&mut state::VirtioPciState);
    let edits: [(&str, Edit); 11] = [
        ("queues", |s| s.queues.truncate(1)),
        ("size", |s| s.queues[1].size = 3),
        ("size 0", |s| s.queues[0].size = 0),
        ("too large", |s| s.queues[1].size = 32),
        ("features", |s| s.features |= 1 << 40),
        ("no version", |s| s.features = 0),
        ("not agreed", |s| s.status &= !8),
        ("vector", |s| s.queues[1].vector = 3),
        ("config vector", |s| s.config_vector = 0x800),
        ("outside", |s| s.queues[1].desc = 1 << 40),
        ("unaligned", |s| s.queues[1].device += 1),
    ];
    for (what, edit) in edits {
        let mut hostile = state.clone();
        edit(&mut hostile);
        let mut sections = Sections::new();
        sections.save("disk0", &hostile).unwrap();
        let there = Rig::new();
        assert!(there.device.lock().unwrap().restore(&mut sections).is_err(), "{what}");
        assert!(there.said().is_empty(), "{what}");
    }
}

#[test]
fn the_saved_state_is_what_it_was() {
    let rig = Rig::new();
    rig.start();
    let mut state: state::VirtioPciState = saved(&rig).load("disk0").unwrap();
    state.msix.vectors.truncate(1);
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/state");
    ferry_migration::state::golden::check(&dir, &state).unwrap();
}

proptest! {
    #[test]
    fn no_access_of_a_guest_panics(
        accesses in prop::collection::vec(
            (any::<bool>(), any::<bool>(), 0..0x8000u64, prop::collection::vec(any::<u8>(), 1..9)),
            1..200,
        ),
    ) {
        let rig = Rig::new();
        for (write, config, offset, mut data) in accesses {
            let mut device = rig.device.lock().unwrap();
            if config {
                let offset = (offset % (257 - data.len() as u64)) as u16;
                if write {
                    let _change = device.config_write(offset, &data);
                } else {
                    device.config_read(offset, &mut data);
                }
            } else {
                // Half of them into the common configuration.
                let offset = if offset % 2 == 0 { offset / 2 % 0x40 } else { offset };
                let offset = offset.min(BAR_LEN - data.len() as u64);
                if write {
                    device.bar_write(BAR, offset, &data);
                } else {
                    device.bar_read(BAR, offset, &mut data);
                }
            }
        }
        rig.set_status(0);
        rig.start();
        prop_assert_eq!(rig.status(), 15);
    }
}
