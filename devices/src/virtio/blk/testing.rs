//! A disk device on a simulated disk, with a driver: for tests.
#![expect(clippy::cast_possible_truncation, reason = "tests count small things")]

use std::io;
use std::sync::{Arc, Mutex};

use ferry_block::testing::{SimDisk, SimOptions};
use ferry_block::{
    BackendKind, BlockBackend, BlockGraph, BlockHandle, Clock, EdgePerms, Executor, NodeOptions,
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{BlkControl, VirtioBlk, VirtioBlkConfig};
use crate::GuestMemory;
use crate::irq::{IrqLine, MsiMessage, MsiSink, NotifyBinder};
use crate::pci::PciDevice;
use crate::virtio::features;
use crate::virtio::testing::{Desc, Driver, HIGH, LOW, memory};
use crate::virtio::transport::{VirtioPci, VirtioPciResources};

/// Where the rig keeps what it sends and receives.
const RINGS: u64 = 0x1000;
const TABLES: u64 = 0x8_0000;
pub(super) const BUFFERS: u64 = LOW;
pub(super) const QUEUE_SIZE: u16 = 64;

/// Counts the interrupts of each vector.
#[derive(Default)]
pub(super) struct Machine {
    pub(super) fired: Mutex<Vec<u16>>,
}

impl MsiSink for Machine {
    fn route(&self, _vector: u16, _message: Option<MsiMessage>) {}
    fn fire(&self, vector: u16) {
        self.fired.lock().unwrap().push(vector);
    }
}

impl IrqLine for Machine {
    fn set_level(&self, _level: bool) {}
}

impl NotifyBinder for Machine {
    fn bind(&self, _addr: u64, _len: u32, _fd: &EventFd) -> io::Result<()> {
        Ok(())
    }
    fn unbind(&self, _addr: u64, _len: u32, _fd: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

/// A disk of a process: keep it to connect a second device to the same storage.
#[derive(Clone)]
pub(super) struct Storage {
    pub(super) executor: Executor,
    pub(super) disk: SimDisk,
    pub(super) graph: BlockGraph,
    pub(super) backend: BlockBackend,
}

impl Storage {
    pub(super) fn new(options: SimOptions) -> Self {
        let executor = Executor::new(Clock::simulated()).unwrap();
        let disk = SimDisk::new(&executor, options);
        let graph = BlockGraph::new(executor.clone());
        let made = async {
            let node =
                graph.add(Some("node0"), disk.clone(), NodeOptions::default()).await.unwrap();
            graph.add_backend(BackendKind::Device, "disk0", &node, EdgePerms::READ_WRITE).unwrap()
        };
        let backend = executor.block_on(made);
        Self { executor, disk, graph, backend }
    }
}

/// A device, what it is connected to, and a driver for each of its queues.
pub(super) struct Rig {
    pub(super) storage: Storage,
    pub(super) memory: GuestMemory,
    pub(super) machine: Arc<Machine>,
    pub(super) device: Arc<Mutex<VirtioPci>>,
    pub(super) control: BlkControl,
    pub(super) drivers: Vec<Driver>,
}

impl Rig {
    pub(super) fn new(storage: &Storage, config: VirtioBlkConfig) -> Self {
        Self::over(storage, memory(), config, true)
    }

    /// A device over memory that a driver may use already.
    pub(super) fn over(
        storage: &Storage,
        memory: GuestMemory,
        config: VirtioBlkConfig,
        event_idx: bool,
    ) -> Self {
        let machine = Arc::new(Machine::default());
        let queues = u64::from(config.queues);
        let handle = BlockHandle::new(&storage.graph);
        let config = VirtioBlkConfig { queue_size: QUEUE_SIZE, ..config };
        let blk = storage.executor.block_on(VirtioBlk::new(config, "disk0", &handle)).unwrap();
        let control = blk.control();
        let resources = VirtioPciResources {
            memory: memory.clone(),
            msi: machine.clone(),
            line: machine.clone(),
            gsi: 11,
            binder: machine.clone(),
        };
        let device = VirtioPci::new("disk0", Box::new(blk), resources).unwrap();
        let drivers = (0..queues)
            .map(|index| Driver::new(&memory, RINGS + index * 0x1000, QUEUE_SIZE, event_idx))
            .collect();
        Self { storage: storage.clone(), memory, machine, device, control, drivers }
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        self.device.lock().unwrap().bar_write(0, offset, data);
    }

    pub(super) fn status(&self) -> u8 {
        let mut data = [0];
        self.device.lock().unwrap().bar_read(0, 0x14, &mut data);
        data[0]
    }

    pub(super) fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.device.lock().unwrap().bar_read(0, 0x2000 + offset, &mut data);
        data
    }

    /// Brings the device up with everything it offers but `without`.
    pub(super) fn start(&mut self, without: u64) {
        self.write(0x14, &[0]);
        self.settle();
        self.write(0x14, &[3]);
        let event_idx = self.drivers.iter().all(|driver| driver.event_idx);
        for select in 0..2u32 {
            self.write(0x00, &select.to_le_bytes());
            let mut data = [0; 4];
            self.device.lock().unwrap().bar_read(0, 0x04, &mut data);
            let without = if event_idx { without } else { without | features::RING_EVENT_IDX };
            let half = u32::from_le_bytes(data) & !((without >> (32 * select)) as u32);
            self.write(0x08, &select.to_le_bytes());
            self.write(0x0c, &half.to_le_bytes());
        }
        self.write(0x14, &[11]);
        {
            // MSI-X on, all vectors unmasked.
            let mut device = self.device.lock().unwrap();
            let mut at = [0x34];
            device.config().read(0x34, &mut at);
            let mut id = [0; 2];
            loop {
                device.config().read(u16::from(at[0]), &mut id);
                if id[0] == 0x11 {
                    break;
                }
                at[0] = id[1];
            }
            let _change = device.config_write(u16::from(at[0]) + 2, &[0, 0x80]);
            for vector in 0..=self.drivers.len() as u64 {
                device.bar_write(0, 0x4000 + 16 * vector + 12, &[0; 4]);
            }
        }
        self.write(0x10, &0u16.to_le_bytes());
        for (index, driver) in (0u16..).zip(&self.drivers) {
            self.write(0x16, &index.to_le_bytes());
            self.write(0x18, &driver.size.to_le_bytes());
            self.write(0x1a, &(index + 1).to_le_bytes());
            for (register, value) in
                [(0x20, driver.desc), (0x28, driver.avail), (0x30, driver.used)]
            {
                self.write(register, &value.to_le_bytes());
            }
            self.write(0x1c, &1u16.to_le_bytes());
        }
        self.write(0x14, &[15]);
        assert_eq!(self.status(), 15);
        self.settle();
    }

    /// Lets everything run that can without time passing.
    pub(super) fn settle(&self) {
        self.storage.executor.run_until_stalled();
    }

    /// Lets so much time pass that everything is done.
    pub(super) fn finish(&self) {
        self.storage.executor.advance(std::time::Duration::from_secs(1));
    }

    pub(super) fn take_fired(&self) -> Vec<u16> {
        std::mem::take(&mut self.machine.fired.lock().unwrap())
    }

    pub(super) fn wait<T>(&self, future: crate::virtio::Pending<T>) -> T {
        self.storage.executor.block_on(future)
    }

    /// Offers a request of the simplest framing: a header, data in one buffer, a status.
    pub(super) fn simple(
        &mut self,
        queue: usize,
        slot: u64,
        kind: u32,
        sector: u64,
        data: Data,
    ) -> u16 {
        let at = Slot::new(slot);
        at.put_header(&self.memory, kind, sector);
        let mut descs = vec![Desc::readable(at.header, 16)];
        match data {
            Data::None => {}
            Data::To(bytes) => {
                self.memory.write_slice(bytes, GuestAddress(at.data)).unwrap();
                descs.push(Desc::readable(at.data, bytes.len() as u32));
            }
            Data::From(len) => descs.push(Desc::writable(at.data, len)),
        }
        descs.push(Desc::writable(at.status, 1));
        let head = self.drivers[queue].chain(&descs);
        self.drivers[queue].offer(head);
        head
    }

    pub(super) fn status_of(&self, slot: u64) -> u8 {
        self.memory.read_obj(GuestAddress(Slot::new(slot).status)).unwrap()
    }

    pub(super) fn data_of(&self, slot: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(Slot::new(slot).data)).unwrap();
        bytes
    }
}

/// Data of a simple request.
pub(super) enum Data<'a> {
    None,
    /// To the disk.
    To(&'a [u8]),
    /// So many bytes from the disk.
    From(u32),
}

/// Where the parts of a request lie: each slot has 8 KiB for data.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) header: u64,
    pub(super) data: u64,
    pub(super) status: u64,
    pub(super) table: u64,
}

impl Slot {
    pub(super) fn new(slot: u64) -> Self {
        Self {
            header: HIGH + slot * 0x100,
            status: HIGH + slot * 0x100 + 0x80,
            data: BUFFERS + slot * 0x2000,
            table: TABLES + slot * 0x1000,
        }
    }

    pub(super) fn put_header(self, memory: &GuestMemory, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        memory.write_slice(&header, GuestAddress(self.header)).unwrap();
        memory.write_obj(0xee_u8, GuestAddress(self.status)).unwrap();
    }
}
