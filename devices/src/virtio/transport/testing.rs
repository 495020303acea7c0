//! A device that writes down what it is asked, behind the transport, with a guest's hands on its registers.
#![expect(clippy::cast_possible_truncation, reason = "tests count small things")]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use ferry_migration::Result as StateResult;
use ferry_migration::state::Sections;

use super::*;
use crate::irq::MsiMessage;
use crate::virtio::testing::{Driver, memory};

const COMMON: u64 = 0;
pub(super) const FEATURES: u64 = 1 << 5 | 1 << 9;

/// What the device and the machine were asked to do, in order.
pub(super) type Log = Arc<Mutex<Vec<String>>>;

/// The stops that have not ended yet.
pub(super) type Stops = Arc<Mutex<Vec<Box<dyn FnOnce() + Send>>>>;

pub(super) fn note(log: &Log, what: impl Into<String>) {
    log.lock().unwrap().push(what.into());
}

pub(super) struct Machine(Log);

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
pub(super) struct Fake {
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

pub(super) struct Rig {
    pub(super) log: Log,
    pub(super) memory: GuestMemory,
    pub(super) prompt: Arc<AtomicBool>,
    pub(super) stopping: Stops,
    pub(super) device: Arc<Mutex<VirtioPci>>,
}

impl Rig {
    pub(super) fn new() -> Self {
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

    pub(super) fn said(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    pub(super) fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.device.lock().unwrap().bar_read(BAR, offset, &mut data);
        data
    }

    pub(super) fn read16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    pub(super) fn read32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        self.device.lock().unwrap().bar_write(BAR, offset, data);
    }

    pub(super) fn write16(&self, offset: u64, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    pub(super) fn write32(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    pub(super) fn status(&self) -> u8 {
        self.read::<1>(COMMON + 0x14)[0]
    }

    pub(super) fn set_status(&self, value: u8) {
        self.write(COMMON + 0x14, &[value]);
    }

    pub(super) fn accept(&self, features: u64) {
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write32(0x08, select);
            self.write32(0x0c, half as u32);
        }
    }

    pub(super) fn set_queue(&self, index: u16, driver: &Driver) {
        self.write16(0x16, index);
        self.write16(0x18, driver.size);
        for (register, value) in [(0x20, driver.desc), (0x28, driver.avail), (0x30, driver.used)] {
            self.write32(register, value as u32);
            self.write32(register + 4, (value >> 32) as u32);
        }
        self.write16(0x1c, 1);
    }

    /// Brings the device up as a driver does, with queue 1 of 4 entries.
    pub(super) fn start(&self) {
        self.set_status(0);
        self.set_status(1);
        self.set_status(3);
        self.accept(features::VERSION_1 | 1 << 9);
        self.set_status(11);
        assert_eq!(self.status(), 11);
        self.set_queue(1, &Driver::new(&self.memory, 0x1000, 4, false));
        self.set_status(15);
    }

    pub(super) fn enable_msix(&self) {
        let mut device = self.device.lock().unwrap();
        let at = capability_at(&device, 0x11, 0);
        let _change = device.config_write(at + 2, &0x8000u16.to_le_bytes());
        for vector in 0..3u64 {
            device.bar_write(BAR, MSIX_TABLE + vector * 16 + 12, &0u32.to_le_bytes());
        }
    }
}

/// The nth capability with this ID.
pub(super) fn capability_at(device: &VirtioPci, id: u8, skip: usize) -> u16 {
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

pub(super) fn now<T>(future: Pending<T>) -> T {
    let mut future = future;
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut cx) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("is not done at once"),
    }
}
