//! A connection: a socket, with TLS on it or not.

use std::cell::{Cell, RefCell};
use std::io;

use super::outbox::Outbox;
use super::socket::Socket;
use super::tls::TlsSession;
use crate::buf::IoBuf;
use crate::error::Result;
use crate::executor::{Executor, Watch};

/// Bytes that are encrypted or decrypted at once, and copied once for it.
const TLS_CHUNK: usize = 64 << 10;

/// A connection whose calls never block: they answer `WouldBlock`.
pub(crate) struct Stream {
    /// Before the socket, for it is given up first.
    watch: Watch,
    socket: Socket,
    tls: Option<RefCell<TlsSession>>,
    closed: Cell<bool>,
    drained: Cell<bool>,
}

impl Stream {
    pub(crate) fn new(executor: &Executor, socket: Socket) -> io::Result<Stream> {
        let watch = Watch::new(executor, socket.fd()).map_err(io::Error::other)?;
        Ok(Stream { watch, socket, tls: None, closed: Cell::new(false), drained: Cell::new(false) })
    }

    /// The same connection with TLS from its next byte on. Nothing may have been read ahead.
    pub(crate) async fn with_tls(mut self, session: TlsSession) -> Result<Stream> {
        self.tls = Some(RefCell::new(session));
        while self.tls.as_ref().is_some_and(|tls| tls.borrow().is_handshaking()) {
            let step = self.handshake_step();
            match step {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let wants_write =
                        self.tls.as_ref().is_some_and(|tls| tls.borrow().wants_write());
                    if wants_write { self.writable().await? } else { self.readable().await }
                }
                Err(error) => {
                    // What rustls has to say to the other side about it.
                    let told = self.flush();
                    tracing::debug!("TLS handshake: {error}, told: {told:?}");
                    return Err(super::tls::handshake_error(&error));
                }
            }
        }
        Ok(self)
    }

    fn handshake_step(&self) -> io::Result<()> {
        let Some(tls) = &self.tls else { return Ok(()) };
        self.flush()?;
        let mut tls = tls.borrow_mut();
        if tls.is_handshaking() { tls.receive(&self.socket) } else { Ok(()) }
    }

    /// Waits until something can be received, or the connection ended. Only after there was nothing.
    pub(crate) async fn readable(&self) {
        self.watch.readable().await;
    }

    /// Waits until something can be sent, or the connection ended. Only after there was no room.
    pub(crate) async fn writable(&self) -> Result<()> {
        self.watch.writable().await
    }

    /// Receives into the buffer; 0 at the end of the stream.
    pub(crate) fn recv(&self, into: &IoBuf) -> io::Result<usize> {
        if self.closed.get() {
            return Ok(0);
        }
        let Some(tls) = &self.tls else {
            let received = self.socket.recv(into);
            self.drained.set(received.as_ref().is_ok_and(|count| *count < into.len()));
            return received;
        };
        let mut chunk = vec![0; TLS_CHUNK.min(into.len())];
        let count = tls.borrow_mut().recv(&self.socket, &mut chunk)?;
        into.slice(0..count).copy_from(&chunk[..count]);
        Ok(count)
    }

    /// Whether the last call took all that there was: then it need not be asked again before what
    /// [`readable`](Stream::readable) waits for.
    pub(crate) fn is_drained(&self) -> bool {
        self.drained.get()
    }

    fn recv_bytes(&self, into: &mut [u8]) -> io::Result<usize> {
        if self.closed.get() {
            return Ok(0);
        }
        match &self.tls {
            None => self.socket.recv_bytes(into),
            Some(tls) => tls.borrow_mut().recv(&self.socket, into),
        }
    }

    /// Sends from the front of the queue; how many bytes.
    pub(super) fn send(&self, queue: &Outbox) -> io::Result<usize> {
        if self.closed.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let Some(tls) = &self.tls else { return self.socket.send(queue) };
        // Unsent ciphertext must not pile up.
        self.flush()?;
        let mut chunk = vec![0; TLS_CHUNK.min(queue.held().max(1))];
        let count = queue.copy_to(&mut chunk);
        let taken = tls.borrow_mut().write(&chunk[..count])?;
        Ok(taken)
    }

    /// Sends what TLS has encrypted.
    pub(crate) fn flush(&self) -> io::Result<()> {
        match &self.tls {
            Some(tls) => tls.borrow_mut().flush(&self.socket),
            None => Ok(()),
        }
    }

    /// Fills `into`; whether the stream had that many bytes.
    pub(crate) async fn read_exact(&self, into: &mut [u8]) -> Result<bool> {
        let mut done = 0;
        while done < into.len() {
            match self.recv_bytes(&mut into[done..]) {
                Ok(0) => return Ok(false),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable().await,
                Err(error) => return Err(super::lost(error)),
            }
        }
        Ok(true)
    }

    /// Sends all of `bytes`.
    pub(crate) async fn write_all(&self, bytes: &[u8]) -> Result<()> {
        let mut queue = Outbox::default();
        queue.head(|out| out.extend_from_slice(bytes));
        loop {
            match queue.send(self) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(super::lost(error)),
            }
        }
    }

    /// Ends the connection at once: whoever waits for it sees its end.
    pub(crate) fn shut_down(&self) {
        self.closed.set(true);
        self.socket.shut_down();
    }

    /// Tells the other side that nothing more comes, where TLS wants that said.
    pub(crate) fn say_goodbye(&self) {
        if let Some(tls) = &self.tls {
            tls.borrow_mut().close();
            if let Err(error) = self.flush() {
                tracing::trace!("goodbye: {error}");
            }
        }
    }

    /// Who is on the other side, for messages.
    pub(crate) fn peer(&self) -> String {
        self.socket.peer()
    }
}
