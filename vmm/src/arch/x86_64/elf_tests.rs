//! Kernels in several forms, small and broken.

use std::io::Write;

use super::*;
use crate::testing::{PvhKernel, elf_note, narrow_elf};

fn file(contents: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(contents).unwrap();
    file
}

#[test]
fn what_the_loader_reads_is_left_alone() {
    for with_note in [false, true] {
        let kernel = file(&PvhKernel::new().print("x").elf(with_note));
        assert!(rewritten(&kernel, 1 << 20).unwrap().is_none());
    }
}

/// Nothing else starts it in its own mode, and whoever built it for Multiboot must learn why it does not run.
#[test]
fn a_narrow_kernel_that_pvh_cannot_start_is_refused() {
    let note = |notes: &[u8]| {
        narrow_elf(&[(PT_NOTE, 0, notes.to_vec()), (PT_LOAD, 0x10_0000, vec![0x90; 8])])
    };
    let other_note = note(&elf_note(b"GNU\0", 3, &[2; 20]));
    let no_note = narrow_elf(&[(PT_LOAD, 0x10_0000, vec![0x90; 8])]);
    for kernel in [other_note, no_note] {
        let refused = rewritten(&file(&kernel), 1 << 20).unwrap_err();
        assert!(refused.to_string().contains("without a PVH entry note"), "{refused}");
    }
    let pvh = note(&elf_note(b"Xen\0", 18, &0x10_0004_u32.to_le_bytes()));
    assert!(rewritten(&file(&pvh), 1 << 20).unwrap().is_some());
}

#[test]
fn a_kernel_of_the_other_byte_order_is_left_to_the_loader() {
    let pvh = elf_note(b"Xen\0", 18, &0x10_0004_u32.to_le_bytes());
    let mut kernel = narrow_elf(&[(PT_NOTE, 0, pvh), (PT_LOAD, 0x10_0000, vec![0x90; 8])]);
    kernel[5] = 2;
    assert!(rewritten(&file(&kernel), 1 << 20).unwrap().is_none());
}

#[test]
fn a_narrow_kernel_becomes_a_wide_one_with_the_note_that_counts() {
    let pvh = elf_note(b"Xen\0", 18, &0x10_0004_u32.to_le_bytes());
    let others = [elf_note(b"GNU\0", 5, &[1; 17]), elf_note(b"Xen\0", 6, b"linux\0"), pvh].concat();
    let kernel = narrow_elf(&[
        (PT_NOTE, 0, others.clone()),
        (PT_LOAD, 0x10_0000, vec![0x90; 100]),
        (0x6474_e551, 0, Vec::new()),
        (PT_NOTE, 0, elf_note(b"GNU\0", 3, &[2; 20])),
    ]);
    let wide = file(&rewritten(&file(&kernel), 1 << 20).unwrap().unwrap());
    assert!(rewritten(&wide, 1 << 20).unwrap().is_none(), "the loader can read it");
    let mut header = [0; HEADER];
    wide.read_exact_at(&mut header, 0).unwrap();
    let elf = read(&wide, &header).unwrap().unwrap();
    assert_eq!(elf.entry, 0x10_0000);
    let shapes: Vec<_> = elf.segments.iter().map(|s| (s.kind, s.address, s.memory)).collect();
    assert_eq!(shapes, [(PT_NOTE, 0, others.len() as u64 + 8), (PT_LOAD, 0x10_0000, 108)]);
    for (segment, expected) in elf.segments.iter().zip([others, vec![0x90; 100]]) {
        let mut contents = vec![0; expected.len()];
        wide.read_exact_at(&mut contents, segment.offset).unwrap();
        assert_eq!((segment.bytes, contents), (expected.len() as u64, expected));
    }
}

#[test]
fn every_damaged_byte_is_an_answer_and_never_worse() {
    let pvh = elf_note(b"Xen\0", 18, &[0; 4]);
    let kernel = narrow_elf(&[(PT_NOTE, 0, pvh), (PT_LOAD, 0x10_0000, vec![0x90; 8])]);
    for at in 4..kernel.len() {
        for value in [0, 1, 2, 0x7f, 0xff] {
            let mut damaged = kernel.clone();
            damaged[at] = value;
            // Whatever is said, it is said without a panic and within the limit.
            if let Ok(Some(wide)) = rewritten(&file(&damaged), 4096) {
                assert!(wide.len() <= HEADER + 0xffff * PROGRAM_HEADER + 4096);
            }
        }
    }
    let large = rewritten(&file(&kernel), 8).unwrap_err();
    assert!(large.to_string().contains("larger than the memory"), "{large}");
}
