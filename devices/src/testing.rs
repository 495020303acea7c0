//! Hostile input, for tests of other crates: what a source may say of the state of a machine's devices.

use std::io;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Builder};
use std::time::Duration;

use ferry_block::testing::{SimDisk, SimOptions};
use ferry_block::{
    BackendKind, BlockBackend, BlockGraph, BlockHandle, Clock, EdgePerms, Executor, NodeOptions,
};
use ferry_migration::state::{Migrate, Section, Sections};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::GuestMemory;
use crate::bus::{Bus, BusDevice, BusRange};
use crate::i8042::{I8042, I8042_PORTS};
use crate::irq::{IrqLine, MsiMessage, MsiSink, NotifyBinder};
use crate::pci::{CONFIG_PORTS, HostBridge, PciBus, PciDevice, PciPorts, PciWindows};
use crate::power::{AcpiPower, POWER_PORTS, PowerEvents};
use crate::pvpanic::{PVPANIC_PORT, Pvpanic};
use crate::rtc::{RTC_PORTS, Rtc};
use crate::serial::{COM1_PORTS, SerialPort, SerialSink};
use crate::virtio::blk::{VirtioBlk, VirtioBlkConfig};
use crate::virtio::transport::{VirtioPci, VirtioPciResources};

/// Bytes of guest memory, and of the disk.
const MEMORY: usize = 1 << 20;
const DISK: u64 = 1 << 20;
/// Where the seeds have their ring.
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Entries of a queue.
const QUEUE: u16 = 16;
/// Bytes before the payload of a section: version and length.
const HEADER: usize = 4;
const PORTS: [BusRange; 6] =
    [COM1_PORTS, RTC_PORTS, POWER_PORTS, I8042_PORTS, PVPANIC_PORT, CONFIG_PORTS];
/// Sections of such a machine: kind and instance, in the order of an input.
const SECTIONS: [(&str, &str); 7] = [
    ("serial-16550", "com1"),
    ("rtc-mc146818", "rtc"),
    ("acpi-power", "power"),
    ("pci-host", "pci-host"),
    ("pci-ports", "pci-ports"),
    ("virtio-pci", "disk0"),
    ("virtio-blk", "disk0"),
];

/// Restores a machine's devices from the bytes, a section's version, length and payload after the other, then
/// guest memory; lets those go on that were restored. How many these are. Comes back soon, having used little
/// memory, whatever the bytes say.
///
/// # Panics
/// There is a mistake in what is tested.
pub fn fuzz_devices(data: &[u8]) -> u32 {
    // A graph that other threads may reach stays until its own ends.
    let outcome = thread::scope(|scope| {
        let restoring = Builder::new().spawn_scoped(scope, || restore(data));
        restoring.expect("a thread").join()
    });
    outcome.unwrap_or_else(|panic| resume_unwind(panic))
}

fn restore(data: &[u8]) -> u32 {
    let (mut sections, rest) = read(data);
    let executor = executor();
    let board = Board::new(&executor, memory(rest));
    let mut restored = 0;
    let mut refused = false;
    for part in board.parts() {
        match lock(&part).restore(&mut sections) {
            Ok(()) => restored += 1,
            Err(error) => {
                refused = true;
                assert!(!error.to_string().is_empty());
            }
        }
    }
    board.pci.sync_bars();
    if !refused {
        board.check_same();
    }
    board.run();
    drop(board);
    // The disk's task on the I/O thread ends.
    executor.run_until_stalled();
    restored
}

/// What sources say: of a machine that was just made, and of one whose guest has asked for something.
///
/// # Panics
/// There is a mistake in what is tested.
pub fn device_seeds() -> Vec<Vec<u8>> {
    let executor = executor();
    let idle = Board::new(&executor, memory(&[]));
    let busy = Board::new(&executor, memory(&[]));
    busy.start_disk();
    [idle, busy].iter().map(|board| write(&board.save(), &ring())).collect()
}

/// The sections that the bytes are, and what is left of them.
fn read(mut data: &[u8]) -> (Sections, &[u8]) {
    let mut sections = Sections::new();
    for (kind, instance) in SECTIONS {
        let Some((head, rest)) = data.split_first_chunk::<HEADER>() else { break };
        let [version, _, low, high] = *head;
        let len = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (payload, rest) = rest.split_at(len);
        data = rest;
        let section = Section::from_parts(kind, instance, version.into(), false, payload.to_vec());
        sections.put(section.expect("a short section")).expect("few sections");
    }
    (sections, data)
}

fn write(sections: &Sections, rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    assert_eq!(sections.len(), SECTIONS.len());
    for (kind, instance) in SECTIONS {
        let found = sections.iter().find(|it| (it.kind(), it.instance()) == (kind, instance));
        let section = found.expect("a section of each kind");
        let version = u8::try_from(section.version()).expect("a small version");
        let len = u16::try_from(section.payload().len()).expect("a short section");
        out.extend_from_slice(&[version, 0]);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(section.payload());
    }
    out.extend_from_slice(rest);
    out
}

/// Memory from [`DESC`] on in which a guest reads the first sector.
fn ring() -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(USED - DESC).expect("a small ring")];
    let mut descriptor = |index: usize, addr: u64, len: u32, flags: u16, next: u16| {
        let at = 16 * index;
        bytes[at..at + 8].copy_from_slice(&addr.to_le_bytes());
        bytes[at + 8..at + 12].copy_from_slice(&len.to_le_bytes());
        bytes[at + 12..at + 14].copy_from_slice(&flags.to_le_bytes());
        bytes[at + 14..at + 16].copy_from_slice(&next.to_le_bytes());
    };
    descriptor(0, 0x4000, 16, 1, 1);
    descriptor(1, 0x5000, 512, 3, 2);
    descriptor(2, 0x6000, 1, 2, 0);
    let index = usize::try_from(AVAIL - DESC).expect("a small ring") + 2;
    bytes[index] = 1;
    bytes
}

fn executor() -> Executor {
    Executor::new(Clock::simulated()).expect("an executor")
}

/// A guest's memory with that content from [`DESC`] on.
fn memory(content: &[u8]) -> GuestMemory {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("little memory");
    let start = usize::try_from(DESC).expect("a small address");
    let content = &content[..content.len().min(MEMORY - start)];
    memory.write_slice(content, GuestAddress(DESC)).expect("a place in memory");
    memory
}

/// The interrupts and doorbells of a machine that has no kernel.
struct Wires;

impl IrqLine for Wires {
    fn set_level(&self, _level: bool) {}
}

impl MsiSink for Wires {
    fn route(&self, _vector: u16, _message: Option<MsiMessage>) {}
    fn fire(&self, _vector: u16) {}
}

impl NotifyBinder for Wires {
    fn bind(&self, _addr: u64, _len: u32, _fd: &EventFd) -> io::Result<()> {
        Ok(())
    }
    fn unbind(&self, _addr: u64, _len: u32, _fd: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

/// Takes what the serial port says.
struct Listener;

impl SerialSink for Listener {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
}

/// Devices like those of a machine, and one disk.
struct Board {
    executor: Executor,
    pio: Arc<Bus>,
    pci: Arc<PciBus>,
    platform: Vec<Arc<Mutex<dyn Migrate>>>,
    disk: Arc<Mutex<VirtioPci>>,
    /// What the disk is on.
    _graph: (BlockGraph, BlockBackend),
}

impl Board {
    fn new(executor: &Executor, memory: GuestMemory) -> Board {
        let graph = BlockGraph::new(executor.clone());
        let (pio, mmio) = (Arc::new(Bus::new("port bus")), Arc::new(Bus::new("memory bus")));
        let windows = PciWindows {
            mmio32: 0xc000_0000..0xd000_0000,
            mmio64: 1 << 32..1 << 36,
            io: 0xc000..0x1_0000,
        };
        let pci = PciBus::new(mmio, Arc::clone(&pio), windows);
        let bridge = HostBridge::new();
        pci.add(0, bridge.clone()).expect("an empty bus");
        let disk = SimDisk::new(executor, SimOptions::new(DISK, 1));
        let (disk, backend) = executor.block_on(add_disk(&graph, disk, memory));
        pci.add(1, disk.clone()).expect("an empty slot");
        let events: PowerEvents = Arc::new(|_event| {});
        let time = || Duration::from_secs(1 << 30);
        let serial = SerialPort::new("com1", Arc::new(Wires), Box::new(Listener), Arc::new(|_| {}));
        let power = AcpiPower::new(Arc::new(Wires), Arc::new(time), Arc::clone(&events));
        let platform = vec![
            plug(&pio, COM1_PORTS, serial),
            plug(&pio, RTC_PORTS, Rtc::new(Arc::new(time), Arc::new(Wires), Arc::new(|| {}))),
            plug(&pio, POWER_PORTS, power),
            plug(&pio, I8042_PORTS, I8042::new(Arc::clone(&events))),
            plug(&pio, PVPANIC_PORT, Pvpanic::new(Arc::clone(&events))),
            bridge,
            plug(&pio, CONFIG_PORTS, PciPorts::new(Arc::clone(&pci), events)),
        ];
        Board { executor: executor.clone(), pio, pci, platform, disk, _graph: (graph, backend) }
    }

    /// In the order in which a machine restores them.
    fn parts(&self) -> Vec<Arc<Mutex<dyn Migrate>>> {
        let disk: Arc<Mutex<dyn Migrate>> = self.disk.clone();
        self.platform.iter().cloned().chain([disk]).collect()
    }

    fn save(&self) -> Sections {
        self.executor.block_on(VirtioPci::quiesce(&self.disk));
        let mut sections = Sections::new();
        for part in self.parts() {
            lock(&part).save(&mut sections).expect("quiet devices");
        }
        sections
    }

    /// Whoever is sent what was restored here becomes the same again.
    fn check_same(&self) {
        let saved = self.save();
        let other = Board::new(&self.executor, memory(&[]));
        let mut sections = saved.clone();
        for part in other.parts() {
            lock(&part).restore(&mut sections).expect("state that was accepted before");
        }
        sections.finish().expect("nothing that nobody knows");
        let ours = saved.encode().expect("little state");
        assert!(other.save().encode().expect("little state") == ours, "it became something else");
    }

    /// The guest's driver brings the disk up (virtio 1.2, section 3.1.1), with one queue.
    fn start_disk(&self) {
        let write = |offset: u64, bytes: &[u8]| lock(&self.disk).bar_write(0, offset, bytes);
        write(0x14, &[3]);
        // VERSION_1 is the first of the upper half.
        write(0x08, &1_u32.to_le_bytes());
        write(0x0c, &1_u32.to_le_bytes());
        write(0x14, &[11]);
        write(0x18, &QUEUE.to_le_bytes());
        for (register, address) in [(0x20, DESC), (0x28, AVAIL), (0x30, USED)] {
            write(register, &address.to_le_bytes());
        }
        write(0x1c, &1_u16.to_le_bytes());
        write(0x14, &[15]);
        self.executor.run_until_stalled();
    }

    /// Lets everything go on, looks at all registers, and brings it to rest.
    fn run(&self) {
        lock(&self.disk).resume();
        self.executor.advance(Duration::from_millis(2));
        let mut byte = [0];
        for ports in PORTS {
            for offset in 0..ports.len {
                self.pio.read(ports.base + offset, &mut byte);
            }
        }
        for offset in (0..0x5000).step_by(4) {
            lock(&self.disk).bar_read(0, offset, &mut [0; 4]);
        }
        self.pci.reset();
        self.executor.advance(Duration::from_millis(2));
        self.executor.block_on(VirtioPci::quiesce(&self.disk));
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // The ports of the PCI bus are on a bus that it knows: they would keep each other.
        self.pio.remove(CONFIG_PORTS);
    }
}

async fn add_disk(
    graph: &BlockGraph,
    disk: SimDisk,
    memory: GuestMemory,
) -> (Arc<Mutex<VirtioPci>>, BlockBackend) {
    let node = graph.add(Some("node0"), disk, NodeOptions::default()).await.expect("a free name");
    let backend = graph.add_backend(BackendKind::Device, "disk0", &node, EdgePerms::READ_WRITE);
    let backend = backend.expect("a node of its own");
    let config = VirtioBlkConfig { queue_size: QUEUE, queues: 2, ..VirtioBlkConfig::default() };
    let blk = VirtioBlk::new(config, "disk0", &BlockHandle::new(graph)).await.expect("a disk");
    let wires = Arc::new(Wires);
    let resources = VirtioPciResources {
        memory,
        msi: wires.clone(),
        line: wires.clone(),
        gsi: 11,
        binder: wires,
    };
    (VirtioPci::new("disk0", Box::new(blk), resources).expect("a device"), backend)
}

fn plug<D: BusDevice + Migrate + 'static>(
    bus: &Bus,
    at: BusRange,
    device: D,
) -> Arc<Mutex<dyn Migrate>> {
    let device = Arc::new(Mutex::new(device));
    bus.insert(at, device.clone()).expect("a free range");
    device
}

fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "testing_tests.rs"]
mod tests;
