//! RAM with a real virtual machine behind it.

use ferry_migration::ram::{GuestRam, RamMap, touched};
use vm_memory::Bytes;

use super::*;
use crate::testing::has_kvm;

const MIB: u64 = 1 << 20;

fn ram() -> Option<(Ram, RamMap)> {
    if !has_kvm() {
        return None;
    }
    let ram = Ram::new(&Vm::create().unwrap(), 16 * MIB).unwrap();
    let map = RamMap::new(Arc::new(ram.clone())).unwrap();
    Some((ram, map))
}

#[test]
fn what_a_device_writes_is_dirty_once() {
    let Some((ram, map)) = ram() else { return };
    ram.guest().write_obj(1u8, GuestAddress(0x1000)).unwrap();
    ram.start_dirty_log().unwrap();
    ram.guest().write_slice(&[1; 8192], GuestAddress(0x5800)).unwrap();
    let mut dirty = map.bitmap();
    ram.take_dirty(&map, &mut dirty).unwrap();
    let pages: Vec<u64> = (0..map.pages()).filter(|&page| dirty.contains(page)).collect();
    assert_eq!(pages, [5, 6, 7], "not what was written before the log began");

    let mut again = map.bitmap();
    ram.take_dirty(&map, &mut again).unwrap();
    assert!(again.is_empty());
    ram.stop_dirty_log().unwrap();
}

#[test]
fn forgotten_memory_reads_as_zero_and_is_dirty() {
    let Some((ram, map)) = ram() else { return };
    ram.guest().write_obj(7u64, GuestAddress(3 * MIB)).unwrap();
    ram.start_dirty_log().unwrap();
    ram.forget_contents().unwrap();
    assert_eq!(ram.guest().read_obj::<u64>(GuestAddress(3 * MIB)).unwrap(), 0);
    let mut dirty = map.bitmap();
    ram.take_dirty(&map, &mut dirty).unwrap();
    assert!(dirty.contains(3 * MIB / 4096));
}

#[test]
fn untouched_memory_is_known_to_be_so() {
    let Some((ram, map)) = ram() else { return };
    assert!(touched(&map).unwrap().is_empty());
    ram.guest().write_obj(1u8, GuestAddress(9 * MIB)).unwrap();
    let pages = touched(&map).unwrap();
    assert!(pages.contains(9 * MIB / 4096));
    // One page, or the huge page around it.
    assert!(pages.count() <= 512, "{} pages", pages.count());
}

#[test]
fn regions_are_aligned_as_the_guest_sees_them() {
    let Some((ram, _)) = ram() else { return };
    for region in ram.regions() {
        let host = region.host.as_ptr() as u64;
        assert_eq!(host % HUGE_PAGE as u64, region.start % HUGE_PAGE as u64);
    }
}
