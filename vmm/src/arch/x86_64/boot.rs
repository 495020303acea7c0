//! Loading a kernel: bzImage by the Linux boot protocol, ELF by PVH or by the 64-bit Linux protocol.

use std::fs::File;
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ferry_devices::GuestMemory;
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::elf;
use super::layout::{
    ACPI_START, BOOT_CMDLINE, BOOT_CMDLINE_MAX, BOOT_PARAMS, BOOT_PVH, ECAM_LEN, ECAM_START,
    HIGH_MEMORY, LOW_RAM_END, LOW_RAM_HOLE, RamLayout,
};
use super::regs::{self, Entry};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// "HdrS" at 0x202 of a bzImage.
const BZIMAGE_MAGIC: u32 = 0x5372_6448;
/// Where the setup header of a bzImage begins.
const SETUP_HEADER: u64 = 0x1f1;
/// "xEn3", the magic of PVH's start info.
const PVH_MAGIC: u32 = 0x336e_c578;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `loadflags`: the kernel may use memory up to `heap_end_ptr`.
const CAN_USE_HEAP: u8 = 0x80;
const PAGE: u64 = 4096;

/// The files a guest boots from; they stay open so that a reset can load them again even when their
/// names mean something else by then.
#[derive(Debug)]
pub struct BootFiles {
    kernel: Image,
    initrd: Option<Image>,
    cmdline: String,
}

#[derive(Debug)]
struct Image {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Image {
    fn open(what: &str, path: &Path) -> Result<Image> {
        let name = path.display();
        let refused =
            |e| Error::because(ErrorKind::Config, format!("cannot open {what} {name}"), e);
        let file = File::open(path).map_err(refused)?;
        let metadata = file.metadata().map_err(refused)?;
        if !metadata.is_file() {
            return Err(Error::config(format!("{what} {name} is not a regular file")));
        }
        Ok(Image { path: path.to_owned(), file, len: metadata.len() })
    }
}

/// What kind of kernel a file holds.
#[derive(Debug, PartialEq, Eq)]
enum KernelKind {
    BzImage,
    Elf,
}

impl BootFiles {
    /// Open what `config` names; `None` when it names no kernel.
    pub fn open(config: &Config) -> Result<Option<BootFiles>> {
        let Some(kernel) = &config.kernel else { return Ok(None) };
        let files = BootFiles {
            kernel: Image::open("kernel", kernel)?,
            initrd: config.initrd.as_deref().map(|i| Image::open("initrd", i)).transpose()?,
            cmdline: config.cmdline.clone(),
        };
        files.kind()?;
        if files.cmdline.len() >= BOOT_CMDLINE_MAX {
            return Err(Error::config(format!(
                "--cmdline is {} bytes long, at most {} fit",
                files.cmdline.len(),
                BOOT_CMDLINE_MAX - 1
            )));
        }
        Ok(Some(files))
    }

    /// Put kernel, initrd, command line and boot structures into guest memory; says where to start.
    pub fn load(&self, guest: &GuestMemory, ram: RamLayout) -> Result<Entry> {
        let entry = match self.kind()? {
            KernelKind::BzImage => self.load_bzimage(guest, ram)?,
            KernelKind::Elf => self.load_elf(guest, ram)?,
        };
        // Last, because a linker may have padded the kernel's first segment down to address 0.
        write(guest, BOOT_CMDLINE, self.cmdline.as_bytes(), "command line")?;
        write(guest, BOOT_CMDLINE + self.cmdline.len() as u64, &[0], "command line")?;
        regs::write_tables(guest, entry)?;
        Ok(entry)
    }

    fn kind(&self) -> Result<KernelKind> {
        let mut start = [0; 0x206];
        let mut have = 0;
        while have < start.len() {
            let read = self.kernel.file.read_at(&mut start[have..], have as u64);
            match read.map_err(|e| self.unreadable(e))? {
                0 => break,
                n => have += n,
            }
        }
        if start.starts_with(b"\x7fELF") {
            return Ok(KernelKind::Elf);
        }
        if start[0x202..] == BZIMAGE_MAGIC.to_le_bytes() {
            return Ok(KernelKind::BzImage);
        }
        Err(Error::config(format!(
            "{} is no kernel: it is neither a bzImage nor an ELF file",
            self.kernel.path.display()
        )))
    }

    fn unreadable(&self, e: std::io::Error) -> Error {
        let name = self.kernel.path.display();
        Error::because(ErrorKind::Config, format!("cannot read kernel {name}"), e)
    }

    /// The kernel cannot be loaded; most often it is larger than the memory.
    fn unloadable(&self, ram: RamLayout, e: linux_loader::loader::Error) -> Error {
        let (name, need) = (self.kernel.path.display(), self.kernel.len + HIGH_MEMORY);
        if need > ram.low {
            return self.too_little(ram, need);
        }
        if matches!(e, linux_loader::loader::Error::InvalidKernelStartAddress) {
            return Error::config(format!(
                "kernel {name} starts in 16-bit code and needs a BIOS, which this machine does not have"
            ));
        }
        Error::because(ErrorKind::Config, format!("kernel {name} cannot be loaded"), e)
    }

    fn too_little(&self, ram: RamLayout, need: u64) -> Error {
        let initrd = self.initrd.as_ref().map_or(0, |image| image.len);
        Error::config(format!(
            "too little memory: kernel {} and initrd need about {} MiB, --memory gives {} MiB",
            self.kernel.path.display(),
            (need + initrd).div_ceil(1 << 20),
            (ram.low + ram.high) >> 20
        ))
    }

    fn load_bzimage(&self, guest: &GuestMemory, ram: RamLayout) -> Result<Entry> {
        let mut header = setup_header::default();
        let read = self.kernel.file.read_exact_at(header.as_mut_slice(), SETUP_HEADER);
        read.map_err(|e| self.unreadable(e))?;
        let longest = header.cmdline_size as usize;
        if header.version >= 0x0206 && self.cmdline.len() > longest {
            let (name, len) = (self.kernel.path.display(), self.cmdline.len());
            return Err(Error::config(format!(
                "--cmdline is {len} bytes long, kernel {name} takes at most {longest}"
            )));
        }
        // While it unpacks itself, the kernel needs `init_size` bytes from where it wants to run.
        let runs_at = if header.version >= 0x020a { header.pref_address } else { HIGH_MEMORY };
        let end = self.kernel.len.saturating_add(HIGH_MEMORY);
        let need = end.max(runs_at.saturating_add(header.init_size.into()));
        if need > ram.low {
            return Err(self.too_little(ram, need));
        }
        let mut file = &self.kernel.file;
        let start = Some(GuestAddress(HIGH_MEMORY));
        let loaded =
            BzImage::load(guest, None, &mut file, start).map_err(|e| self.unloadable(ram, e))?;
        let limit = match header.initrd_addr_max {
            0 => 0x37ff_ffff,
            max => u64::from(max),
        };
        if let Some((at, len)) = self.load_initrd(guest, ram, need, limit)? {
            header.ramdisk_image = to_u32(at)?;
            header.ramdisk_size = to_u32(len)?;
        }
        header.heap_end_ptr = 0xfe00;
        header.loadflags |= CAN_USE_HEAP;
        self.write_boot_params(guest, ram, header)?;
        Ok(Entry::Linux32 { entry: loaded.kernel_load.0 })
    }

    fn load_elf(&self, guest: &GuestMemory, ram: RamLayout) -> Result<Entry> {
        let mut file = &self.kernel.file;
        let name = self.kernel.path.display();
        let damaged =
            |e| Error::because(ErrorKind::Config, format!("kernel {name} cannot be loaded"), e);
        let end = elf::memory_end(file).map_err(damaged)?.unwrap_or(0);
        if end > LOW_RAM_END {
            return Err(Error::config(format!(
                "kernel {name} is to be loaded up to {end:#x}, and this machine never has memory from \
                 {LOW_RAM_END:#x} on: it was linked for another machine"
            )));
        }
        if end > ram.low {
            return Err(self.too_little(ram, end));
        }
        let limit = ram.low + ram.high;
        let rewritten = elf::rewritten(file, limit).map_err(damaged)?;
        let loaded = match rewritten {
            Some(kernel) => Elf::load(guest, None, &mut Cursor::new(kernel), None),
            None => Elf::load(guest, None, &mut file, None),
        };
        let loaded = loaded.map_err(|e| self.unloadable(ram, e))?;
        let initrd = self.load_initrd(guest, ram, end, ram.low)?;
        if let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap {
            let taken = [0..BOOT_CMDLINE + BOOT_CMDLINE_MAX as u64, LOW_RAM_HOLE..HIGH_MEMORY];
            if taken.iter().any(|range| range.contains(&entry.0)) {
                return Err(Error::config(format!(
                    "kernel {name} starts at {:#x}, where this machine puts what it tells the kernel: link it \
                     to {HIGH_MEMORY:#x} or above",
                    entry.0
                )));
            }
            write_pvh(guest, ram, initrd)?;
            return Ok(Entry::Pvh { entry: entry.0, start_info: BOOT_PVH });
        }
        // A kernel built without PVH starts where its ELF header says, in long mode, by Linux's own rules.
        // What was built for addresses that do not exist at boot cannot be such a kernel.
        if loaded.kernel_load.0 < HIGH_MEMORY || loaded.kernel_load.0 >= end {
            return Err(Error::config(format!(
                "ELF file {name} has no PVH entry note, and its entry point {:#x} is not in the loaded image: \
                 not a kernel for this machine; build it with CONFIG_PVH or use its bzImage",
                loaded.kernel_load.0
            )));
        }
        let mut header = setup_header {
            boot_flag: 0xaa55,
            header: BZIMAGE_MAGIC,
            kernel_alignment: 0x100_0000,
            cmdline_size: to_u32(BOOT_CMDLINE_MAX as u64 - 1)?,
            ..Default::default()
        };
        if let Some((at, len)) = initrd {
            header.ramdisk_image = to_u32(at)?;
            header.ramdisk_size = to_u32(len)?;
        }
        self.write_boot_params(guest, ram, header)?;
        Ok(Entry::Linux64 { entry: loaded.kernel_load.0 })
    }

    /// Load the initrd as high as it may lie; says where it is and how long.
    fn load_initrd(
        &self,
        guest: &GuestMemory,
        ram: RamLayout,
        kernel_end: u64,
        last: u64,
    ) -> Result<Option<(u64, u64)>> {
        let Some(initrd) = &self.initrd else { return Ok(None) };
        let end = ram.low.min(last.saturating_add(1));
        let at = end.checked_sub(initrd.len).map_or(0, |at| at & !(PAGE - 1));
        if at < kernel_end {
            return Err(self.too_little(ram, kernel_end));
        }
        let mut file = &initrd.file;
        let len = usize::try_from(initrd.len).map_err(|e| Error::host("load the initrd", e))?;
        std::io::Seek::rewind(&mut file)
            .map_err(vm_memory::GuestMemoryError::IOError)
            .and_then(|()| guest.read_exact_volatile_from(GuestAddress(at), &mut file, len))
            .map_err(|e| {
                let name = initrd.path.display();
                Error::because(ErrorKind::Config, format!("cannot read initrd {name}"), e)
            })?;
        Ok(Some((at, initrd.len)))
    }

    fn write_boot_params(
        &self,
        guest: &GuestMemory,
        ram: RamLayout,
        mut header: setup_header,
    ) -> Result<()> {
        header.type_of_loader = LOADER_UNDEFINED;
        header.cmd_line_ptr = to_u32(BOOT_CMDLINE)?;
        let mut params =
            boot_params { hdr: header, acpi_rsdp_addr: ACPI_START, ..Default::default() };
        for (slot, (addr, size, r#type)) in params.e820_table.iter_mut().zip(memory_map(ram)) {
            *slot = boot_e820_entry { addr, size, r#type };
            params.e820_entries += 1;
        }
        write(guest, BOOT_PARAMS, params.as_slice(), "boot parameters")
    }
}

/// What lies where, as (start, length, E820 type).
fn memory_map(ram: RamLayout) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, LOW_RAM_HOLE, E820_RAM),
        (LOW_RAM_HOLE, 0xa_0000 - LOW_RAM_HOLE, E820_RESERVED),
        (ACPI_START, HIGH_MEMORY - ACPI_START, E820_RESERVED),
        (HIGH_MEMORY, ram.low - HIGH_MEMORY, E820_RAM),
        // Linux only uses the configuration space through memory when firmware has reserved it.
        (ECAM_START, ECAM_LEN, E820_RESERVED),
    ];
    map.extend(ram.ranges().skip(1).map(|(start, len)| (start, len, E820_RAM)));
    map
}

/// PVH's start info, followed by its memory map and module list (Xen's include/public/arch-x86/hvm/start_info.h).
fn write_pvh(guest: &GuestMemory, ram: RamLayout, initrd: Option<(u64, u64)>) -> Result<()> {
    let map = memory_map(ram);
    let map_at = BOOT_PVH + size_of::<hvm_start_info>() as u64;
    let modules_at = map_at + (map.len() * size_of::<hvm_memmap_table_entry>()) as u64;
    let mut info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        cmdline_paddr: BOOT_CMDLINE,
        rsdp_paddr: ACPI_START,
        memmap_paddr: map_at,
        memmap_entries: to_u32(map.len() as u64)?,
        ..Default::default()
    };
    if let Some((paddr, size)) = initrd {
        (info.nr_modules, info.modlist_paddr) = (1, modules_at);
        let module = hvm_modlist_entry { paddr, size, ..Default::default() };
        write(guest, modules_at, module.as_slice(), "PVH module list")?;
    }
    for (index, (addr, size, type_)) in (0u64..).zip(map) {
        let entry = hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
        let at = map_at + index * size_of::<hvm_memmap_table_entry>() as u64;
        write(guest, at, entry.as_slice(), "PVH memory map")?;
    }
    write(guest, BOOT_PVH, info.as_slice(), "PVH start info")
}

fn write(guest: &GuestMemory, at: u64, bytes: &[u8], what: &str) -> Result<()> {
    guest
        .write_slice(bytes, GuestAddress(at))
        .map_err(|e| Error::host(&format!("write the {what} at {at:#x}"), e))
}

fn to_u32(value: u64) -> Result<u32> {
    u32::try_from(value).map_err(|e| Error::host("place the kernel below 4 GiB", e))
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
