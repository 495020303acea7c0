//! Headers of QEMU that are replaced, and what a crash leaves of them.

use super::*;
use crate::format::qcow2::header::{BitmapsExtension, Version};
use crate::format::qcow2::test_rig::Rig;

/// The header that QEMU writes, with a backing file of this name.
fn qemus(rig: &Rig, more: &str, name: &str) -> Vec<u8> {
    let path = "other.qcow2";
    let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", more];
    if !name.is_empty() {
        arguments.extend(["-u", "-b", name, "-F", "raw"]);
    }
    arguments.extend([path, "1M"]);
    rig.qemu_img(&arguments);
    rig.bytes(path)[..65536].to_vec()
}

/// Every header that a crash can leave is the old one, or the new one.
fn survives(old: &[u8], new: &Header) -> bool {
    let before = Header::parse(old).unwrap();
    let mut there = old.to_vec();
    let mut steps = new.pieces(old, &new.serialise().unwrap()).unwrap();
    let last = steps.len() - 1;
    let is_known = |there: &[u8]| {
        let Ok(mut found) = Header::parse(there) else { return false };
        let mut known = [before.clone(), new.clone()];
        for header in known.iter_mut().chain([&mut found]) {
            header.extensions.feature_names.clear();
        }
        known.contains(&found)
    };
    for (number, (at, bytes)) in steps.drain(..).enumerate() {
        let sectors: Vec<_> = bytes.chunks(SECTOR).collect();
        assert!(sectors.len() < 12);
        for survivors in 0..1 << sectors.len() {
            let mut torn = there.clone();
            for (index, sector) in sectors.iter().enumerate() {
                if survivors >> index & 1 != 0 {
                    let start = at + index * SECTOR;
                    torn[start..start + sector.len()].copy_from_slice(sector);
                }
            }
            if !is_known(&torn) {
                return false;
            }
        }
        there[at..at + bytes.len()].copy_from_slice(&bytes);
        assert!(is_known(&there), "step {number} of {last}");
    }
    Header::parse(&there).unwrap() == Header::parse(&new.serialise().unwrap()).unwrap()
}

/// What changes when an image is written for the first time.
fn first_change(old: &[u8]) -> Header {
    let mut header = Header::parse(old).unwrap();
    if header.geometry.version() == Version::V3 {
        header.extensions.generation = Some(1);
        header.incompatible = header.incompatible.with(Incompatible::DIRTY, true);
    }
    header
}

#[test]
fn the_header_that_qemu_wrote_is_replaced_whole_or_not_at_all() {
    let Some(rig) = Rig::with_qemu() else { return };
    for more in ["cluster_size=64k", "cluster_size=64k,compat=0.10"] {
        for len in [0, 1, 5, 20, 23, 24, 25, 30, 31, 32, 60, 100, 200, 300] {
            let old = qemus(&rig, more, &"n".repeat(len));
            let new = first_change(&old);
            assert!(survives(&old, &new), "{more}, a name of {len} bytes");
            // And back to another name.
            let old = new.serialise().unwrap();
            for other in [0, 1, 40, 310] {
                let mut newer = new.clone();
                newer.backing_file = (other != 0).then(|| "m".repeat(other));
                newer.extensions.backing_format.take_if(|_| other == 0);
                assert!(survives(&old, &newer), "{more}, from {len} to {other} bytes");
            }
        }
    }
}

#[test]
fn what_changes_in_use_is_one_sector() {
    let Some(rig) = Rig::with_qemu() else { return };
    let header = first_change(&qemus(&rig, "cluster_size=64k", &"n".repeat(1000)));
    let old = header.serialise().unwrap();
    let mut new = header.clone();
    let bitmaps = BitmapsExtension { count: 1, directory_size: 32, directory_offset: 1 << 20 };
    new.extensions.bitmaps = Some(bitmaps);
    new.extensions.generation = Some(2);
    new.l1.offset += 1 << 20;
    let pieces = new.pieces(&old, &new.serialise().unwrap()).unwrap();
    assert_eq!(pieces.iter().map(|(at, bytes)| (*at, bytes.len())).collect::<Vec<_>>(), [(0, 512)]);
    assert!(survives(&old, &new));
}
