//! Disk images: making them, and judging what a guest left in them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::pattern::{self, Content};

/// Makes an empty sparse image.
///
/// # Errors
///
/// When the file cannot be made.
pub fn sparse(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(file.set_len(bytes)?)
}

/// Makes an image full of bytes that depend on their place.
///
/// # Errors
///
/// When the file cannot be written.
pub fn filled(path: &Path, bytes: u64) -> Result<()> {
    let mut file =
        File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut block = vec![0; 1 << 20];
    for at in (0..bytes).step_by(block.len()) {
        for (index, word) in block.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&pattern::mix(at + index as u64 * 8 + 1).to_le_bytes());
        }
        let len = usize::try_from(bytes - at).unwrap_or(block.len()).min(block.len());
        file.write_all(&block[..len])?;
    }
    Ok(file.sync_all()?)
}

/// Makes an ext4 image that holds the files of a folder.
///
/// # Errors
///
/// When mke2fs is missing or fails.
pub fn ext4(path: &Path, bytes: u64, folder: &Path) -> Result<()> {
    sparse(path, bytes)?;
    let mut mke2fs = command::program("mke2fs", "e2fsprogs")?;
    mke2fs.args(["-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d"]).arg(folder).arg(path);
    command::output(&mut mke2fs).map(drop)
}

/// An empty qcow2 image, made by its reference implementation.
///
/// # Errors
///
/// When qemu-img is missing or fails.
pub fn create_qcow2(path: &Path, bytes: u64) -> Result<()> {
    let mut create = command::program("qemu-img", "qemu-utils")?;
    create.args(["create", "-q", "-f", "qcow2"]).arg(path).arg(bytes.to_string());
    command::output(&mut create).map(drop)
}

/// The image must be without errors and leaks for its reference implementation.
///
/// # Errors
///
/// When it is not; the message has what qemu-img found.
pub fn check_qcow2(path: &Path) -> Result<()> {
    let mut check = command::program("qemu-img", "qemu-utils")?;
    command::output(check.args(["check", "-f", "qcow2"]).arg(path)).map(drop)
}

/// Copies a qcow2 image's disk to a raw file.
///
/// # Errors
///
/// When qemu-img is missing or fails.
pub fn to_raw(qcow2: &Path, raw: &Path) -> Result<()> {
    let mut convert = command::program("qemu-img", "qemu-utils")?;
    convert.args(["convert", "-f", "qcow2", "-O", "raw"]).arg(qcow2).arg(raw);
    command::output(&mut convert).map(drop)
}

/// Checks a file system without changing it.
///
/// # Errors
///
/// When it is not clean, with what e2fsck says.
pub fn check_ext4(path: &Path) -> Result<String> {
    let mut e2fsck = command::program("e2fsck", "e2fsprogs")?;
    command::output(e2fsck.args(["-f", "-n"]).arg(path)).context("the file system is not clean")
}

/// Copies one file out of an ext4 image.
///
/// # Errors
///
/// When debugfs is missing, or the image has no such file.
pub fn extract(image: &Path, inside: &str, to: &Path) -> Result<()> {
    let mut debugfs = command::program("debugfs", "e2fsprogs")?;
    let request = format!("dump {inside} {}", to.display());
    let said = command::output(debugfs.args(["-R", &request]).arg(image))?;
    if !to.is_file() {
        bail!("{} has no {inside}: {said}", image.display());
    }
    Ok(())
}

/// Whether two images hold the same bytes; otherwise the first place where they differ.
///
/// # Errors
///
/// When one cannot be read, or they differ.
pub fn same(one: &Path, other: &Path) -> Result<()> {
    let (mut one_file, mut other_file) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0_u64;
    loop {
        let len = read_up_to(&mut one_file, &mut left)?;
        if len != read_up_to(&mut other_file, &mut right)? {
            bail!("{} and {} differ in length", one.display(), other.display());
        }
        if let Some(index) = (0..len).find(|&index| left[index] != right[index]) {
            let at = at + index as u64;
            bail!("{} and {} differ at byte {at:#x}", one.display(), other.display());
        }
        if len == 0 {
            return Ok(());
        }
        at += len as u64;
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..])? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}

/// What the bare-metal guest left in an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Examined {
    /// Blocks that the guest wrote.
    pub written: u64,
    /// The digest, as the guest computes it.
    pub digest: u64,
}

/// Examines an image in blocks as the bare-metal guest does.
///
/// # Errors
///
/// When it cannot be read, or a block is damaged, torn or misplaced.
pub fn examine(path: &Path, block_bytes: u64) -> Result<Examined> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let blocks = file.metadata()?.len() / block_bytes;
    let mut buffer = vec![0; usize::try_from(block_bytes)?];
    let mut examined = Examined::default();
    for block in 0..blocks {
        file.read_exact_at(&mut buffer, block * block_bytes)?;
        let first = block * block_bytes / 512;
        let found: Vec<_> = buffer
            .chunks_exact(512)
            .zip(first..)
            .map(|(bytes, sector)| pattern::examine(&words(bytes), sector))
            .collect();
        if found.iter().any(|content| *content != found[0]) {
            bail!("{} block {block} is torn: {found:?}", path.display());
        }
        match found[0] {
            Content::Zero | Content::Foreign => {}
            Content::Written(sequence) => {
                examined.written += 1;
                examined.digest = examined.digest.wrapping_add(pattern::digest(block, sequence));
            }
            damaged => bail!("{} block {block}: {damaged:?}", path.display()),
        }
    }
    Ok(examined)
}

fn words(bytes: &[u8]) -> [u64; pattern::SECTOR_WORDS] {
    let mut words = [0; pattern::SECTOR_WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    }
    words
}

/// Packs a sparse file: its length, then (offset, length, bytes) of every part that is not a hole.
///
/// # Errors
///
/// When a file cannot be read or written.
pub fn pack(sparse: &Path, packed: &Path) -> Result<()> {
    let mut file = File::open(sparse)?;
    let mut out = File::create(packed)?;
    let len = file.metadata()?.len();
    out.write_all(&len.to_le_bytes())?;
    let mut at = 0;
    while let Some(start) = seek(&file, at, libc::SEEK_DATA)? {
        let end = seek(&file, start, libc::SEEK_HOLE)?.unwrap_or(len);
        out.write_all(&start.to_le_bytes())?;
        out.write_all(&(end - start).to_le_bytes())?;
        file.seek(SeekFrom::Start(start))?;
        std::io::copy(&mut (&file).take(end - start), &mut out)?;
        at = end;
    }
    Ok(())
}

/// Unpacks what [`pack`] made.
///
/// # Errors
///
/// When a file cannot be read or written.
pub fn unpack(packed: &Path, sparse: &Path) -> Result<()> {
    let bytes = fs::read(packed).with_context(|| format!("cannot read {}", packed.display()))?;
    let (len, mut rest) = number(&bytes)?;
    let file = File::create(sparse)?;
    file.set_len(len)?;
    while !rest.is_empty() {
        let (at, after) = number(rest)?;
        let (len, after) = number(after)?;
        let (part, after) = after.split_at_checked(usize::try_from(len)?).context("cut off")?;
        file.write_all_at(part, at)?;
        rest = after;
    }
    Ok(())
}

fn number(bytes: &[u8]) -> Result<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk().context("cut off")?;
    Ok((u64::from_le_bytes(*number), rest))
}

/// `lseek` for data or holes; none when there is no further one.
#[expect(unsafe_code, reason = "std has no SEEK_DATA and SEEK_HOLE")]
fn seek(file: &File, at: u64, whence: i32) -> Result<Option<u64>> {
    // SAFETY: the descriptor is open for the whole call, and lseek touches no memory.
    let found = unsafe { libc::lseek(file.as_raw_fd(), i64::try_from(at)?, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_negative) => {
            let error = std::io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::ENXIO) => Ok(None),
                _ => Err(error.into()),
            }
        }
    }
}
