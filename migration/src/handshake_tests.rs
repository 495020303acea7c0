use super::*;

fn facts() -> Facts {
    Facts {
        software: "ferry 0.1.0".into(),
        machine: "pc-1".into(),
        page_size: 4096,
        vcpus: 2,
        memory: vec![MemoryRange { start: 0, len: 1 << 30 }],
        devices: vec![DeviceFact {
            id: "sda".into(),
            kind: "virtio-blk".into(),
            address: "0000:00:04.0".into(),
        }],
        disks: vec![DiskFact { id: "sda".into(), size: 1 << 20, read_only: false }],
    }
}

#[test]
fn equal_machines_agree_whatever_the_software_version() {
    let newer = Facts { software: "ferry 0.2.0".into(), ..facts() };
    Facts::compare(&facts(), &newer).unwrap();
    assert_eq!(Facts::decode(&facts().encode().unwrap()).unwrap(), facts());
}

#[test]
fn every_difference_is_named_with_both_values() {
    let mut other = facts();
    other.machine = "pc-2".into();
    other.vcpus = 4;
    other.memory[0].len = 1 << 29;
    other.disks[0].size = 512;
    other.devices[0].id = "sdb".into();
    let error = Facts::compare(&facts(), &other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert_eq!(
        error.to_string(),
        "the destination is another machine: machine type: source pc-1, destination pc-2; \
         vCPUs: source 2, destination 4; \
         memory: source 1048576 KiB at 0x0, destination 524288 KiB at 0x0; \
         device 'sda': source virtio-blk at 0000:00:04.0, destination none; \
         device 'sdb': source none, destination virtio-blk at 0000:00:04.0; \
         disk 'sda': source 1048576 bytes, destination 512 bytes"
    );
}

#[test]
fn a_read_only_disk_does_not_match_a_writable_one() {
    let mut other = facts();
    other.disks[0].read_only = true;
    assert!(Facts::compare(&facts(), &other).is_err());
}

#[test]
fn foreign_and_damaged_preludes_are_told_apart() {
    let good = Prelude::OURS.encode();
    assert_eq!(Prelude::decode(good).unwrap(), Prelude::OURS);
    let foreign = Prelude::decode(*b"GET / HTTP/1.1\r\n").unwrap_err();
    assert!(foreign.to_string().contains("does not speak"));
    for at in 8..PRELUDE_LEN {
        let mut bad = good;
        bad[at] ^= 1;
        assert!(Prelude::decode(bad).unwrap_err().to_string().contains("damaged"));
    }
}

#[test]
fn versions_overlap_or_both_ranges_are_named() {
    let ours = Prelude { newest: 3, oldest: 2 };
    assert_eq!(ours.agree(Prelude { newest: 9, oldest: 1 }).unwrap(), 3);
    assert_eq!(ours.agree(Prelude { newest: 2, oldest: 1 }).unwrap(), 2);
    let error = ours.agree(Prelude { newest: 1, oldest: 1 }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no common protocol version: this side speaks 2..=3, the peer 1..=1"
    );
}

#[test]
fn oversized_descriptions_are_refused() {
    let mut large = facts();
    large.vcpus = MAX_VCPUS + 1;
    assert!(large.encode().is_err());
    let mut body = Vec::new();
    ciborium::into_writer(&large, &mut body).unwrap();
    assert!(Facts::decode(&body).is_err());
}
