use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestMemoryBackend};

use super::*;

const MIB: u64 = 1 << 20;

fn file(len: u64) -> OwnedFd {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file.into()
}

fn layout(guest: u64, size: u64, user: u64, offset: u64) -> RegionLayout {
    RegionLayout { guest, size, user, offset }
}

fn table() -> (UnixStream, MemoryTable) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let table = MemoryTable::new(ours.as_raw_fd());
    drop(theirs);
    (ours, table)
}

#[test]
fn what_cannot_be_is_refused() {
    let (_socket, mut table) = table();
    let max = !(PAGE - 1);
    for (region, len) in [
        (layout(0, 0, 0, 0), MIB),
        (layout(0, MIB + PAGE, 0, 0), MIB),
        (layout(0, MIB, 0, PAGE), MIB),
        (layout(0, MIB, 0, max), MIB),
        (layout(max, MIB, 0, 0), MIB),
        (layout(0, MIB, max, 0), MIB),
        (layout(1, PAGE, 0, 0), MIB),
        (layout(0, PAGE + 1, 0, 0), MIB),
        (layout(0, PAGE, 0, 1), MIB),
        (layout(0, max, 0, 0), MIB),
    ] {
        assert!(table.add(region, file(len)).is_err(), "{region:x?}");
    }
    let (end, _other) = UnixStream::pair().unwrap();
    assert!(table.add(layout(0, PAGE, 0, 0), end.into()).is_err(), "a socket is no memory");
    assert!(table.is_empty() && table.memory().is_err());
    table.add(layout(MIB, MIB, MIB, 0), file(MIB)).unwrap();
    assert!(table.add(layout(2 * MIB - PAGE, MIB, 0, 0), file(MIB)).is_err(), "overlaps");
    for place in 1..MAX_REGIONS as u64 {
        table.add(layout((1 + place) * MIB, PAGE, 0, 0), file(PAGE)).unwrap();
    }
    assert!(table.add(layout(MIB << 10, PAGE, 0, 0), file(PAGE)).is_err(), "one too many");
}

#[test]
fn addresses_and_removal() {
    let (_socket, mut table) = table();
    let (low, high) = (layout(0, MIB, 0x1000_0000, 0), layout(4 * MIB, MIB, 0x2000_0000, PAGE));
    table.add(high, file(2 * MIB)).unwrap();
    table.add(low, file(MIB)).unwrap();
    assert_eq!(table.guest_address(0x1000_0000), Some(0));
    assert_eq!(table.guest_address(0x200f_ffff), Some(5 * MIB - 1));
    assert_eq!(table.guest_address(0x2010_0000), None);
    let memory = table.memory().unwrap();
    memory.write_obj(7_u8, GuestAddress(4 * MIB)).unwrap();
    assert_eq!(memory.num_regions(), 2);
    assert!(table.remove(&layout(0, MIB, 0, 0)).is_err(), "another place of the front end's");
    table.remove(&layout(0, MIB, 0x1000_0000, PAGE)).unwrap();
    assert_eq!(table.guest_address(0x1000_0000), None);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(4 * MIB)).unwrap(), 7, "still mapped");
}

#[test]
fn an_address_far_behind_a_region_is_in_none() {
    let (_socket, mut table) = table();
    table.add(layout(1 << 63, PAGE, 0, 0), file(PAGE)).unwrap();
    assert_eq!(table.guest_address(1 << 63), None);
}

#[test]
fn memory_that_is_taken_away_harms_nobody() {
    let (ours, mut table) = table();
    let file = File::from(file(MIB));
    table.add(layout(0, MIB, 0, 0), file.try_clone().unwrap().into()).unwrap();
    let memory = table.memory().unwrap();
    memory.write_obj(7_u8, GuestAddress(PAGE)).unwrap();
    assert!(!table.is_lost());
    file.set_len(PAGE).unwrap();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(PAGE)).unwrap(), 0);
    memory.write_obj(9_u8, GuestAddress(MIB - 1)).unwrap();
    assert!(table.is_lost());
    let hung_up = std::io::Write::write(&mut &ours, &[0]);
    assert_eq!(hung_up.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}
