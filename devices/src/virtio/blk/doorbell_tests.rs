//! With a real thread, which sleeps: only the doorbell wakes it.

use std::sync::{Arc, Mutex};

use ferry_block::testing::{SimDisk, SimOptions};
use ferry_block::{
    BackendKind, Clock, EdgePerms, Executor, IoThread, IoThreadOptions, NodeOptions,
};
use vmm_sys_util::eventfd::EventFd;

use super::testing::{self, Data, Rig, Storage};
use super::{VirtioBlk, VirtioBlkConfig};
use crate::irq::NotifyBinder;
use crate::pci::PciDevice;
use crate::virtio::testing::{Driver, memory};
use crate::virtio::transport::{VirtioPci, VirtioPciResources};

const IN: u32 = 0;
const LEN: u64 = 1 << 20;

/// Keeps the doorbell of queue 0.
#[derive(Default)]
struct Bell(Mutex<Option<EventFd>>);

impl NotifyBinder for Bell {
    fn bind(&self, _addr: u64, _len: u32, fd: &EventFd) -> std::io::Result<()> {
        *self.0.lock().unwrap() = Some(fd.try_clone().unwrap());
        Ok(())
    }
    fn unbind(&self, _addr: u64, _len: u32, _fd: &EventFd) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_doorbell_wakes_a_real_thread_that_sleeps() {
    let options = IoThreadOptions { poll_max_ns: 0, ..IoThreadOptions::default() };
    let thread = IoThread::spawn("disk-test", options).unwrap();
    let made = thread.handle().call_blocking(|graph| async move {
        let disk = SimDisk::new(graph.executor(), SimOptions::new(LEN, 1).instant());
        let node = graph.add(Some("node0"), disk, NodeOptions::default()).await.unwrap();
        let perms = EdgePerms::READ_WRITE;
        graph
            .add_backend(BackendKind::Device, "disk0", &node, perms)
            .map(std::mem::forget)
            .unwrap();
    });
    made.unwrap();
    let control = Executor::new(Clock::real()).unwrap();
    let config = VirtioBlkConfig { queue_size: testing::QUEUE_SIZE, ..Default::default() };
    let blk = control.block_on(VirtioBlk::new(config, "disk0", &thread.handle())).unwrap();
    let (bell, machine) = (Arc::new(Bell::default()), Arc::new(testing::Machine::default()));
    let resources = VirtioPciResources {
        memory: memory(),
        msi: machine.clone(),
        line: machine.clone(),
        gsi: 11,
        binder: bell.clone(),
    };
    let memory = resources.memory.clone();
    let device = VirtioPci::new("disk0", Box::new(blk), resources).unwrap();
    device.lock().unwrap().bar_moved(0, Some(0xc000_0000));
    // The rig's own disk is not used: only its way of driving a device is.
    let rig = Rig::new(&Storage::new(SimOptions::new(LEN, 1)), VirtioBlkConfig::default());
    let drivers = vec![Driver::new(&memory, 0x1000, testing::QUEUE_SIZE, true)];
    let mut rig = Rig { device, machine, drivers, memory, ..rig };
    rig.start(0);
    for round in 1..=20 {
        // Long enough to fall asleep: then only the bell helps.
        std::thread::sleep(std::time::Duration::from_millis(2));
        rig.simple(0, 0, IN, 0, Data::From(512));
        if rig.drivers[0].must_kick(1) {
            bell.0.lock().unwrap().as_ref().unwrap().write(1).unwrap();
        }
        let start = Clock::real();
        let deadline = start.now() + 10_000_000_000;
        while rig.drivers[0].used_index() != round {
            assert!(start.now() < deadline, "round {round} was never served");
            std::thread::yield_now();
        }
    }
    rig.write(0x14, &[0]);
    assert_eq!(rig.status(), 0, "a reset of an idle device is done at once");
    drop(rig);
    thread.stop().unwrap();
}
