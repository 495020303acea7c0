//! The 16550 serial port.
//!
//! The registers are in `uart`. Around them this module adds what a monitor needs:
//!
//! * **Output is not lost and does not block.** A byte goes to the [`SerialSink`] at once; what the
//!   sink has no room for waits in order. From [`OUTPUT_BUSY`] waiting bytes on, the transmitter
//!   reads as busy, as on a slow line: an interrupt-driven driver stops and goes on at the next
//!   interrupt; a polling one waits as long as it cares to. What a guest sends in spite of that
//!   waits too, up to [`OUTPUT_LIMIT`] bytes; only beyond are bytes lost, and counted. What still
//!   waits when the guest moves is part of the saved state.
//! * **Input is bounded.** It waits for room in the FIFO, and [`SerialPort::push_input`] says how
//!   much it took.

mod output;
mod sink;
pub mod state;
mod uart;

use std::collections::VecDeque;
use std::sync::Arc;

use ferry_migration::state::{Bytes, Migrate, Sections};
use ferry_migration::{Error as StateError, Result as StateResult};

use crate::bus::{BusDevice, BusRange};
use crate::irq::IrqLine;
use output::Output;
pub use output::{OUTPUT_BUSY, OUTPUT_LIMIT, SerialSink};
pub use sink::FdSink;
use state::SerialState;
use uart::Uart;

/// The ports of the first serial port.
pub const COM1_PORTS: BusRange = BusRange::new(0x3f8, 8);
/// Its interrupt, edge-triggered as on the ISA bus.
pub const COM1_IRQ: u8 = 4;
/// No more than this much input waits for the FIFO.
pub const INPUT_LIMIT: usize = 64 << 10;

/// The register of received and sent data.
const DATA: u8 = 0;

/// Something that the owner of a [`SerialPort`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialNotice {
    /// Output waits for the sink. Call [`SerialPort::drain_output`] when the sink has room again.
    OutputWaits,
    /// [`SerialPort::push_input`] has refused something and now has room.
    InputRoom,
}

/// Told of [`SerialNotice`]s, on vCPU threads with the port locked: it must not block nor come back
/// to the port.
pub type SerialNotify = Arc<dyn Fn(SerialNotice) + Send + Sync>;

/// A 16550 UART.
pub struct SerialPort {
    name: String,
    uart: Uart,
    output: Output,
    line: Arc<dyn IrqLine>,
    /// What the line was driven to last.
    level: bool,
    notify: SerialNotify,
    input: VecDeque<u8>,
    /// `push_input` has refused something since the last notice.
    input_refused: bool,
    /// The owner knows that output waits.
    output_noticed: bool,
}

impl SerialPort {
    /// A port after power-on; `name` is its instance name in saved states.
    pub fn new(
        name: &str,
        line: Arc<dyn IrqLine>,
        sink: Box<dyn SerialSink>,
        notify: SerialNotify,
    ) -> Self {
        Self {
            name: name.to_owned(),
            uart: Uart::new(),
            output: Output::new(sink),
            line,
            level: false,
            notify,
            input: VecDeque::new(),
            input_refused: false,
            output_noticed: false,
        }
    }

    /// Sends output to `sink` from now on, beginning with what waits.
    pub fn set_sink(&mut self, sink: Box<dyn SerialSink>) {
        self.output.set_sink(sink);
        self.output_noticed = false;
        self.after_access();
    }

    /// Hands waiting output to the sink. Returns whether none waits any more; if some does, call
    /// again when the sink has room. The owner does so after [`SerialNotice::OutputWaits`] and
    /// before it exits.
    pub fn drain_output(&mut self) -> bool {
        self.after_access();
        self.output.waiting().is_empty()
    }

    /// Bytes of output that were lost: nobody was there, or the guest sent without end to a busy
    /// transmitter.
    pub fn lost_output(&self) -> u64 {
        self.output.lost()
    }

    /// Gives input to the guest. Returns how many of `bytes` were taken; the caller keeps the rest
    /// until [`SerialNotice::InputRoom`].
    pub fn push_input(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(INPUT_LIMIT - self.input.len());
        self.input.extend(&bytes[..taken]);
        self.input_refused |= taken < bytes.len();
        self.after_access();
        taken
    }

    /// Back to the state after power-on; what the guest has sent still goes out.
    pub fn reset(&mut self) {
        self.uart = Uart::new();
        self.input.clear();
        self.after_access();
    }

    fn read_register(&mut self, register: u8) -> u8 {
        let received = self.uart.interrupts();
        let value = self.uart.read(register, self.output.is_busy());
        if received && register == DATA {
            // For a handler that fetches one byte and waits for the interrupt of the next: there is one,
            // as there is from the chip when characters stay in its FIFO for a while.
            self.drive(false);
        }
        value
    }

    fn write_register(&mut self, register: u8, value: u8) {
        let sends = self.uart.transmits(register);
        self.uart.write(register, value, self.output.is_busy());
        if sends {
            // The transmitter is full for a moment at least, and each time that it empties interrupts anew.
            self.drive(self.uart.interrupts());
            self.output.send(value);
            if !self.output.is_busy() {
                self.uart.transmitter_emptied();
            }
        }
    }

    /// What can follow from any access: output moves on, input moves up, the owner hears of it.
    fn after_access(&mut self) {
        let was_busy = self.output.is_busy();
        let drained = self.output.drain();
        if was_busy && !self.output.is_busy() {
            self.uart.transmitter_emptied();
        }
        if drained {
            self.output_noticed = false;
        } else if !std::mem::replace(&mut self.output_noticed, true) {
            (self.notify)(SerialNotice::OutputWaits);
        }
        self.move_input();
        self.drive(self.uart.interrupts());
    }

    fn move_input(&mut self) {
        let count = self.uart.room().min(self.input.len());
        self.input.drain(..count).for_each(|byte| self.uart.receive(byte));
        if self.input_refused && self.input.len() <= INPUT_LIMIT / 2 {
            self.input_refused = false;
            (self.notify)(SerialNotice::InputRoom);
        }
    }

    fn drive(&mut self, level: bool) {
        if std::mem::replace(&mut self.level, level) != level {
            self.line.set_level(level);
        }
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..).zip(data.iter_mut()) {
            *byte = u8::try_from(register).map_or(0xff, |register| self.read_register(register));
        }
        self.after_access();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset..).zip(data) {
            if let Ok(register) = u8::try_from(register) {
                self.write_register(register, *byte);
            }
        }
        self.after_access();
    }
}

impl Migrate for SerialPort {
    fn save(&self, out: &mut Sections) -> StateResult<()> {
        let bytes = |queue: &VecDeque<u8>| Bytes(queue.iter().copied().collect());
        let state = self.uart.save(bytes(&self.input), bytes(self.output.waiting()));
        out.save(&self.name, &state)
    }

    fn restore(&mut self, from: &mut Sections) -> StateResult<()> {
        let state: SerialState = from.load(&self.name)?;
        let uart = Uart::restore(&self.name, &state)?;
        if state.input.0.len() > INPUT_LIMIT || state.output.0.len() > OUTPUT_LIMIT {
            return Err(StateError::state(format!(
                "saved serial port {}: too much input or output waits",
                self.name
            )));
        }
        self.uart = uart;
        self.output.restore(state.output.0);
        self.input = state.input.0.into();
        self.input_refused = false;
        self.output_noticed = false;
        self.after_access();
        Ok(())
    }
}

#[cfg(test)]
#[path = "serial_tests.rs"]
mod tests;
