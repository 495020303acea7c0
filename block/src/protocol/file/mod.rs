//! The `file` driver: a regular file or a block device of the host.

mod create;
mod device;
mod locks;
mod mark;
mod options;

use std::cell::{Cell, OnceCell, RefCell};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags, whole_sectors};
use crate::edge::{Edge, EdgePerms, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::io::FileIo;
use crate::sys::{self, Way};

use locks::ImageLocks;
use mark::Mark;

pub use create::{DEFAULT_EXTENT_SIZE_HINT, create, hint_extent_size};
pub use options::{FileOptions, Locking};

/// Longest single transfer, bytes: the kernel's own limit is just below 2 GiB.
const MAX_TRANSFER: u64 = 1 << 30;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileMode {
    /// Open it for reading only.
    pub read_only: bool,
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// Whether to keep other programs off.
    pub locking: Locking,
}

/// An open file of the host.
pub struct FileDriver {
    io: FileIo,
    path: String,
    mode: FileMode,
    kind: FileKind,
    limits: Limits,
    len: Cell<u64>,
    active: Cell<bool>,
    held: Cell<EdgePerms>,
    locks: ImageLocks,
    mark: Mark,
    /// What the file system turned out not to have.
    no_zero_range: Cell<bool>,
    /// The data that the last `map` found, to answer the next one without a system call. Writes
    /// leave data as data; a hole that is remembered would hide what was written meanwhile.
    known_data: RefCell<Range<u64>>,
    no_seek: OnceCell<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileKind {
    Regular,
    BlockDevice,
}

/// What opening finds out on another thread.
struct Opened {
    file: File,
    kind: FileKind,
    len: u64,
    limits: Limits,
}

impl FileDriver {
    /// Opens a file, inactive: nothing is locked or written.
    pub async fn open(
        executor: &Executor,
        path: impl AsRef<Path>,
        mode: FileMode,
    ) -> Result<FileDriver> {
        let path: PathBuf = path.as_ref().to_owned();
        let shown = path.display().to_string();
        let opened = executor.engine().blocking(move || open_file(&path, mode)).await;
        let opened = opened.map_err(|error| {
            let hint = match error.raw_os_error() {
                Some(libc::EINVAL) if mode.direct => {
                    " (its file system may not support cache.direct)"
                }
                _ => "",
            };
            Error::from_io(error, format!("Could not open '{shown}'{hint}"))
        })?;
        Ok(FileDriver {
            io: FileIo::new(executor.clone(), opened.file),
            path: shown,
            mode,
            kind: opened.kind,
            limits: opened.limits,
            len: Cell::new(opened.len),
            active: Cell::new(false),
            held: Cell::new(EdgePerms::IDLE),
            locks: ImageLocks::default(),
            mark: Mark::default(),
            no_zero_range: Cell::new(false),
            known_data: RefCell::default(),
            no_seek: OnceCell::new(),
        })
    }

    /// Bytes that it takes up on its host, if that can be told.
    pub(crate) async fn allocated(&self) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        let look =
            |fd: BorrowedFd<'_>| Ok(File::from(fd.try_clone_to_owned()?).metadata()?.blocks());
        self.io.blocking(look).await.ok().map(|blocks| blocks.saturating_mul(512))
    }

    /// Reads the length again, which another process may have changed.
    async fn refresh_len(&self) -> Result<()> {
        let kind = self.kind;
        let len = self.io.blocking(move |fd| refresh(fd, kind)).await;
        self.len.set(len.map_err(|error| self.failed("read the length of", error))?);
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.io.file().as_fd()
    }

    #[cold]
    fn failed(&self, verb: &str, error: io::Error) -> Error {
        Error::from_io(error, format!("cannot {verb} '{}'", self.path))
    }

    /// Whether to promise what the host has synced. A host that cannot write pages of its cache drops them or
    /// takes them for written, and tells of it once: the next flush, or one under way, would promise
    /// what is lost. So all fail from then on, until the file is opened anew. Past the cache nothing is dropped.
    fn promise(&self) -> Result<()> {
        match self.lost() {
            0 => Ok(()),
            errno => {
                let verb = "promise what was written before an earlier flush failed on";
                Err(self.failed(verb, io::Error::from_raw_os_error(errno)))
            }
        }
    }

    /// Whether a flush has failed, so that no other will succeed.
    pub(crate) fn has_lost(&self) -> bool {
        self.lost() != 0
    }

    /// Why, as an `errno`.
    fn lost(&self) -> i32 {
        if self.mode.direct { 0 } else { self.io.file().lost() }
    }

    /// Copies `len` bytes at `from` of another file to `at`, by the kernel alone.
    pub(crate) async fn copy_from(
        &self,
        at: u64,
        source: &FileDriver,
        from: u64,
        len: usize,
    ) -> Result<()> {
        let failed = |error| {
            let error = self.failed(&format!("copy '{}' to", source.path), error);
            match error.errno() {
                libc::EXDEV | libc::EINVAL => error.with_kind(ErrorKind::Unsupported),
                _ => error,
            }
        };
        let source = source.fd().try_clone_to_owned().map_err(failed)?;
        let copied = self.io.blocking(move |fd| sys::copy(source.as_fd(), from, fd, at, len)).await;
        copied.map_err(failed)
    }

    fn lock(&self, perms: EdgePerms) -> Result<()> {
        match self.mode.locking {
            Locking::Off => Ok(()),
            Locking::Auto | Locking::On => self.locks.set(self.fd(), perms, &self.path),
        }
    }

    /// Advances the mark if this process just became a writer.
    fn began_to_write(&self, before: EdgePerms, now: EdgePerms) -> Result<()> {
        let writes = |perms: EdgePerms| perms.needs.contains(Perms::WRITE);
        if self.mode.read_only || writes(before) || !writes(now) {
            return Ok(());
        }
        self.mark.advance(self.fd()).map_err(|error| self.failed("mark the generation of", error))
    }

    fn check_mark(&self, expected: u64) -> Result<()> {
        let found = self.mark.read(self.fd());
        match found.map_err(|error| self.failed("read the generation mark of", error))? {
            Some(found) if found == expected => Ok(()),
            Some(_) => {
                let context = format!(
                    "another process has written to '{}' since it was handed over",
                    self.path
                );
                Err(Error::new(ErrorKind::OwnershipUnknown, context))
            }
            None => {
                let context = format!("'{}' keeps no generation mark", self.path);
                Err(Error::new(ErrorKind::OwnershipUnknown, context))
            }
        }
    }

    async fn clear(&self, range: &Range<u64>, keep_space: bool) -> io::Result<()> {
        let (at, len) = (range.start, range.end - range.start);
        self.known_data.take();
        if keep_space && !self.no_zero_range.get() {
            match self.io.allocate(ZERO, at, len).await {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    self.no_zero_range.set(true);
                }
                other => return other,
            }
        }
        self.io.allocate(PUNCH, at, len).await?;
        if keep_space && self.kind == FileKind::Regular {
            // tmpfs can punch but not zero: take the space back after giving it up.
            self.io.allocate(libc::FALLOC_FL_KEEP_SIZE, at, len).await?;
        }
        Ok(())
    }

    /// Where the data at or after `at` begins and the hole after that.
    async fn seek(&self, at: u64) -> io::Result<(Option<u64>, Option<u64>)> {
        let look = move |fd: BorrowedFd<'_>| {
            let data = sys::seek(fd, at, libc::SEEK_DATA)?;
            let hole = match data {
                Some(data) if data == at => sys::seek(fd, at, libc::SEEK_HOLE)?,
                _ => None,
            };
            Ok((data, hole))
        };
        if self.io.is_in_memory() { look(self.fd()) } else { self.io.blocking(look).await }
    }
}

impl BlockDriver for FileDriver {
    const FORMAT: &'static str = "file";

    fn limits(&self) -> Limits {
        self.limits
    }

    fn len(&self) -> u64 {
        self.len.get()
    }

    fn filename(&self) -> Option<String> {
        Some(self.path.clone())
    }

    fn children(&self) -> Vec<Edge> {
        Vec::new()
    }

    fn set_permissions(&self, held: EdgePerms) -> Result<()> {
        let before = self.held.get();
        if self.active.get() {
            self.lock(held)?;
            if let Err(error) = self.began_to_write(before, held) {
                self.lock(before)?;
                return Err(error);
            }
        }
        self.held.set(held);
        Ok(())
    }

    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        self.io.read(at, into).await.map_err(|error| self.failed("read from", error))
    }

    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        let result = self.io.write(at, from, flags.fua).await;
        result.map_err(|error| self.failed("write to", error))?;
        if flags.fua { self.promise() } else { Ok(()) }
    }

    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        let result = self.clear(&range, !flags.may_unmap).await;
        result.map_err(|error| refine(self.failed("write zeroes to", error)))?;
        if flags.fua { self.flush().await } else { Ok(()) }
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        let result = self.clear(&range, false).await;
        result.map_err(|error| refine(self.failed("discard from", error)))
    }

    async fn flush(&self) -> Result<()> {
        let synced = self.io.sync(None).await;
        synced.map_err(|error| self.failed("flush", error))?;
        self.promise()
    }

    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        let known = self.known_data.borrow().clone();
        if known.contains(&range.start) {
            let len = known.end.min(range.end) - range.start;
            return Ok(Extent { kind: ExtentKind::Data, len });
        }
        let all_data = Extent { kind: ExtentKind::Data, len: range.end - range.start };
        if self.no_seek.get().is_some() || self.kind == FileKind::BlockDevice {
            return Ok(all_data);
        }
        let (data, hole) = match self.seek(range.start).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!("'{}' is taken as all data: {error}", self.path);
                self.no_seek.get_or_init(|| ());
                return Ok(all_data);
            }
        };
        let (kind, end) = match data {
            Some(data) if data == range.start => (ExtentKind::Data, hole.unwrap_or(range.end)),
            Some(data) => (ExtentKind::Zero, data),
            None => (ExtentKind::Zero, range.end),
        };
        if kind == ExtentKind::Data {
            self.known_data.replace(range.start..end);
        }
        Ok(Extent { kind, len: end.min(range.end) - range.start })
    }

    async fn resize(&self, len: u64) -> Result<()> {
        if self.is_device() {
            return self.follow_device(len..=len).await;
        }
        self.known_data.take();
        let resized = self.io.blocking(move |fd| File::from(fd.try_clone_to_owned()?).set_len(len));
        resized.await.map_err(|error| self.failed("resize", error))?;
        self.len.set(whole_sectors(len));
        Ok(())
    }

    async fn grow(&self, len: u64) -> Result<ExtentKind> {
        if self.is_device() {
            return self.follow_device(len..=u64::MAX).await.map(|()| ExtentKind::Data);
        }
        self.resize(len).await.map(|()| ExtentKind::Zero)
    }

    async fn refresh(&self) -> Result<()> {
        if self.active.get() { Ok(()) } else { self.refresh_len().await }
    }

    async fn activate(&self, only_if: Option<u64>) -> Result<()> {
        let held = self.held.get();
        self.lock(held)?;
        let checked = match only_if {
            Some(mark) => self.check_mark(mark),
            None => Ok(()),
        };
        if let Err(error) = checked.and_then(|()| self.began_to_write(EdgePerms::IDLE, held)) {
            self.lock(EdgePerms::IDLE)?;
            return Err(error);
        }
        // Whatever was learnt while another process may have written is worth nothing.
        self.known_data.take();
        self.active.set(true);
        let refreshed = self.refresh_len().await;
        if refreshed.is_err() {
            self.active.set(false);
            self.lock(EdgePerms::IDLE)?;
        }
        refreshed
    }

    async fn inactivate(&self) -> Result<()> {
        // Also requests that nobody waits for any more must have landed before the locks go.
        self.io.file().quiet().await;
        if !self.mode.read_only {
            self.flush().await?;
            // Those too that they began while they were under way.
            self.io.file().quiet().await;
        }
        self.lock(EdgePerms::IDLE)?;
        self.active.set(false);
        Ok(())
    }

    async fn generation(&self) -> Result<Option<u64>> {
        let mark = self.mark.read(self.fd());
        mark.map_err(|error| self.failed("read the generation mark of", error))
    }
}

/// Alignment refused by `fallocate` means that the caller must write by hand, like no support.
fn refine(error: Error) -> Error {
    if error.errno() == libc::EINVAL { error.with_kind(ErrorKind::Unsupported) } else { error }
}

fn open_file(path: &Path, mode: FileMode) -> io::Result<Opened> {
    // Before it is opened: a pipe would wait for somebody at its other end.
    let file_type = fs::metadata(path)?.file_type();
    let kind = if file_type.is_file() {
        FileKind::Regular
    } else if file_type.is_block_device() {
        FileKind::BlockDevice
    } else {
        let text = "it is neither a regular file nor a block device";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    let flags = if mode.direct { libc::O_DIRECT } else { 0 };
    let file =
        OpenOptions::new().read(true).write(!mode.read_only).custom_flags(flags).open(path)?;
    let len = length(file.as_fd(), kind)?;
    let limits = limits(file.as_fd(), kind, mode.direct)?;
    Ok(Opened { file, kind, len, limits })
}

fn length(fd: BorrowedFd<'_>, kind: FileKind) -> io::Result<u64> {
    match kind {
        FileKind::BlockDevice => sys::device_len(fd),
        FileKind::Regular => {
            Ok(whole_sectors(File::from(fd.try_clone_to_owned()?).metadata()?.len()))
        }
    }
}

/// What must be read again when another host may have written: the length, and pages of the cache
/// that nobody keeps coherent.
fn refresh(fd: BorrowedFd<'_>, kind: FileKind) -> io::Result<u64> {
    if kind == FileKind::BlockDevice || sys::is_remote(fd) {
        sys::drop_cache(fd)?;
    }
    length(fd, kind)
}

fn limits(fd: BorrowedFd<'_>, kind: FileKind, direct: bool) -> io::Result<Limits> {
    let sector = match kind {
        FileKind::BlockDevice => sys::device_sector(fd)?,
        FileKind::Regular => 1,
    };
    let (memory, request) = if direct {
        match sys::direct_alignment(fd) {
            Some((memory, offset)) => (memory, offset.max(sector)),
            None => probe_alignment(fd)?,
        }
    } else {
        (1, 1)
    };
    Ok(Limits {
        request_alignment: request.next_power_of_two(),
        memory_alignment: memory.next_power_of_two(),
        max_transfer: MAX_TRANSFER,
        max_zeroes: MAX_TRANSFER,
        discard_granularity: sector.max(4096),
    })
}

/// Finds the smallest block that `O_DIRECT` takes where the file system does not say.
fn probe_alignment(fd: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    for size in [512_u32, 1024, 2048, 4096] {
        // At an odd block, so that larger blocks than this one do not pass.
        let (buf, at) = (IoBuf::alloc(size as usize), u64::from(size));
        match sys::transfer(Way::Read, fd, &buf, at) {
            Ok(_) => return Ok((size, size)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((4096, 4096))
}

#[cfg(test)]
#[path = "../file_tests.rs"]
mod tests;

#[cfg(test)]
mod flush_tests;
