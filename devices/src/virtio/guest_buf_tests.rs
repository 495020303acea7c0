use super::*;
use crate::virtio::queue::Ring;
use crate::virtio::testing::{Desc, Driver, END, HIGH, HOLE, LOW, memory};

fn segment(addr: u64, len: u32) -> Segment {
    Segment { addr: GuestAddress(addr), len }
}

/// Guest-physical addresses of all pages marked dirty.
fn dirty(memory: &GuestMemory) -> Vec<u64> {
    let mut pages = Vec::new();
    for region in memory.iter() {
        for page in (0..region.size()).step_by(4096) {
            if region.bitmap().dirty_at(page) {
                pages.push(region.start_addr().0 + page as u64);
            }
        }
    }
    pages
}

#[test]
fn a_read_that_lands_marks_exactly_the_pages_it_touched() {
    let memory = memory();
    let buffers = GuestBuffers::new(memory.clone());
    let segments = [segment(0x1ff0, 0x20), segment(HIGH + 0x5000, 0x1000)];
    let buf = buffers.io_buf(0, &segments, 0, 0x1020).unwrap();
    assert!(dirty(&memory).is_empty());
    buf.copy_from(&[7; 0x1020]);
    assert_eq!(dirty(&memory), [0x1000, 0x2000, HIGH + 0x5000]);
    let mut bytes = [0; 0x22];
    memory.read_slice(&mut bytes, GuestAddress(0x1fef)).unwrap();
    assert_eq!((bytes[0], bytes[1], bytes[0x20], bytes[0x21]), (0, 7, 7, 0));
    buffers.write_byte(GuestAddress(HIGH), 9);
    assert!(dirty(&memory).contains(&HIGH));
}

#[test]
fn a_buffer_may_run_on_into_the_next_mapping() {
    let memory = memory();
    let buffers = GuestBuffers::new(memory.clone());
    let buf = buffers.io_buf(0, &[segment(LOW - 0x1000, 0x2000)], 0, 0x2000).unwrap();
    buf.copy_from(&[5; 0x2000]);
    assert_eq!(dirty(&memory), [LOW - 0x1000, LOW]);
    let byte: u8 = memory.read_obj(GuestAddress(LOW + 0xfff)).unwrap();
    assert_eq!(byte, 5);
}

#[test]
fn windows_skip_and_cut_across_buffers() {
    let memory = memory();
    for (at, byte) in (0..100u64).zip(0u8..) {
        memory.write_obj(byte, GuestAddress(0x1000 + at)).unwrap();
    }
    let buffers = GuestBuffers::new(memory);
    let segments = [segment(0x1000, 10), segment(0x1020, 10), segment(0x1040, 10)];
    let read = |skip, len| buffers.io_buf(0, &segments, skip, len).unwrap().to_vec();
    let all: Vec<u8> = (0..10).chain(32..42).chain(64..74).collect();
    for skip in 0..=30 {
        for len in 0..=30 - skip {
            assert_eq!(read(skip as u64, len as u64), all[skip..skip + len], "{skip} {len}");
        }
    }
}

#[test]
fn addresses_outside_of_memory_are_refused() {
    let buffers = GuestBuffers::new(memory());
    let outside = [
        (HOLE - 1, 2),
        (HOLE, 1),
        (HIGH - 1, 2),
        (END - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 10, u32::MAX),
        (0, u32::MAX),
    ];
    for (addr, len) in outside {
        let segments = [segment(0, 1), segment(addr, len)];
        let whole = u64::from(len) + 1;
        let error = buffers.io_buf(3, &segments, 0, whole).map(|_buf| ()).unwrap_err();
        assert_eq!(error, QueueError::BufferOutOfMemory(3), "{addr:#x} {len:#x}");
        let error =
            buffers.io_buf(3, &segments[1..], 0, u64::from(len)).map(|_buf| ()).unwrap_err();
        assert_eq!(error, QueueError::BufferOutOfMemory(3), "{addr:#x} {len:#x}");
    }
    // What is skipped need not be memory, and neither may an address wrap around while skipping.
    assert!(buffers.io_buf(0, &[segment(HOLE, 4), segment(0, 4)], 4, 4).is_ok());
    assert!(buffers.io_buf(0, &[segment(u64::MAX - 1, 16)], 8, 8).is_err());
}

#[test]
fn head_and_status_bytes_are_found_or_refused() {
    let memory = memory();
    let buffers = GuestBuffers::new(memory.clone());
    let mut driver = Driver::new(&memory, 0x1000, 16, false);
    let mut ring = Ring::new(driver.state(), true, &memory).unwrap();
    let mut read = |descs: &[Desc]| {
        let head = driver.chain(descs);
        driver.offer(head);
        let mut chain = Chain::new();
        assert!(ring.batch(&memory).unwrap().next(&mut chain).unwrap());
        chain
    };
    memory.write_slice(b"abcdefgh", GuestAddress(0x8000)).unwrap();
    let chain =
        read(&[Desc::readable(0x8002, 2), Desc::readable(0x8006, 1), Desc::writable(0x9000, 7)]);
    let mut bytes = [0; 3];
    buffers.read_head(&chain, &mut bytes).unwrap();
    assert_eq!(&bytes, b"cdg");
    assert!(matches!(buffers.read_head(&chain, &mut [0; 4]), Err(QueueError::Truncated(_))));
    assert_eq!(buffers.last_writable(&chain), Ok(GuestAddress(0x9006)));

    let chain = read(&[Desc::readable(HOLE - 1, 2)]);
    assert!(matches!(
        buffers.read_head(&chain, &mut bytes[..2]),
        Err(QueueError::BufferOutOfMemory(_))
    ));
    assert!(matches!(buffers.last_writable(&chain), Err(QueueError::Truncated(_))));
    let chain = read(&[Desc::writable(HOLE, 1)]);
    assert!(matches!(buffers.last_writable(&chain), Err(QueueError::BufferOutOfMemory(_))));
    let chain = read(&[Desc::writable(u64::MAX, 2)]);
    assert!(matches!(buffers.last_writable(&chain), Err(QueueError::BufferOutOfMemory(_))));
}
