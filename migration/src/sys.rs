//! The system calls that the standard library does not have: gather, scatter, poll, connect.
#![expect(unsafe_code, reason = "system calls with raw addresses")]

use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::ram::GuestSlice;

/// Most pieces that one call takes (`UIO_MAXIOV`).
pub(crate) const MAX_PIECES: usize = 1024;

/// Memory that the kernel reads from. Laid out as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Piece<'a>(libc::iovec, PhantomData<&'a ()>);

/// Memory that the kernel writes to. Laid out as the kernel wants it.
#[repr(transparent)]
pub(crate) struct PieceMut<'a>(libc::iovec, PhantomData<&'a mut ()>);

impl<'a> Piece<'a> {
    pub(crate) fn bytes(bytes: &'a [u8]) -> Piece<'a> {
        let base = bytes.as_ptr().cast_mut().cast();
        Piece(libc::iovec { iov_base: base, iov_len: bytes.len() }, PhantomData)
    }

    pub(crate) fn guest(slice: GuestSlice<'a>) -> Piece<'a> {
        Piece(libc::iovec { iov_base: slice.start().cast(), iov_len: slice.len() }, PhantomData)
    }
}

impl<'a> PieceMut<'a> {
    pub(crate) fn bytes(bytes: &'a mut [u8]) -> PieceMut<'a> {
        let base = bytes.as_mut_ptr().cast();
        PieceMut(libc::iovec { iov_base: base, iov_len: bytes.len() }, PhantomData)
    }

    pub(crate) fn guest(slice: GuestSlice<'a>) -> PieceMut<'a> {
        PieceMut(libc::iovec { iov_base: slice.start().cast(), iov_len: slice.len() }, PhantomData)
    }
}

/// A piece that can lose its first bytes once they have been transferred.
pub(crate) trait Advance {
    fn iovec(&mut self) -> &mut libc::iovec;
}

impl Advance for Piece<'_> {
    fn iovec(&mut self) -> &mut libc::iovec {
        &mut self.0
    }
}

impl Advance for PieceMut<'_> {
    fn iovec(&mut self) -> &mut libc::iovec {
        &mut self.0
    }
}

/// Takes the first `done` bytes off `pieces`; returns what is left of them.
pub(crate) fn advance<P: Advance>(pieces: &mut [P], mut done: usize) -> &mut [P] {
    let mut whole = 0;
    for piece in &mut *pieces {
        let len = piece.iovec().iov_len;
        if done < len {
            break;
        }
        done -= len;
        whole += 1;
    }
    let rest = &mut pieces[whole..];
    if let Some(first) = rest.first_mut() {
        let iovec = first.iovec();
        // SAFETY: the loop left `done` less than the length, so the address stays inside the piece.
        iovec.iov_base = unsafe { iovec.iov_base.cast::<u8>().add(done) }.cast();
        iovec.iov_len -= done;
    }
    rest
}

/// Sends as much of `pieces` as the socket takes without waiting.
pub(crate) fn send(fd: BorrowedFd<'_>, pieces: &[Piece<'_>]) -> io::Result<usize> {
    let message = message(pieces.as_ptr().cast_mut().cast(), pieces.len());
    // SAFETY: `Piece` is transparent over iovec, and every piece is readable memory that outlives
    // this call by its lifetime; the kernel only reads.
    let sent = unsafe {
        libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
    };
    usize::try_from(sent).map_err(|_negative| io::Error::last_os_error())
}

/// Receives what has arrived into `pieces`, without waiting; 0 means the peer closed.
pub(crate) fn receive(fd: BorrowedFd<'_>, pieces: &mut [PieceMut<'_>]) -> io::Result<usize> {
    let mut message = message(pieces.as_mut_ptr().cast(), pieces.len());
    // SAFETY: `PieceMut` is transparent over iovec; every piece is writable memory that is borrowed
    // exclusively, or guest memory that anybody may write to, for longer than this call.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    usize::try_from(got).map_err(|_negative| io::Error::last_os_error())
}

fn message(pieces: *mut libc::iovec, count: usize) -> libc::msghdr {
    // SAFETY: all zero is a valid msghdr: no name, no pieces, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces;
    // More would only make the call fail; the caller loops anyway.
    message.msg_iovlen = count.min(MAX_PIECES);
    message
}

/// Is there something to read, or has the peer closed? Does not wait.
pub(crate) fn has_input(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [entry(fd.as_raw_fd(), libc::POLLIN)];
    matches!(poll(&mut fds, Some(Duration::ZERO)), Ok(ready) if ready > 0)
}

/// What [`wait`] waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Want {
    Read,
    Write,
}

/// What ended a [`wait`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    Ready,
    Interrupted,
    TimedOut,
}

/// Waits until `fd` is ready, `interrupt` is readable, or the time is over.
pub(crate) fn wait(
    fd: BorrowedFd<'_>,
    want: Want,
    interrupt: Option<BorrowedFd<'_>>,
    timeout: Option<Duration>,
) -> io::Result<Woken> {
    let events = match want {
        Want::Read => libc::POLLIN,
        Want::Write => libc::POLLOUT,
    };
    // A negative descriptor is skipped by poll.
    let stop = interrupt.map_or(-1, |fd| fd.as_raw_fd());
    let mut fds = [entry(fd.as_raw_fd(), events), entry(stop, libc::POLLIN)];
    let ready = match poll(&mut fds, timeout) {
        Ok(ready) => ready,
        // A signal is as good as being ready: the caller tries, and comes back.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Woken::Ready),
        Err(error) => return Err(error),
    };
    Ok(match ready {
        0 => Woken::TimedOut,
        _ if fds[1].revents != 0 => Woken::Interrupted,
        _ => Woken::Ready,
    })
}

fn entry(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<usize> {
    let spec = timeout.map(|t| libc::timespec {
        tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(t.subsec_nanos().cast_signed()),
    });
    let spec = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = fds.len() as libc::nfds_t;
    // SAFETY: `count` valid entries, a valid or null timeout, no signal mask.
    let ready = unsafe { libc::ppoll(fds.as_mut_ptr(), count, spec, std::ptr::null()) };
    usize::try_from(ready).map_err(|_negative| io::Error::last_os_error())
}

/// A socket address as the kernel wants it.
pub(crate) struct Address {
    storage: libc::sockaddr_storage,
    len: usize,
    family: libc::c_int,
}

impl Address {
    /// An internet address.
    pub(crate) fn internet(address: SocketAddr) -> Address {
        match address {
            SocketAddr::V4(v4) => Address::new(
                libc::AF_INET,
                libc::sockaddr_in {
                    sin_family: family(libc::AF_INET),
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                },
            ),
            SocketAddr::V6(v6) => Address::new(
                libc::AF_INET6,
                libc::sockaddr_in6 {
                    sin6_family: family(libc::AF_INET6),
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                },
            ),
        }
    }

    /// A socket in the file system; `None` where the path is too long for one or holds a zero byte.
    pub(crate) fn unix(path: &Path) -> Option<Address> {
        let bytes = path.as_os_str().as_bytes();
        let mut name = libc::sockaddr_un { sun_family: family(libc::AF_UNIX), sun_path: [0; 108] };
        // The last byte stays zero: it ends the name.
        if bytes.len() >= name.sun_path.len() || bytes.contains(&0) {
            return None;
        }
        for (to, from) in name.sun_path.iter_mut().zip(bytes) {
            *to = from.cast_signed();
        }
        Some(Address::new(libc::AF_UNIX, name))
    }

    fn new<T: Copy>(family: libc::c_int, address: T) -> Address {
        const { assert!(size_of::<T>() <= size_of::<libc::sockaddr_storage>()) };
        // SAFETY: all zero is a valid sockaddr_storage.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        // SAFETY: the storage is large enough (asserted) and aligned for every socket address.
        unsafe { (&raw mut storage).cast::<T>().write(address) };
        Address { storage, len: size_of::<T>(), family }
    }
}

fn family(family: libc::c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).expect("address families are small")
}

/// Starts to connect a new stream socket, without waiting. The second value tells whether it is
/// connected already; else it is once it becomes writable, unless the socket then has an error.
pub(crate) fn start_connect(address: &Address) -> io::Result<(OwnedFd, bool)> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(address.family, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = libc::socklen_t::try_from(address.len).expect("addresses are short");
    let name = (&raw const address.storage).cast::<libc::sockaddr>();
    // SAFETY: `name` is valid for `len` bytes.
    let done = unsafe { libc::connect(fd.as_raw_fd(), name, len) };
    if done == 0 {
        return Ok((fd, true));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINPROGRESS) { Ok((fd, false)) } else { Err(error) }
}

/// Sets a socket option that is an integer.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<i32>()).expect("four bytes");
    let value = (&raw const value).cast();
    // SAFETY: `value` points to an i32, as `len` says.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value, len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where data or a hole begins in a file, at or after `from`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Seek {
    Data,
    Hole,
}

/// Finds the next data or hole of a file; `None` when there is none before its end. Moves the file's
/// position, which nobody uses on memory files.
pub(crate) fn seek(fd: RawFd, what: Seek, from: u64) -> io::Result<Option<u64>> {
    let whence = match what {
        Seek::Data => libc::SEEK_DATA,
        Seek::Hole => libc::SEEK_HOLE,
    };
    let Ok(offset) = libc::off_t::try_from(from) else { return Ok(None) };
    // SAFETY: no pointers; a wrong descriptor gives an error.
    let found = unsafe { libc::lseek(fd, offset, whence) };
    if let Ok(found) = u64::try_from(found) {
        return Ok(Some(found));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) }
}

/// Which direction of a connection to shut.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side {
    Write,
    Both,
}

/// Shuts a connection; one that is gone already is shut enough.
pub(crate) fn shutdown(fd: BorrowedFd<'_>, side: Side) {
    let how = match side {
        Side::Write => libc::SHUT_WR,
        Side::Both => libc::SHUT_RDWR,
    };
    // SAFETY: no pointers.
    unsafe { libc::shutdown(fd.as_raw_fd(), how) };
}

/// Has the kernel make room for a slice all at once. Where it cannot (before Linux 5.14), the pages come one
/// by one when they are written.
pub(crate) fn populate(slice: GuestSlice<'_>) {
    // SAFETY: a mapped range of whole pages, whose contents this leaves alone.
    let done =
        unsafe { libc::madvise(slice.start().cast(), slice.len(), libc::MADV_POPULATE_WRITE) };
    if done != 0 {
        tracing::trace!("populating guest memory: {}", io::Error::last_os_error());
    }
}
