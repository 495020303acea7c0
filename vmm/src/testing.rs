//! Guests of a few instructions, for tests.

use std::path::Path;

/// Whether tests may create virtual machines. Says so when they cannot.
pub(crate) fn has_kvm() -> bool {
    let there = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !there {
        eprintln!("skipped: {} cannot be opened", Path::new("/dev/kvm").display());
    }
    there
}

/// Where the image is loaded.
const LOAD_AT: u32 = 0x10_0000;
const HEADER: u16 = 0x40;
const PROGRAM_HEADER: u16 = 0x38;
const NOTE: usize = 20;
const CODE_AT: usize = 0x1000;

/// A PVH kernel put together from 32-bit machine code.
#[derive(Clone, Default)]
pub(crate) struct PvhKernel {
    code: Vec<u8>,
}

impl PvhKernel {
    pub(crate) fn new() -> PvhKernel {
        PvhKernel::default()
    }

    /// Append machine code.
    pub(crate) fn raw(mut self, code: &[u8]) -> PvhKernel {
        self.code.extend_from_slice(code);
        self
    }

    /// `mov dx, port; mov al, value; out dx, al`
    pub(crate) fn out8(self, port: u16, value: u8) -> PvhKernel {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xba, low, high, 0xb0, value, 0xee])
    }

    /// Send text to the serial port.
    pub(crate) fn print(self, text: &str) -> PvhKernel {
        text.bytes().fold(self, |kernel, byte| kernel.out8(0x3f8, byte))
    }

    /// Write the sleep registers: `mov dx, port; mov ax, value; out dx, ax`, and stay there.
    pub(crate) fn power_off(self) -> PvhKernel {
        self.raw(&[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef]).stay()
    }

    /// Print 0 to 9 over and over, one digit at a time:
    /// `mov dx, 0x3f8; mov al, '0'; 1: out dx, al; inc al; cmp al, ':'; jne 1b; jmp 0b`
    pub(crate) fn print_digits_for_ever(self) -> PvhKernel {
        let start = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'0'];
        self.raw(&start).raw(&[0xee, 0xfe, 0xc0, 0x3c, b':', 0x75, 0xf9, 0xeb, 0xf5])
    }

    /// Send back what arrives at the serial port:
    /// `mov dx, 0x3fd; 1: in al, dx; test al, 1; jz 1b; mov dx, 0x3f8; in al, dx; out dx, al; jmp 0b`
    pub(crate) fn echo(self) -> PvhKernel {
        self.raw(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 1, 0x74, 0xfb])
            .raw(&[0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0xeb, 0xef])
    }

    /// Print 'A' at the first start and the next letter at each later one, while memory keeps what it holds:
    /// `inc byte [0x800000]; mov al, [0x800000]; add al, '@'; mov dx, 0x3f8; out dx, al`
    pub(crate) fn count_starts(self) -> PvhKernel {
        self.raw(&[0xfe, 0x05, 0, 0, 0x80, 0, 0xa0, 0, 0, 0x80, 0, 0x04, b'@'])
            .raw(&[0x66, 0xba, 0xf8, 0x03, 0xee])
    }

    /// `jmp .`
    pub(crate) fn stay(self) -> PvhKernel {
        self.raw(&[0xeb, 0xfe])
    }

    /// The ELF file: one segment and, if wanted, a note with the entry point.
    pub(crate) fn elf(self, with_note: bool) -> Vec<u8> {
        let headers = if with_note { 2u16 } else { 1 };
        let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        elf.extend(2u16.to_le_bytes());
        elf.extend(0x3eu16.to_le_bytes());
        elf.extend(1u32.to_le_bytes());
        elf.extend(u64::from(LOAD_AT).to_le_bytes());
        elf.extend(u64::from(HEADER).to_le_bytes());
        elf.extend(0u64.to_le_bytes());
        elf.extend(0u32.to_le_bytes());
        for half in [HEADER, PROGRAM_HEADER, headers, 0, 0, 0] {
            elf.extend(half.to_le_bytes());
        }
        program_header(&mut elf, 1, CODE_AT, LOAD_AT, self.code.len());
        if with_note {
            let note = usize::from(HEADER + 2 * PROGRAM_HEADER);
            program_header(&mut elf, 4, note, 0, NOTE);
            for word in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), LOAD_AT] {
                elf.extend(word.to_le_bytes());
            }
        }
        elf.resize(CODE_AT, 0);
        elf.extend(self.code);
        elf
    }
}

fn program_header(elf: &mut Vec<u8>, kind: u32, offset: usize, at: u32, len: usize) {
    elf.extend(kind.to_le_bytes());
    elf.extend(7u32.to_le_bytes());
    for value in [offset as u64, at.into(), at.into(), len as u64, len as u64, 0] {
        elf.extend(value.to_le_bytes());
    }
}

/// An ELF note.
pub(crate) fn elf_note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [u32::try_from(name.len()).unwrap(), u32::try_from(desc.len()).unwrap(), kind] {
        note.extend(word.to_le_bytes());
    }
    for part in [name, desc] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// A 32-bit ELF file of these segments: kind, address, contents.
pub(crate) fn narrow_elf(segments: &[(u32, u32, Vec<u8>)]) -> Vec<u8> {
    let count = u8::try_from(segments.len()).unwrap();
    let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
    elf.resize(16, 0);
    for word in [0x0003_0002, 1, 0x10_0000, 52, 0, 0] {
        elf.extend(u32::to_le_bytes(word));
    }
    elf.extend([52, 0, 32, 0, count, 0, 0, 0, 0, 0, 0, 0]);
    let mut offset = 52 + 32 * u32::from(count);
    for (kind, address, contents) in segments {
        let len = u32::try_from(contents.len()).unwrap();
        for word in [*kind, offset, *address, *address, len, len + 8, 7, 4] {
            elf.extend(word.to_le_bytes());
        }
        offset += len;
    }
    segments.iter().for_each(|(_, _, contents)| elf.extend(contents));
    elf
}
