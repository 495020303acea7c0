use std::panic::{AssertUnwindSafe, catch_unwind};

use ferry_block::testing::SimOptions;
use vm_memory::Bytes;

use super::super::config::VirtioBlkConfig;
use super::super::testing::{Machine, Storage};
use super::*;
use crate::pci::{Intx, MsixLayout, MsixTable};
use crate::virtio::Interrupt;
use crate::virtio::testing::{Desc, Driver, memory};

#[test]
fn a_request_that_is_dropped_is_a_bug_and_gets_an_error() {
    let storage = Storage::new(SimOptions::new(1 << 20, 1));
    let memory = memory();
    let mut driver = Driver::new(&memory, 0x1000, 8, false);
    let head = driver.chain(&[Desc::writable(0x8000, 1)]);
    memory.write_obj(0xee_u8, GuestAddress(0x8000)).unwrap();
    let machine = Arc::new(Machine::default());
    let layout = MsixLayout { table_bar: 0, table_offset: 0, pba_bar: 0, pba_offset: 64 };
    let msix = MsixTable::new(1, layout, machine.clone()).unwrap();
    let disk = Disk {
        backend: storage.backend.clone(),
        shared: Arc::new(Shared::new(VirtioBlkConfig::default(), 1 << 20)),
        features: 0,
        broken: Rc::default(),
    };
    let queue = BlkQueue::new(Parts {
        index: 0,
        ring: Ring::new(driver.state(), true, &memory).unwrap(),
        buffers: GuestBuffers::new(memory.clone()),
        signal: Rc::new(Arc::new(Interrupt::new(msix, Intx::new(machine), 1))),
        disk,
        executor: storage.executor.clone(),
        idle: Rc::default(),
    });
    queue.ring.borrow_mut().adopt(head).unwrap();
    let status_at = GuestAddress(0x8000);
    let ticket = Ticket { queue: Rc::clone(&queue), head, status_at, room: 0, open: true };
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(ticket)));
    assert!(dropped.is_err(), "tests must hear of it");
    storage.executor.run_until_stalled();
    assert_eq!(driver.take_used(), Some((head, 1)));
    assert_eq!(memory.read_obj::<u8>(status_at).unwrap(), Status::IoErr as u8);
    assert!(queue.is_idle());
    queue.close();
}
