//! Thin wrappers of the system calls that the standard library does not have.
#![expect(
    unsafe_code,
    reason = "system calls on descriptors and buffers that the caller keeps alive"
)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::buf::IoBuf;

/// Longest iovec list that the kernel takes.
pub(crate) const MAX_IOVECS: usize = 1024;

// From linux/fs.h; libc has no block device requests.
const NFS_MAGIC: u64 = 0x6969;
const BLKSSZGET: u64 = 0x1268;
const BLKGETSIZE64: u64 = 0x8008_1272;
const FS_IOC_FSGETXATTR: u64 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;
const FS_XFLAG_EXTSIZE: u32 = 0x800;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct FsxAttr {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

/// The result of a system call that answers -1 for an error.
fn check(result: i64) -> io::Result<u64> {
    u64::try_from(result).map_err(|_negative| io::Error::last_os_error())
}

/// An offset as the kernel takes it.
fn signed(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_beyond| io::Error::from_raw_os_error(libc::EFBIG))
}

/// Moves bytes between memory and `at` in the file; how many. `flags` are `RWF_*`.
///
/// # Safety
///
/// The `count` iovecs and the memory they name must stay valid during the call.
pub(crate) unsafe fn vectored(
    way: Way,
    fd: RawFd,
    iovecs: *const libc::iovec,
    count: usize,
    at: u64,
    flags: i32,
) -> io::Result<u64> {
    let at = signed(at)?;
    let count = i32::try_from(count).map_err(|_many| io::ErrorKind::InvalidInput)?;
    let result = match way {
        // SAFETY: the caller vouches for the iovecs; the kernel checks everything else.
        Way::Read => unsafe { libc::preadv2(fd, iovecs, count, at, flags) },
        // SAFETY: as above.
        Way::Write => unsafe { libc::pwritev2(fd, iovecs, count, at, flags) },
    };
    check(result as i64)
}

/// Moves bytes between `buf` and `at` in the file on this thread; how many.
pub(crate) fn transfer(way: Way, fd: BorrowedFd<'_>, buf: &IoBuf, at: u64) -> io::Result<u64> {
    let raw = fd.as_raw_fd();
    let Some((start, len)) = buf.single() else {
        let iovecs = buf.iovecs(MAX_IOVECS);
        // SAFETY: the memory is kept alive by `buf`, the iovecs by this frame.
        return unsafe { vectored(way, raw, iovecs.as_ptr(), iovecs.len(), at, 0) };
    };
    // The plain calls are measurably cheaper than those with an iovec.
    let at = signed(at)?;
    let result = match way {
        // SAFETY: the memory is kept alive and writable by `buf`.
        Way::Read => unsafe { libc::pread64(raw, start.cast(), len, at) },
        // SAFETY: as above.
        Way::Write => unsafe { libc::pwrite64(raw, start.cast(), len, at) },
    };
    check(result as i64)
}

/// `fallocate(2)`.
pub(crate) fn fallocate(fd: RawFd, mode: i32, at: u64, len: u64) -> io::Result<u64> {
    let (at, len) = (signed(at)?, signed(len)?);
    // SAFETY: no memory is passed.
    check(i64::from(unsafe { libc::fallocate(fd, mode, at, len) }))
}

/// `copy_file_range(2)`, all of it: `len` bytes at `from` of `source` to `at` of `target`.
pub(crate) fn copy(
    source: BorrowedFd<'_>,
    from: u64,
    target: BorrowedFd<'_>,
    at: u64,
    len: usize,
) -> io::Result<()> {
    let (mut from, mut at, mut rest) = (signed(from)?, signed(at)?, len);
    while rest > 0 {
        let (source, target) = (source.as_raw_fd(), target.as_raw_fd());
        let places = (&raw mut from, &raw mut at);
        // SAFETY: the kernel reads and writes the two offsets, which live on this frame.
        let result = unsafe { libc::copy_file_range(source, places.0, target, places.1, rest, 0) };
        match check(result as i64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => rest -= usize::try_from(count).unwrap_or(rest).min(rest),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// `fdatasync(2)`.
pub(crate) fn fdatasync(fd: RawFd) -> io::Result<u64> {
    // SAFETY: no memory is passed.
    check(i64::from(unsafe { libc::fdatasync(fd) }))
}

/// Next data or hole at or after `at`; `None` if there is none before the end.
pub(crate) fn seek(fd: BorrowedFd<'_>, at: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: no memory is passed.
    match check(unsafe { libc::lseek(fd.as_raw_fd(), signed(at)?, whence) }) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One open-file-description lock operation on one byte range; `kind` is `F_RDLCK`, `F_WRLCK` or
/// `F_UNLCK`.
pub(crate) fn lock(fd: BorrowedFd<'_>, kind: i32, start: u64, len: u64) -> io::Result<()> {
    let mut lock = flock(kind, start, len)?;
    // SAFETY: the kernel reads the structure during the call only.
    check(i64::from(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) }))?;
    Ok(())
}

/// Whether another open file description holds a lock that conflicts with an exclusive one.
pub(crate) fn is_locked(fd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<bool> {
    let mut lock = flock(libc::F_WRLCK, start, len)?;
    // SAFETY: the kernel reads and writes the structure during the call only.
    check(i64::from(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) }))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

fn flock(kind: i32, start: u64, len: u64) -> io::Result<libc::flock> {
    // SAFETY: all zeroes is a valid flock.
    let mut lock: libc::flock = unsafe { MaybeUninit::zeroed().assume_init() };
    let invalid = |_error| io::Error::from(io::ErrorKind::InvalidInput);
    lock.l_type = i16::try_from(kind).map_err(invalid)?;
    lock.l_whence = i16::try_from(libc::SEEK_SET).map_err(invalid)?;
    lock.l_start = signed(start)?;
    lock.l_len = signed(len)?;
    Ok(lock)
}

/// Alignment for O_DIRECT as the file system states it: of memory and of offsets.
pub(crate) fn direct_alignment(fd: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let (empty, mask) = (c"".as_ptr(), libc::STATX_DIOALIGN);
    // SAFETY: the path is a C string and the structure outlives the call.
    let result =
        unsafe { libc::statx(fd.as_raw_fd(), empty, libc::AT_EMPTY_PATH, mask, stat.as_mut_ptr()) };
    check(i64::from(result)).ok()?;
    // SAFETY: it was zeroed, which is valid, and perhaps filled.
    let stat = unsafe { stat.assume_init() };
    let stated = stat.stx_mask & mask != 0 && stat.stx_dio_offset_align != 0;
    stated.then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align))
}

/// Whether the file was opened with `O_DIRECT`.
pub(crate) fn is_direct(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: no memory is passed.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    flags != -1 && flags & libc::O_DIRECT != 0
}

/// Whether the file's content is in memory only. Of a device that is true of its name alone: what is in `/dev` is
/// in memory, too.
pub(crate) fn is_tmpfs(fd: BorrowedFd<'_>) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    let metadata = fd.try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    file_system(fd) == Some(TMPFS) && metadata.is_ok_and(|metadata| metadata.is_file())
}

/// Whether other hosts may write to the file behind our page cache.
pub(crate) fn is_remote(fd: BorrowedFd<'_>) -> bool {
    const SMB2: u64 = 0xfe53_4d42;
    const CIFS: u64 = 0xff53_4d42;
    const FUSE: u64 = 0x6573_5546;
    const CEPH: u64 = 0x00c3_6400;
    const OCFS2: u64 = 0x7461_636f;
    const GFS2: u64 = 0x0116_1970;
    const NINE_P: u64 = 0x0102_1997;
    let remote = [NFS_MAGIC, SMB2, CIFS, FUSE, CEPH, OCFS2, GFS2, NINE_P];
    file_system(fd).is_some_and(|magic| remote.contains(&magic))
}

/// Whether the file is on NFS.
pub(crate) fn is_nfs(fd: BorrowedFd<'_>) -> bool {
    file_system(fd) == Some(NFS_MAGIC)
}

/// Waits for events of an epoll descriptor for at most `timeout` (`None`: for ever); how many.
pub(crate) fn epoll_wait(
    fd: RawFd,
    events: &mut [libc::epoll_event],
    timeout: Option<Duration>,
) -> io::Result<usize> {
    static ONLY_MILLISECONDS: AtomicBool = AtomicBool::new(false);
    let start = events.as_mut_ptr();
    let count = i32::try_from(events.len()).unwrap_or(i32::MAX);
    if !ONLY_MILLISECONDS.load(Ordering::Relaxed) {
        let limit = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let (mask, mask_len) = (std::ptr::null::<libc::sigset_t>(), 0_usize);
        // SAFETY: the events and the time limit outlive the call, and no mask is passed.
        let result = unsafe {
            libc::syscall(libc::SYS_epoll_pwait2, fd, start, count, limit, mask, mask_len)
        };
        match check(result) {
            // Linux before 5.11.
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                ONLY_MILLISECONDS.store(true, Ordering::Relaxed);
            }
            other => return other.map(|count| usize::try_from(count).unwrap_or(0)),
        }
    }
    // Rounded up: a wait that ends too early would be begun again until the time has come.
    let limit = timeout.map_or(-1, |timeout| {
        i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
    });
    // SAFETY: the events outlive the call.
    let result = unsafe { libc::epoll_wait(fd, start, count, limit) };
    check(i64::from(result)).map(|count| usize::try_from(count).unwrap_or(0))
}

/// The magic number of the file system.
fn file_system(fd: BorrowedFd<'_>) -> Option<u64> {
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the structure outlives the call.
    let result = unsafe { libc::fstatfs(fd.as_raw_fd(), stat.as_mut_ptr()) };
    // SAFETY: it was zeroed, which is valid, and perhaps filled.
    let stat = unsafe { stat.assume_init() };
    // The field's type differs between C libraries; all magic numbers have 32 bits.
    let magic = u64::try_from(i128::from(stat.f_type) & 0xffff_ffff).ok();
    magic.filter(|_| result == 0)
}

/// Forgets clean pages of the host's cache.
pub(crate) fn drop_cache(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match unsafe { libc::posix_fadvise(fd.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Size of a block device in bytes.
pub(crate) fn device_len(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut len = 0_u64;
    // SAFETY: the request writes eight bytes.
    check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64 as _, &raw mut len) }))?;
    Ok(len)
}

/// Logical block size of a block device in bytes.
pub(crate) fn device_sector(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut size = 0_u32;
    // SAFETY: the request writes four bytes.
    check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), BLKSSZGET as _, &raw mut size) }))?;
    Ok(size)
}

/// Sets how many bytes the file system allocates at once.
pub(crate) fn set_extent_size(fd: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let mut attr = FsxAttr::default();
    let get = FS_IOC_FSGETXATTR as _;
    // SAFETY: the request writes the structure, which outlives the call.
    check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), get, &raw mut attr) }))?;
    attr.flags |= FS_XFLAG_EXTSIZE;
    attr.extent_size = bytes;
    let set = FS_IOC_FSSETXATTR as _;
    // SAFETY: the request reads the structure, which outlives the call.
    check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), set, &raw const attr) }))?;
    Ok(())
}

/// An extended attribute of at most `N` bytes; `None` if it is not set.
pub(crate) fn get_xattr<const N: usize>(
    fd: BorrowedFd<'_>,
    name: &CStr,
) -> io::Result<Option<Vec<u8>>> {
    let mut value = [0_u8; N];
    // SAFETY: the name is a C string and the kernel writes at most N bytes.
    let result =
        unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), N) };
    match check(result as i64) {
        Ok(len) => Ok(Some(value.into_iter().take(usize::try_from(len).unwrap_or(N)).collect())),
        Err(error) if error.raw_os_error() == Some(libc::ENODATA) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets an extended attribute.
pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    let (start, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: the name is a C string and the value a slice.
    let result = unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), start, len, 0) };
    check(i64::from(result))?;
    Ok(())
}
