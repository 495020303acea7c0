#![expect(clippy::cast_possible_truncation, reason = "tests count small things")]

use vm_memory::Bytes;

use super::*;
use crate::GuestMemory;
use crate::virtio::queue::Ring;
use crate::virtio::testing::{Desc, Driver, HOLE, memory};

const ALL: u64 = features::BLK_DISCARD | features::BLK_WRITE_ZEROES;
const SECTORS: u64 = 1000;
const IN: u64 = 0x10_000;
const OUT: u64 = 0x20_000;

fn rules() -> Rules {
    Rules {
        len: SECTORS * SECTOR_LEN,
        read_only: false,
        features: ALL,
        id: *b"disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    }
}

/// Reads a request whose readable bytes are `bytes` and whose writable part has `room` bytes and a status,
/// each split into buffers of the given sizes, the last one again and again.
fn read_split(
    rules: &Rules,
    bytes: &[u8],
    room: u32,
    splits: (&[u32], &[u32]),
) -> (Result<Request, QueueError>, GuestMemory) {
    let memory = memory();
    memory.write_slice(bytes, GuestAddress(OUT)).unwrap();
    let mut driver = Driver::new(&memory, 0x1000, 256, false);
    let mut descs = split(OUT, bytes.len() as u32, splits.0, Desc::readable);
    descs.extend(split(IN, room + 1, splits.1, Desc::writable));
    let head = driver.chain(&descs);
    driver.offer(head);
    let mut ring = Ring::new(driver.state(), true, &memory).unwrap();
    let mut chain = Chain::new();
    assert!(ring.batch(&memory).unwrap().next(&mut chain).unwrap());
    (Request::read(&chain, &GuestBuffers::new(memory.clone()), rules), memory)
}

fn split(base: u64, len: u32, sizes: &[u32], desc: fn(u64, u32) -> Desc) -> Vec<Desc> {
    let mut descs = Vec::new();
    let mut done = 0;
    while done < len {
        let size = sizes.get(descs.len()).or(sizes.last()).copied().unwrap_or(len).min(len - done);
        descs.push(desc(base + u64::from(done), size));
        done += size;
    }
    descs
}

fn read(rules: &Rules, bytes: &[u8], room: u32) -> Op {
    read_split(rules, bytes, room, (&[], &[])).0.unwrap().op
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0xff; 4]); // "reserved": ignored
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn ranges(kind: u32, list: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut bytes = header(kind, 0);
    for (sector, sectors, flags) in list {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bytes
}

fn status(op: &Op) -> Status {
    match op {
        Op::Done { status, .. } => *status,
        other => panic!("went to the disk: {other:?}"),
    }
}

#[test]
fn any_framing_is_the_same_request() {
    let mut bytes = header(TYPE_OUT, 7);
    bytes.extend((0..1024u32).map(|n| n as u8));
    for sizes in [&[][..], &[16], &[1], &[15, 2, 100], &[17], &[3, 13, 512]] {
        let (request, _) = read_split(&rules(), &bytes[..16 + 512], 0, (sizes, &[]));
        // One byte each needs more descriptors than the queue has.
        let sizes_of_header = if sizes == [1] { &[1, 1, 1, 14, 512][..] } else { sizes };
        let (long, _) = read_split(&rules(), &bytes, 0, (sizes_of_header, &[]));
        let expect = |request: Request, len: usize| match request.op {
            Op::Write { at, from } => {
                assert_eq!((at, from.to_vec()), (7 * 512, bytes[16..16 + len].to_vec()));
            }
            other => panic!("{other:?}"),
        };
        if sizes != [1] {
            expect(request.unwrap(), 512);
        }
        expect(long.unwrap(), 1024);
    }
    for sizes in [&[][..], &[512], &[1024], &[1000, 20, 4], &[1025], &[1023, 1]] {
        let (request, _) = read_split(&rules(), &header(TYPE_IN, 7), 1024, (&[], sizes));
        let request = request.unwrap();
        assert_eq!((request.room, request.status_at), (1024, GuestAddress(IN + 1024)));
        match request.op {
            Op::Read { at, into } => assert_eq!((at, into.len()), (7 * 512, 1024)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn transfers_stay_on_the_disk_and_are_whole_sectors() {
    let rules = rules();
    for kind in [TYPE_IN, TYPE_OUT] {
        let check = |sector: u64, len: u32| {
            let mut bytes = header(kind, sector);
            let room = if kind == TYPE_IN { len } else { 0 };
            bytes.resize(bytes.len() + (len - room) as usize, 0);
            read(&rules, &bytes, room)
        };
        for (sector, len) in [(0, 512), (SECTORS - 2, 1024), (0, 512_000)] {
            assert!(
                matches!(check(sector, len), Op::Read { .. } | Op::Write { .. }),
                "{sector} {len}"
            );
        }
        for (sector, len) in [
            (SECTORS, 512),
            (SECTORS - 1, 1024),
            (SECTORS + 1, 0),
            (0, 1),
            (0, 511),
            (0, 513),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (u64::MAX / 512 + 1, 512),
        ] {
            assert_eq!(status(&check(sector, len)), Status::IoErr, "{sector} {len}");
        }
        assert_eq!(status(&check(SECTORS, 0)), Status::Ok, "no bytes at the very end");
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let rules = Rules { read_only: true, ..rules() };
    let mut bytes = header(TYPE_OUT, 0);
    bytes.resize(16 + 512, 0);
    assert_eq!(status(&read(&rules, &bytes, 0)), Status::IoErr);
    assert_eq!(status(&read(&rules, &ranges(TYPE_DISCARD, &[(0, 1, 0)]), 0)), Status::IoErr);
    assert_eq!(status(&read(&rules, &ranges(TYPE_WRITE_ZEROES, &[(0, 1, 0)]), 0)), Status::IoErr);
    assert!(matches!(read(&rules, &header(TYPE_FLUSH, 0), 0), Op::Flush));
}

#[test]
fn the_identifier_is_cut_to_the_room_there_is() {
    for (room, written) in [(0, 0), (3, 3), (20, 20), (21, 20), (100, 20)] {
        let (request, memory) = read_split(&rules(), &header(TYPE_GET_ID, 0), room, (&[], &[7]));
        match request.unwrap().op {
            Op::Done { status: Status::Ok, written: count } => assert_eq!(count, written),
            other => panic!("{other:?}"),
        }
        let mut bytes = vec![0xee; room as usize];
        memory.read_slice(&mut bytes, GuestAddress(IN)).unwrap();
        let count = (room as usize).min(20);
        assert_eq!(bytes[..count], rules().id[..count]);
    }
}

#[test]
fn discards_and_zeroes_are_checked_segment_by_segment() {
    let rules = rules();
    match read(&rules, &ranges(TYPE_WRITE_ZEROES, &[(1, 2, 1), (9, 0, 0), (999, 1, 0)]), 0) {
        Op::WriteZeroes(list) => assert_eq!(
            list,
            [
                ZeroRange { range: 512..1536, unmap: true },
                ZeroRange { range: 999 * 512..1000 * 512, unmap: false },
            ],
        ),
        other => panic!("{other:?}"),
    }
    assert!(matches!(read(&rules, &ranges(TYPE_DISCARD, &[(1, 2, 0)]), 0), Op::Discard(_)));
    for (kind, list, expected) in [
        (TYPE_DISCARD, vec![(0, 1, 1)], Status::Unsupported),
        (TYPE_WRITE_ZEROES, vec![(0, 1, 2)], Status::Unsupported),
        (TYPE_DISCARD, vec![(0, 1, 0), (0, 1, 1 << 31)], Status::Unsupported),
        (TYPE_DISCARD, vec![(999, 2, 0)], Status::IoErr),
        (TYPE_DISCARD, vec![(u64::MAX, 1, 0)], Status::IoErr),
        (TYPE_DISCARD, vec![(0, u32::MAX, 0)], Status::IoErr),
        (TYPE_DISCARD, vec![], Status::IoErr),
        (TYPE_DISCARD, vec![(0, 1, 0); 17], Status::IoErr),
    ] {
        assert_eq!(status(&read(&rules, &ranges(kind, &list), 0)), expected, "{kind} {list:?}");
    }
    let mut odd = ranges(TYPE_DISCARD, &[(0, 1, 0)]);
    odd.push(0);
    assert_eq!(status(&read(&rules, &odd, 0)), Status::IoErr);
    assert!(matches!(read(&rules, &ranges(TYPE_DISCARD, &[(0, 1, 0); 16]), 0), Op::Discard(_)));
}

#[test]
fn what_we_do_not_have_is_unsupported() {
    for kind in [2, 3, 5, 10, 14, 15, 16, 0x8000_0000, u32::MAX] {
        assert_eq!(status(&read(&rules(), &header(kind, 0), 512)), Status::Unsupported, "{kind}");
    }
    let without = Rules { features: 0, ..rules() };
    for kind in [TYPE_DISCARD, TYPE_WRITE_ZEROES] {
        assert_eq!(status(&read(&without, &ranges(kind, &[(0, 1, 0)]), 0)), Status::Unsupported);
    }
}

#[test]
fn no_header_or_no_status_breaks_the_device() {
    let (short, _) = read_split(&rules(), &header(TYPE_FLUSH, 0)[..15], 0, (&[], &[]));
    assert!(matches!(short, Err(QueueError::Truncated(_))));
    let memory = memory();
    let mut driver = Driver::new(&memory, 0x1000, 16, false);
    let mut ring = Ring::new(driver.state(), true, &memory).unwrap();
    let mut read = |descs: &[Desc]| {
        let head = driver.chain(descs);
        driver.offer(head);
        let mut chain = Chain::new();
        assert!(ring.batch(&memory).unwrap().next(&mut chain).unwrap());
        Request::read(&chain, &GuestBuffers::new(memory.clone()), &rules()).map(|_request| ())
    };
    let no_status = read(&[Desc::readable(OUT, 16)]);
    assert!(matches!(no_status, Err(QueueError::Truncated(_))));
    let nothing_readable = read(&[Desc::writable(IN, 17)]);
    assert!(matches!(nothing_readable, Err(QueueError::Truncated(_))));
    let data_outside =
        read(&[Desc::readable(OUT, 16), Desc::writable(HOLE, 512), Desc::writable(IN, 1)]);
    assert!(matches!(data_outside, Err(QueueError::BufferOutOfMemory(_))));
    let status_outside =
        read(&[Desc::readable(OUT, 16), Desc::writable(IN, 512), Desc::writable(HOLE, 1)]);
    assert!(matches!(status_outside, Err(QueueError::BufferOutOfMemory(_))));
}
