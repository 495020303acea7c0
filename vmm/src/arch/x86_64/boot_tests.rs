//! Loading kernels into plain memory, without KVM.

use std::io::Write;

use tempfile::NamedTempFile;
use vm_memory::ByteValued;

use super::*;
use crate::arch::x86_64::layout::BOOT_PAGE_TABLES;
use crate::config::{OnReboot, SerialConfig};
use crate::testing::{PvhKernel, elf_note, narrow_elf};

const MIB: u64 = 1 << 20;

fn file(contents: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(contents).unwrap();
    file
}

fn config(kernel: &Path, initrd: Option<&Path>) -> Config {
    Config {
        name: None,
        kernel: Some(kernel.to_owned()),
        initrd: initrd.map(Path::to_owned),
        cmdline: "root=/dev/vda".to_owned(),
        memory: 16 * MIB,
        cpus: 1,
        disks: Vec::new(),
        serial: SerialConfig::None,
        qmp: None,
        incoming: None,
        paused: false,
        on_reboot: OnReboot::Exit,
    }
}

/// Load into `bytes` of memory.
fn load(kernel: &[u8], initrd: Option<&[u8]>, bytes: u64) -> Result<(Entry, GuestMemory)> {
    let (kernel, initrd) = (file(kernel), initrd.map(file));
    let initrd = initrd.as_ref().map(NamedTempFile::path);
    let files = BootFiles::open(&config(kernel.path(), initrd))?.expect("there is a kernel");
    let len = usize::try_from(bytes).unwrap();
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), len)]).unwrap();
    let entry = files.load(&memory, RamLayout::new(bytes))?;
    Ok((entry, memory))
}

fn read<T: ByteValued + Default>(memory: &GuestMemory, at: u64) -> T {
    memory.read_obj(GuestAddress(at)).unwrap()
}

fn bytes_at(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

/// A bzImage of one setup sector and `payload`.
fn bzimage(payload: &[u8], init_size: u32) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let header = setup_header {
        setup_sects: 1,
        boot_flag: 0xaa55,
        header: BZIMAGE_MAGIC,
        version: 0x020f,
        loadflags: 1,
        code32_start: 0x10_0000,
        initrd_addr_max: 0x7fff_ffff,
        pref_address: 0x20_0000,
        cmdline_size: 255,
        init_size,
        ..Default::default()
    };
    image[0x1f1..0x1f1 + header.as_slice().len()].copy_from_slice(header.as_slice());
    image.extend_from_slice(payload);
    image
}

#[test]
fn an_elf_with_the_note_starts_by_pvh() {
    let kernel = PvhKernel::new().print("x").elf(true);
    let (entry, memory) = load(&kernel, Some(&[7; 5000]), 16 * MIB).unwrap();
    assert_eq!(entry, Entry::Pvh { entry: 0x10_0000, start_info: BOOT_PVH });

    let info: hvm_start_info = read(&memory, BOOT_PVH);
    assert_eq!((info.magic, info.version, info.nr_modules), (PVH_MAGIC, 1, 1));
    assert_eq!(info.rsdp_paddr, 0xe_0000);
    assert_eq!(bytes_at(&memory, info.cmdline_paddr, 14), b"root=/dev/vda\0");
    let module: hvm_modlist_entry = read(&memory, info.modlist_paddr);
    assert_eq!((module.paddr, module.size), (16 * MIB - 8192, 5000));
    assert_eq!(bytes_at(&memory, module.paddr, 5000), [7; 5000]);
    let map: Vec<hvm_memmap_table_entry> = (0..u64::from(info.memmap_entries))
        .map(|index| read(&memory, info.memmap_paddr + 24 * index))
        .collect();
    let ram: u64 = map.iter().filter(|e| e.type_ == E820_RAM).map(|e| e.size).sum();
    assert_eq!(ram, 15 * MIB + LOW_RAM_HOLE);
    assert!(map.windows(2).all(|pair| pair[0].addr + pair[0].size <= pair[1].addr));
}

#[test]
fn a_32_bit_elf_starts_by_pvh_too() {
    let notes = elf_note(b"Xen\0", 18, &0x10_0010_u32.to_le_bytes());
    let other = elf_note(b"GNU\0", 3, &[0; 20]);
    let kernel = narrow_elf(&[(4, 0, notes), (1, 0x10_0000, vec![0x90; 100]), (4, 0, other)]);
    let (entry, memory) = load(&kernel, None, 16 * MIB).unwrap();
    assert_eq!(entry, Entry::Pvh { entry: 0x10_0010, start_info: BOOT_PVH });
    assert_eq!(bytes_at(&memory, 0x10_0000, 100), [0x90; 100]);
}

#[test]
fn an_elf_without_the_note_starts_in_long_mode() {
    let kernel = PvhKernel::new().stay().elf(false);
    let (entry, memory) = load(&kernel, None, 16 * MIB).unwrap();
    assert_eq!(entry, Entry::Linux64 { entry: 0x10_0000 });
    let params: boot_params = read(&memory, BOOT_PARAMS);
    assert_eq!({ params.hdr.boot_flag }, 0xaa55);
    assert_eq!(params.e820_entries, 5);
    // The last page of the identity map: 4 GiB less 2 MiB, present, writable, huge.
    let last: u64 = read(&memory, BOOT_PAGE_TABLES + 5 * 0x1000 + 8 * 511);
    assert_eq!(last, (4 << 30) - (2 << 20) + 0x83);
}

#[test]
fn a_bzimage_starts_by_the_linux_protocol() {
    let image = bzimage(&[0x90; 100], 0x10_0000);
    let (entry, memory) = load(&image, Some(b"initrd"), 16 * MIB).unwrap();
    assert_eq!(entry, Entry::Linux32 { entry: 0x10_0000 });
    assert_eq!(bytes_at(&memory, 0x10_0000, 100), [0x90; 100]);
    let params: boot_params = read(&memory, BOOT_PARAMS);
    let header = params.hdr;
    assert_eq!({ header.type_of_loader }, 0xff);
    assert_eq!(u64::from(header.cmd_line_ptr), BOOT_CMDLINE);
    assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0xff_f000, 6));
    assert_eq!({ params.acpi_rsdp_addr }, ACPI_START);
    // The kernel's own statement: one that looks no further than this must still see the end of the text.
    assert_eq!({ header.cmdline_size }, 255);
}

#[test]
fn a_command_line_longer_than_the_kernel_takes_is_refused() {
    let mut image = bzimage(&[0x90; 100], 0x10_0000);
    image[0x238..0x23c].copy_from_slice(&12u32.to_le_bytes());
    let line = load(&image, None, 16 * MIB).unwrap_err().line();
    assert!(line.contains("--cmdline is 13 bytes long") && line.contains("at most 12"), "{line}");
}

#[test]
fn what_does_not_fit_says_how_much_is_needed() {
    let unpacks_to_20_mib = bzimage(&[0; 100], 20 << 20);
    let too_little = load(&unpacks_to_20_mib, None, 16 * MIB).unwrap_err().line();
    assert!(too_little.contains("about 22 MiB, --memory gives 16 MiB"), "{too_little}");
    let large_file = bzimage(&vec![0; 17 << 20], 30 << 20);
    let too_little = load(&large_file, None, 16 * MIB).unwrap_err().line();
    assert!(too_little.contains("about 32 MiB, --memory gives 16 MiB"), "{too_little}");
    let large_kernel = bzimage(&vec![0; 17 << 20], 0);
    assert!(load(&large_kernel, None, 16 * MIB).unwrap_err().line().contains("too little memory"));
    let kernel = PvhKernel::new().stay().elf(true);
    let large_initrd = load(&kernel, Some(&vec![0; 15 << 20]), 16 * MIB).unwrap_err().line();
    assert!(large_initrd.contains("too little memory"), "{large_initrd}");
}

#[test]
fn a_kernel_that_belongs_beyond_the_memory_says_what_to_do() {
    let at = |address: u64| {
        let mut kernel = PvhKernel::new().stay().elf(true);
        kernel[0x58..0x60].copy_from_slice(&address.to_le_bytes());
        load(&kernel, None, 16 * MIB).map(drop).unwrap_err().line()
    };
    let line = at(64 * MIB);
    assert!(line.contains("about 65 MiB, --memory gives 16 MiB"), "{line}");
    for never in [LOW_RAM_END, 0xffff_ffff_8100_0000, u64::MAX] {
        let line = at(never);
        assert!(line.contains("never has memory") && line.contains("another machine"), "{line}");
    }
}

#[test]
fn a_kernel_may_reach_below_1_mib_but_not_start_in_what_it_is_told() {
    let linked = |to: u32, start: u32| {
        let note = elf_note(b"Xen\0", 18, &start.to_le_bytes());
        load(&narrow_elf(&[(4, 0, note), (1, to, vec![0x90; 0x10_1000])]), None, 16 * MIB)
    };
    let (entry, memory) = linked(0, 0x10_0010).unwrap();
    assert_eq!(entry, Entry::Pvh { entry: 0x10_0010, start_info: BOOT_PVH });
    assert_eq!(bytes_at(&memory, BOOT_CMDLINE, 14), b"root=/dev/vda\0");
    linked(0x3_0000, 0x3_0000).unwrap();
    for start in [0x500, 0x7c00, 0x2_ffff, 0xf_0000] {
        let line = linked(0, start).unwrap_err().line();
        assert!(line.contains("link it to 0x100000 or above"), "{line}");
    }
}

#[test]
fn what_is_no_kernel_is_refused() {
    for contents in [&b""[..], b"\x7fEL", b"#!/bin/sh\n", &[0; 4096]] {
        let line = load(contents, None, 16 * MIB).unwrap_err().line();
        assert!(line.contains("is no kernel"), "{line}");
    }
    let mut cut = PvhKernel::new().elf(true);
    cut.truncate(0x80);
    let line = load(&cut, None, 16 * MIB).unwrap_err().line();
    assert!(line.contains("cannot be loaded"), "{line}");
    // Like a boot sector's program that says it is Linux: no address for a 32-bit start.
    let mut needs_bios = bzimage(&[0; 100], 0);
    needs_bios[0x214..0x218].fill(0);
    let line = load(&needs_bios, None, 16 * MIB).unwrap_err().line();
    assert!(line.contains("needs a BIOS"), "{line}");
    let mut elsewhere = PvhKernel::new().stay().elf(false);
    elsewhere[24..32].copy_from_slice(&0x400_0000u64.to_le_bytes());
    let line = load(&elsewhere, None, 16 * MIB).unwrap_err().line();
    assert!(line.contains("no PVH entry note"), "{line}");
    let missing = config(Path::new("/nonexistent/vmlinuz"), None);
    let line = BootFiles::open(&missing).unwrap_err().line();
    assert!(line.contains("/nonexistent/vmlinuz: No such file"), "{line}");
    let folder = config(Path::new("/"), None);
    assert!(BootFiles::open(&folder).unwrap_err().line().contains("not a regular file"));
}

#[test]
fn every_truncation_of_a_kernel_is_refused_or_loaded_but_never_worse() {
    let kernel = PvhKernel::new().print("hello").elf(true);
    for len in (0..kernel.len()).step_by(7) {
        if let Ok((entry, _)) = load(&kernel[..len], None, 16 * MIB) {
            assert!(matches!(entry, Entry::Pvh { .. } | Entry::Linux64 { .. }));
        }
    }
}

#[test]
fn memory_above_the_hole_is_in_the_map() {
    let map = memory_map(RamLayout::new(5 << 30));
    assert_eq!(map.last(), Some(&(4 << 30, 2 << 30, E820_RAM)));
    assert!(map.contains(&(ECAM_START, ECAM_LEN, E820_RESERVED)));
}
