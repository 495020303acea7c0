use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use ferry_block::Clock;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::MemoryTable;
use crate::wire::RegionLayout;

fn file(len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file
}

#[test]
fn written_pages_get_into_the_log_in_time() {
    let (socket, _other) = UnixStream::pair().unwrap();
    let number = socket.as_raw_fd();
    let mut table = MemoryTable::new(number);
    for (guest, user) in [(0, 0), (128 * PAGE, 64 * PAGE)] {
        let region = RegionLayout { guest, size: 64 * PAGE, user, offset: 0 };
        table.add(region, file(64 * PAGE).into()).unwrap();
    }
    table.memory().unwrap().write_obj(1_u8, GuestAddress(0)).unwrap();
    table.track(true).unwrap();
    let bits = file(8192);
    // Too short for the last pages, which are not logged then.
    let log = DirtyLog::map(bits.try_clone().unwrap().into(), 20, 4096, number).unwrap();
    let executor = Executor::new(Clock::simulated()).unwrap();
    let logging = Logging::start(&executor, Rc::new(log), table.mapped());
    let memory = table.memory().unwrap();
    let logged = || {
        let mut bytes = [0; 24];
        bits.read_exact_at(&mut bytes, 4096).unwrap();
        let bit = |page: &usize| bytes[page / 8] & (1 << (page % 8)) != 0;
        (0..192).filter(bit).collect::<Vec<_>>()
    };
    memory.write_slice(&[1; 2], GuestAddress(3 * PAGE - 1)).unwrap();
    memory.write_obj(1_u8, GuestAddress(130 * PAGE)).unwrap();
    memory.write_obj(1_u8, GuestAddress(191 * PAGE)).unwrap();
    assert_eq!(logged(), [0; 0]);
    executor.advance(INTERVAL);
    assert_eq!(logged(), [2, 3, 130]);
    memory.write_obj(1_u8, GuestAddress(5 * PAGE)).unwrap();
    logging.carry_over();
    assert_eq!(logged(), [2, 3, 5, 130]);
    memory.write_obj(1_u8, GuestAddress(6 * PAGE)).unwrap();
    drop(logging);
    assert_eq!(logged(), [2, 3, 5, 6, 130]);
    executor.run_until_stalled();
}

#[test]
fn a_log_stays_within_its_file() {
    for (size, offset) in [(0, 0), (4097, 0), (4096, 4096), (4096, u64::MAX - 4095), (u64::MAX, 0)]
    {
        assert!(DirtyLog::map(file(4096).into(), size, offset, 0).is_err(), "{size} {offset}");
    }
}
