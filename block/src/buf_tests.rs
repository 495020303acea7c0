use std::cell::RefCell;

use super::*;

/// Three allocations presented as one scatter list, recording what was written.
struct Recorder {
    parts: Vec<IoBuf>,
    written: RefCell<Vec<usize>>,
}

impl BufOwner for Recorder {
    fn written(&self, start: NonNull<u8>, len: usize) {
        let part = self.parts.iter().position(|part| {
            let (base, size) = part.single().unwrap();
            (base.addr()..base.addr() + size).contains(&start.addr().get())
        });
        self.written.borrow_mut().extend([part.unwrap(), len]);
    }
}

fn scattered(lens: &[usize]) -> (IoBuf, Rc<Recorder>) {
    let parts: Vec<IoBuf> = lens.iter().map(|len| IoBuf::alloc(*len)).collect();
    let owner = Rc::new(Recorder { parts, written: RefCell::default() });
    let segments: Vec<_> = owner
        .parts
        .iter()
        .map(|part| part.single().unwrap())
        .map(|(start, len)| (NonNull::new(start).unwrap(), len))
        .collect();
    // SAFETY: the recorder owns the parts and is the owner of the buffer.
    let buf = unsafe { IoBuf::from_segments(segments, owner.clone()) };
    (buf, owner)
}

#[test]
fn slices_of_a_scatter_list_read_and_write_the_right_bytes() {
    let (buf, _owner) = scattered(&[3, 5, 8]);
    let bytes: Vec<u8> = (1..=16).collect();
    buf.copy_from(&bytes);
    for start in 0..=16 {
        for end in start..=16 {
            let slice = buf.slice(start..end);
            assert_eq!(slice.to_vec(), bytes[start..end]);
            let other = IoBuf::alloc(end - start);
            other.copy_from_buf(&slice);
            assert_eq!(other.to_vec(), bytes[start..end]);
        }
    }
    buf.slice(2..9).fill_zero();
    let after = buf.to_vec();
    assert_eq!(after[..3], [1, 2, 0]);
    assert!(after[2..9].iter().all(|byte| *byte == 0));
    assert_eq!(after[9..], bytes[9..]);
}

#[test]
fn the_owner_hears_every_piece_that_was_written() {
    let (buf, owner) = scattered(&[4, 4, 4]);
    buf.slice(3..9).copy_from(&[7; 6]);
    assert_eq!(*owner.written.borrow(), [0, 1, 1, 4, 2, 1]);
}

#[test]
fn the_owners_of_joined_buffers_hear_what_was_written_to_each() {
    let (first, first_owner) = scattered(&[4]);
    let (second, second_owner) = scattered(&[4, 4]);
    let joined = IoBuf::concat(&[first, second.slice(2..8)]);
    joined.slice(3..8).copy_from(&[7; 5]);
    assert_eq!(*first_owner.written.borrow(), [0, 1]);
    assert_eq!(*second_owner.written.borrow(), [0, 2, 1, 2]);
}

#[test]
fn zero_detection_looks_at_every_byte() {
    let buf = IoBuf::alloc(37);
    assert!(buf.is_zero());
    for at in 0..37 {
        buf.slice(at..at + 1).copy_from(&[1]);
        assert!(!buf.is_zero(), "byte {at}");
        assert!(buf.slice(0..at).is_zero() && buf.slice(at + 1..37).is_zero());
        buf.fill_zero();
    }
}

#[test]
fn a_slice_keeps_the_memory_alive() {
    let slice = IoBuf::from_vec(&[1, 2, 3, 4]).slice(1..3);
    assert_eq!(slice.to_vec(), [2, 3]);
}

#[test]
fn alignment_looks_at_addresses_and_lengths() {
    let buf = IoBuf::alloc(8192);
    assert!(buf.is_aligned(4096) && buf.slice(512..1024).is_aligned(512));
    assert!(!buf.slice(0..100).is_aligned(512) && !buf.slice(1..513).is_aligned(512));
}

#[test]
fn an_empty_buffer_is_harmless() {
    let buf = IoBuf::alloc(0);
    assert!(buf.is_empty() && buf.is_zero() && buf.to_vec().is_empty());
    assert_eq!(buf.segment_count(), 0);
}

#[test]
#[should_panic(expected = "slice leaves the buffer")]
fn a_slice_cannot_leave_the_buffer() {
    let buf = IoBuf::alloc(4).slice(1..3);
    drop(buf.slice(0..3));
}
