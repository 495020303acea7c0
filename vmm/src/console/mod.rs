//! The other end of the serial port: the terminal, a file or a socket.

mod socket;
mod terminal;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferry_block::{Executor, Notify};
use ferry_devices::serial::{FdSink, SerialNotice, SerialPort, SerialSink};

use crate::config::SerialConfig;
use crate::error::{Error, ErrorKind, Result};
use terminal::RawMode;

/// Bytes read from the outside at once.
const PIECE: usize = 4096;
/// How long output that nobody takes holds up the end of the process.
const PATIENCE_NS: u64 = 500_000_000;
/// Between two looks whether it was taken.
const PAUSE: Duration = Duration::from_millis(5);
/// Ctrl-A: the next character is for us.
const ESCAPE: u8 = 1;

/// A serial port as the machine and the console share it.
pub type SharedSerial = Arc<Mutex<SerialPort>>;

/// What the person at the terminal wants of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleEvent {
    /// Somebody typed Ctrl-A x.
    Quit,
}

/// The outside of the serial port. Opened before the machine is built, so that a wrong path costs nothing.
pub struct Console {
    backend: RefCell<Backend>,
    cable: Rc<Cable>,
}

enum Backend {
    Stdio {
        input: OwnedFd,
        /// Put back when the console is closed.
        _raw: Option<RawMode>,
    },
    Socket(socket::Listener),
    /// Output only, or nothing at all.
    Silent,
}

/// What tasks of the console share.
struct Cable {
    /// The serial port has room again for input that it had refused.
    room: Notify,
    has_room: Cell<bool>,
    /// Where output goes now; to wait until it takes more.
    output: Cell<Option<RawFd>>,
    /// A task waits for that.
    draining: Cell<bool>,
}

impl Console {
    /// Open what `config` says, with the sink for the serial port's output.
    ///
    /// # Errors
    /// When a file or socket cannot be made, or the terminal refuses raw mode.
    pub fn open(config: &SerialConfig) -> Result<(Console, Box<dyn SerialSink>)> {
        let (backend, sink): (Backend, Option<FdSink>) = match config {
            SerialConfig::Stdio => {
                let failed = |e| Error::host("use standard input and output as serial port", e);
                let input = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
                let output = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
                let raw = RawMode::enter(&input).map_err(failed)?;
                let sink = FdSink::new(output).map_err(failed)?;
                (Backend::Stdio { input, _raw: raw }, Some(sink))
            }
            SerialConfig::File(path) => {
                let failed = |e| {
                    let context = format!("cannot write serial output to {}", path.display());
                    Error::because(ErrorKind::Config, context, e)
                };
                let file = File::create(path).map_err(failed)?;
                (Backend::Silent, Some(FdSink::new(file.into()).map_err(failed)?))
            }
            SerialConfig::Socket(path) => (Backend::Socket(socket::Listener::bind(path)?), None),
            SerialConfig::None => (Backend::Silent, None),
        };
        let cable = Cable {
            room: Notify::new(),
            has_room: Cell::new(true),
            output: Cell::new(sink.as_ref().map(FdSink::as_raw_fd)),
            draining: Cell::new(false),
        };
        let sink: Box<dyn SerialSink> = match sink {
            Some(sink) => Box::new(sink),
            None if *config == SerialConfig::None => Box::new(Nowhere),
            None => Box::new(Nobody),
        };
        Ok((Console { backend: RefCell::new(backend), cable: Rc::new(cable) }, sink))
    }

    /// Carry input to `serial` from now on; `events` hears what the person at the terminal wants.
    pub fn start(
        &self,
        executor: &Executor,
        serial: &SharedSerial,
        events: impl Fn(ConsoleEvent) + 'static,
    ) -> Result<()> {
        let (cable, serial) = (Rc::clone(&self.cable), Arc::clone(serial));
        let task_executor = executor.clone();
        match &*self.backend.borrow() {
            Backend::Stdio { input, .. } => {
                let failed = |e| Error::host("read standard input", e);
                let input = File::from(input.try_clone().map_err(failed)?);
                drop(executor.spawn(async move {
                    let mut keys = Keys::new(input.is_terminal());
                    let typed = |piece: &mut Vec<u8>| keys.filter(piece);
                    if cable.carry(&task_executor, &input, &serial, typed).await == End::Quit {
                        events(ConsoleEvent::Quit);
                    }
                }));
            }
            Backend::Socket(listener) => {
                let listener = listener.try_clone()?;
                let serve = async move { listener.serve(&task_executor, &cable, &serial).await };
                drop(executor.spawn(serve));
            }
            Backend::Silent => {}
        }
        Ok(())
    }

    /// The serial port has something to say.
    pub fn notice(&self, executor: &Executor, serial: &SharedSerial, notice: SerialNotice) {
        match notice {
            SerialNotice::InputRoom => {
                self.cable.has_room.set(true);
                self.cable.room.notify_all();
            }
            SerialNotice::OutputWaits => self.cable.drain(executor, serial),
        }
    }

    /// Let output that still waits go out, before the process ends. Gives up where nobody takes it.
    pub async fn finish(&self, executor: &Executor, serial: &SharedSerial) {
        let clock = executor.clock();
        let end = clock.now().saturating_add(PATIENCE_NS);
        while !lock(serial).drain_output() && clock.now() < end {
            executor.sleep(PAUSE).await;
        }
    }

    /// Give the terminal its mode back, and the socket's name up. At the end tasks may still hold the console
    /// and wait for input that never comes, so that it is not dropped.
    pub fn close(&self) {
        self.backend.replace(Backend::Silent);
    }
}

/// How reading input ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// No more input.
    Eof,
    /// Ctrl-A x.
    Quit,
}

impl Cable {
    /// Hand waiting output to the outside whenever that has room.
    fn drain(self: &Rc<Self>, executor: &Executor, serial: &SharedSerial) {
        if self.draining.replace(true) {
            return;
        }
        let (cable, serial, task_executor) =
            (Rc::clone(self), Arc::clone(serial), executor.clone());
        drop(executor.spawn(async move {
            while let Some(output) = cable.output.get() {
                let waited = task_executor.writable(output).await;
                if lock(&serial).drain_output() || waited.is_err() {
                    break;
                }
            }
            cable.draining.set(false);
        }));
    }

    /// Read `input` to its end and type it into the serial port. `filter` may take bytes out and end it.
    async fn carry(
        &self,
        executor: &Executor,
        input: &File,
        serial: &SharedSerial,
        mut filter: impl FnMut(&mut Vec<u8>) -> bool,
    ) -> End {
        let mut piece = Vec::new();
        loop {
            // A regular file cannot be waited for, and need not be.
            let waited = executor.readable(input.as_raw_fd()).await;
            piece.resize(PIECE, 0);
            match io::Read::read(&mut &*input, &mut piece) {
                Ok(0) => return End::Eof,
                Ok(len) => piece.truncate(len),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && waited.is_ok() => continue,
                Err(e) => {
                    tracing::debug!("serial input ends: {e}");
                    return End::Eof;
                }
            }
            let quit = filter(&mut piece);
            self.type_in(serial, &piece).await;
            if quit {
                return End::Quit;
            }
        }
    }

    async fn type_in(&self, serial: &SharedSerial, mut bytes: &[u8]) {
        loop {
            self.has_room.set(false);
            let taken = lock(serial).push_input(bytes);
            bytes = &bytes[taken..];
            if bytes.is_empty() {
                return;
            }
            self.room.wait_until(|| self.has_room.get()).await;
        }
    }
}

/// Finds Ctrl-A x among what is typed at a terminal.
struct Keys {
    terminal: bool,
    escaped: bool,
}

impl Keys {
    fn new(terminal: bool) -> Keys {
        Keys { terminal, escaped: false }
    }

    /// Take our own keys out of `typed`; true when the person wants to leave. Ctrl-A twice is one Ctrl-A for
    /// the guest.
    fn filter(&mut self, typed: &mut Vec<u8>) -> bool {
        if !self.terminal {
            return false;
        }
        let mut quit = false;
        typed.retain(|&key| {
            let was_escaped = self.escaped;
            self.escaped = !was_escaped && key == ESCAPE;
            quit |= was_escaped && matches!(key, b'x' | b'X');
            !self.escaped && (!was_escaped || key == ESCAPE) && !quit
        });
        quit
    }
}

/// The sink when nobody listens.
struct Nobody;

impl SerialSink for Nobody {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::NotConnected.into())
    }
}

/// The sink of a port that was not wanted.
struct Nowhere;

impl SerialSink for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
}

fn lock(serial: &SharedSerial) -> std::sync::MutexGuard<'_, SerialPort> {
    serial.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key_is_ours_and_twice_it_is_the_guests() {
        let mut keys = Keys::new(true);
        let mut typed = b"a\x01\x01b\x01cd".to_vec();
        assert!(!keys.filter(&mut typed));
        assert_eq!(typed, b"a\x01bd");
        let mut half = b"z\x01".to_vec();
        assert!(!keys.filter(&mut half));
        assert_eq!(half, b"z");
        let mut rest = b"xy".to_vec();
        assert!(keys.filter(&mut rest));
        assert_eq!(rest, b"");
    }

    #[test]
    fn a_pipe_has_no_escape_key() {
        let mut typed = b"\x01x".to_vec();
        assert!(!Keys::new(false).filter(&mut typed));
        assert_eq!(typed, b"\x01x");
    }
}
