//! The way from the UART's transmitter to the outside.

use std::collections::VecDeque;
use std::io;

/// From this many waiting bytes on, the UART says that its transmitter is busy.
pub const OUTPUT_BUSY: usize = 64 << 10;
/// No more than this many bytes ever wait.
pub const OUTPUT_LIMIT: usize = 1 << 20;
/// Longest piece handed to the sink at a time.
const PIECE: usize = 4096;

/// Where a serial port's output goes: the terminal, a file, a socket.
pub trait SerialSink: Send {
    /// Takes some of `bytes` and returns how many. Runs on vCPU threads, so it must not block: a
    /// sink that has no room answers [`io::ErrorKind::WouldBlock`], and the port keeps the bytes.
    /// Any other error means that nobody is there to take them, as when a cable is unplugged, and
    /// they are thrown away.
    ///
    /// # Errors
    /// As said above.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
}

/// Bytes on their way out, in order.
pub(super) struct Output {
    sink: Box<dyn SerialSink>,
    waiting: VecDeque<u8>,
    busy: bool,
    lost: u64,
    unplugged: bool,
}

impl Output {
    pub(super) fn new(sink: Box<dyn SerialSink>) -> Self {
        Self { sink, waiting: VecDeque::new(), busy: false, lost: 0, unplugged: false }
    }

    pub(super) fn set_sink(&mut self, sink: Box<dyn SerialSink>) {
        self.sink = sink;
        self.unplugged = false;
    }

    /// Whether the transmitter is busy as far as the guest can see. Stays so until half of what
    /// made it busy has gone, so that a guest sends in pieces worth an interrupt.
    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    pub(super) fn waiting(&self) -> &VecDeque<u8> {
        &self.waiting
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Puts `bytes`, as restored, before anything that is sent from now on.
    pub(super) fn restore(&mut self, bytes: Vec<u8>) {
        self.waiting = bytes.into();
        self.busy = self.waiting.len() >= OUTPUT_BUSY;
    }

    /// Hands to the sink what it takes. Returns whether nothing waits any more.
    pub(super) fn drain(&mut self) -> bool {
        while !self.waiting.is_empty() {
            let (first, _) = self.waiting.as_slices();
            let piece = &first[..first.len().min(PIECE)];
            match offer(&mut *self.sink, piece) {
                Offer::Taken(taken) => {
                    self.waiting.drain(..taken);
                    self.unplugged = false;
                }
                Offer::NoRoom => break,
                Offer::Gone(why) => {
                    let lost = self.waiting.len();
                    self.waiting.clear();
                    self.lose(lost, &why);
                }
            }
        }
        if self.waiting.len() < OUTPUT_BUSY / 2 {
            self.busy = false;
        }
        self.waiting.is_empty()
    }

    /// Sends a byte: at once, or when the sink has room.
    pub(super) fn send(&mut self, byte: u8) {
        if self.waiting.len() < OUTPUT_LIMIT {
            self.waiting.push_back(byte);
        } else {
            // Only a guest that ignores the busy transmitter for long gets here.
            self.lose(1, &"nobody reads it, and too much waits already");
        }
        self.drain();
        if self.waiting.len() >= OUTPUT_BUSY {
            self.busy = true;
        }
    }

    fn lose(&mut self, bytes: usize, why: &dyn std::fmt::Display) {
        self.lost = self.lost.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        // Once per time that it is unplugged: the guest decides how often it writes.
        if !std::mem::replace(&mut self.unplugged, true) {
            tracing::warn!("serial output is thrown away: {why}");
        }
    }
}

enum Offer {
    Taken(usize),
    NoRoom,
    Gone(io::Error),
}

fn offer(sink: &mut dyn SerialSink, piece: &[u8]) -> Offer {
    loop {
        return match sink.write(piece) {
            Ok(0) => Offer::NoRoom,
            Ok(taken) => Offer::Taken(taken.min(piece.len())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Offer::NoRoom,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Offer::Gone(error),
        };
    }
}
