//! A connected stream socket that never blocks, moving bytes straight from and to [`IoBuf`]s.
#![expect(unsafe_code, reason = "sends and receives memory that is no Rust slice")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use socket2::{SockRef, Socket as Raw, TcpKeepalive};

use super::outbox::Outbox;
use crate::buf::IoBuf;
use crate::sys::MAX_IOVECS;

/// A silent connection is probed after this long, so often, before it counts as lost.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// Room for what a local socket has to send, bytes; the host may grant less.
const SEND_BUFFER: usize = 2 << 20;

/// A connected stream socket.
pub(crate) struct Socket(Raw);

/// What is sent in one system call, in order. The memory must outlive it.
#[derive(Default)]
pub(crate) struct Gather(Vec<libc::iovec>);

impl Gather {
    pub(crate) fn with_room_for(count: usize) -> Gather {
        Gather(Vec::with_capacity(count.min(MAX_IOVECS)))
    }

    /// Whether nothing more fits.
    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= MAX_IOVECS
    }

    /// Adds bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0
            .push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
    }

    /// Adds a buffer, or as many of its pieces as fit.
    pub(crate) fn buf(&mut self, buf: &IoBuf) {
        match buf.single() {
            Some((start, len)) => {
                self.0.push(libc::iovec { iov_base: start.cast(), iov_len: len });
            }
            None => self.0.extend(buf.iovecs(MAX_IOVECS - self.0.len().min(MAX_IOVECS))),
        }
    }
}

impl Socket {
    /// Makes the socket non-blocking; of TCP, one that sends at once and notices a dead peer.
    pub(crate) fn new(raw: Raw, keep_alive: bool) -> io::Result<Socket> {
        raw.set_nonblocking(true)?;
        if raw.local_addr()?.is_unix() {
            raw.set_send_buffer_size(SEND_BUFFER)?;
        } else {
            raw.set_tcp_nodelay(true)?;
            if keep_alive {
                raw.set_tcp_keepalive(&KEEPALIVE)?;
            }
        }
        Ok(Socket(raw))
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Receives into the buffer; 0 at the end of the stream.
    pub(crate) fn recv(&self, into: &IoBuf) -> io::Result<usize> {
        let mut iovecs = Gather::default();
        iovecs.buf(into);
        // SAFETY: an all-zero header is valid, the iovecs live in this frame, and their memory is
        // kept alive and writable by `into`.
        let count = retry(|| unsafe { libc::recvmsg(self.fd(), &mut header(&mut iovecs), 0) })?;
        into.slice(0..count.min(into.len())).mark_written();
        Ok(count)
    }

    /// Receives into bytes; 0 at the end of the stream.
    pub(crate) fn recv_bytes(&self, into: &mut [u8]) -> io::Result<usize> {
        let (start, len) = (into.as_mut_ptr().cast(), into.len());
        // SAFETY: the slice is valid during the call.
        retry(|| unsafe { libc::recv(self.fd(), start, len, 0) })
    }

    /// Sends from the front of the queue; how many bytes.
    pub(crate) fn send(&self, queue: &Outbox) -> io::Result<usize> {
        self.send_gathered(&mut queue.gather())
    }

    /// Sends bytes in several pieces; how many.
    pub(crate) fn send_slices(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let mut gathered = Gather::default();
        slices.iter().take(MAX_IOVECS).for_each(|slice| gathered.bytes(slice));
        self.send_gathered(&mut gathered)
    }

    fn send_gathered(&self, gathered: &mut Gather) -> io::Result<usize> {
        // SAFETY: both callers borrow the memory that they gathered.
        retry(|| unsafe { libc::sendmsg(self.fd(), &header(gathered), libc::MSG_NOSIGNAL) })
    }

    /// Ends both directions: whoever waits for this socket is woken and sees the end.
    pub(crate) fn shut_down(&self) {
        // It fails when the other side was faster, which is fine.
        if let Err(error) = self.0.shutdown(std::net::Shutdown::Both) {
            tracing::trace!("shutdown: {error}");
        }
    }

    /// Who is on the other side, for messages.
    pub(crate) fn peer(&self) -> String {
        let peer = SockRef::from(&self.0).peer_addr().ok();
        let address = peer.and_then(|peer| peer.as_socket());
        address.map_or_else(|| "a local client".to_owned(), |address| address.to_string())
    }
}

fn header(gathered: &mut Gather) -> libc::msghdr {
    // SAFETY: all zeroes is a message without address, memory or control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = gathered.0.as_mut_ptr();
    header.msg_iovlen = gathered.0.len();
    header
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
