//! The 16550 serial port.
//!
//! The register model is vm-superio's. Around it this module adds what a monitor needs:
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

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use ferry_migration::state::{Bytes, Migrate, Sections};
use ferry_migration::{Error as StateError, Result as StateResult};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::bus::{BusDevice, BusRange};
use crate::irq::IrqLine;
use output::Output;
pub use output::{OUTPUT_BUSY, OUTPUT_LIMIT, SerialSink};
pub use sink::FdSink;
use state::SerialState;

/// The ports of the first serial port.
pub const COM1_PORTS: BusRange = BusRange::new(0x3f8, 8);
/// Its interrupt, edge-triggered as on the ISA bus.
pub const COM1_IRQ: u8 = 4;
/// No more than this much input waits for the FIFO.
pub const INPUT_LIMIT: usize = 64 << 10;

/// The model's FIFO.
const FIFO_LEN: usize = 64;

const INTERRUPT_ENABLE: u8 = 1;
const LINE_CONTROL: u8 = 3;
const LINE_STATUS: u8 = 5;

/// Line control: the divisor latch is in the place of data and interrupt enable.
const DIVISOR_LATCH: u8 = 1 << 7;
const DATA_READY: u8 = 1 << 0;
/// Line status: transmitter holding register and shift register empty.
const TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;

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
    uart: Serial<IrqEdge, NoEvents, Output>,
    line: Arc<dyn IrqLine>,
    notify: SerialNotify,
    input: VecDeque<u8>,
    /// `push_input` has refused something since the last notice.
    input_refused: bool,
    /// The owner knows that output waits.
    output_noticed: bool,
    /// The transmitter has become free, and its interrupt is still to be raised.
    transmitter_freed: bool,
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
            uart: Serial::new(IrqEdge(Arc::clone(&line)), Output::new(sink)),
            line,
            notify,
            input: VecDeque::new(),
            input_refused: false,
            output_noticed: false,
            transmitter_freed: false,
        }
    }

    /// Sends output to `sink` from now on, beginning with what waits.
    pub fn set_sink(&mut self, sink: Box<dyn SerialSink>) {
        self.uart.writer_mut().set_sink(sink);
        self.output_noticed = false;
        self.after_access();
    }

    /// Hands waiting output to the sink. Returns whether none waits any more; if some does, call
    /// again when the sink has room. The owner does so after [`SerialNotice::OutputWaits`] and
    /// before it exits.
    pub fn drain_output(&mut self) -> bool {
        self.after_access();
        self.uart.writer().waiting().is_empty()
    }

    /// Bytes of output that were lost: nobody was there, or the guest sent without end to a busy
    /// transmitter.
    pub fn lost_output(&self) -> u64 {
        self.uart.writer().lost()
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
        let fresh = Serial::new(IrqEdge(Arc::clone(&self.line)), Output::new(Box::new(NoSink)));
        let output = std::mem::replace(&mut self.uart, fresh).into_writer();
        self.uart = Serial::new(IrqEdge(Arc::clone(&self.line)), output);
        self.input.clear();
        self.transmitter_freed = false;
        self.after_access();
    }

    fn read_register(&mut self, register: u8) -> u8 {
        let value = self.uart.read(register);
        if register == LINE_STATUS && self.uart.writer().is_busy() {
            return value & !TRANSMITTER_EMPTY;
        }
        value
    }

    fn write_register(&mut self, register: u8, value: u8) {
        // Neither the sink nor the interrupt can fail, and loop-back drops what does not fit.
        if let Err(error) = self.uart.write(register, value) {
            tracing::debug!("{}: {error}", self.name);
        }
    }

    /// What can follow from any access: output moves on, input moves up, the owner hears of it.
    fn after_access(&mut self) {
        let was_busy = self.uart.writer().is_busy();
        let drained = self.uart.writer_mut().drain();
        self.transmitter_freed |= was_busy && !self.uart.writer().is_busy();
        if self.transmitter_freed && self.uart.read(LINE_CONTROL) & DIVISOR_LATCH == 0 {
            // Writing the enable bits again raises the interrupts whose conditions hold.
            let enabled = self.uart.read(INTERRUPT_ENABLE);
            self.write_register(INTERRUPT_ENABLE, enabled);
            self.transmitter_freed = false;
        }
        if drained {
            self.output_noticed = false;
        } else if !std::mem::replace(&mut self.output_noticed, true) {
            (self.notify)(SerialNotice::OutputWaits);
        }
        self.move_input();
    }

    fn move_input(&mut self) {
        while !self.input.is_empty() && self.uart.fifo_capacity() > 0 {
            let (first, _) = self.input.as_slices();
            match self.uart.enqueue_raw_bytes(first) {
                // In loop-back nothing is received; the input waits.
                Ok(0) | Err(_) => break,
                Ok(taken) => drop(self.input.drain(..taken)),
            }
        }
        if self.input_refused && self.input.len() <= INPUT_LIMIT / 2 {
            self.input_refused = false;
            (self.notify)(SerialNotice::InputRoom);
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
        let uart = self.uart.state();
        let bytes = |queue: &VecDeque<u8>| Bytes(queue.iter().copied().collect());
        let state = SerialState {
            divisor_low: uart.baud_divisor_low,
            divisor_high: uart.baud_divisor_high,
            interrupt_enable: uart.interrupt_enable,
            interrupt_identification: uart.interrupt_identification,
            line_control: uart.line_control,
            line_status: uart.line_status,
            modem_control: uart.modem_control,
            modem_status: uart.modem_status,
            scratch: uart.scratch,
            receive_fifo: Bytes(uart.in_buffer),
            input: bytes(&self.input),
            output: bytes(self.uart.writer().waiting()),
        };
        out.save(&self.name, &state)
    }

    fn restore(&mut self, from: &mut Sections) -> StateResult<()> {
        let state: SerialState = from.load(&self.name)?;
        check(&self.name, &state)?;
        let registers = vm_superio::SerialState {
            baud_divisor_low: state.divisor_low,
            baud_divisor_high: state.divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.receive_fifo.0,
        };
        let edge = || IrqEdge(Arc::clone(&self.line));
        // The output stays with the sink it has; the model takes it over only once it exists.
        let mut uart =
            Serial::from_state(&registers, edge(), NoEvents, Output::new(Box::new(NoSink)))
                .map_err(|error| {
                    StateError::state(format!("restoring {}", self.name)).because(error)
                })?;
        std::mem::swap(uart.writer_mut(), self.uart.writer_mut());
        uart.writer_mut().restore(state.output.0);
        self.uart = uart;
        self.input = state.input.0.into();
        self.input_refused = false;
        self.transmitter_freed = false;
        self.output_noticed = false;
        self.after_access();
        Ok(())
    }
}

/// Refuses registers that the model never has.
fn check(name: &str, state: &SerialState) -> StateResult<()> {
    let bad = |what: &str| Err(StateError::state(format!("saved serial port {name}: {what}")));
    if state.receive_fifo.0.len() > FIFO_LEN {
        return bad("the receive FIFO is too long");
    }
    if state.input.0.len() > INPUT_LIMIT || state.output.0.len() > OUTPUT_LIMIT {
        return bad("too much input or output waits");
    }
    if state.interrupt_enable & 0xf0 != 0 || state.interrupt_identification & !0b0111 != 0 {
        return bad("an interrupt register has bits that do not exist");
    }
    let ready = state.line_status & DATA_READY != 0;
    if state.line_status & !DATA_READY != TRANSMITTER_EMPTY
        || ready == state.receive_fifo.0.is_empty()
    {
        return bad("line status and receive FIFO contradict each other");
    }
    Ok(())
}

/// An edge on the line for every new interrupt condition of the model.
struct IrqEdge(Arc<dyn IrqLine>);

impl Trigger for IrqEdge {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse();
        Ok(())
    }
}

/// Stands in for a moment while a sink changes hands.
struct NoSink;

impl SerialSink for NoSink {
    fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::WouldBlock.into())
    }
}

#[cfg(test)]
#[path = "serial_tests.rs"]
mod tests;
