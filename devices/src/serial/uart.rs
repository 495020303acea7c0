//! The registers of a 16550A (National Semiconductor PC16550D, section 8), without the line behind them.
//!
//! The interrupt output is what it is on the chip: high while any condition that is enabled holds. The
//! identification register names the most urgent of them for as long as it holds, so that a handler may read
//! one byte for each interrupt, or loop until nothing is left; and enabling a condition that holds already
//! interrupts at once.
//!
//! Absent: line errors, breaks and modem events, which never happen; and clearing the FIFOs, by which a
//! driver that starts would throw away what was typed before.

use std::collections::VecDeque;

use ferry_migration::state::Bytes;
use ferry_migration::{Error as StateError, Result as StateResult};

use super::state::SerialState;

/// Room for received bytes while the FIFOs are on; a holding register's while they are off.
pub(super) const FIFO_LEN: usize = 64;

const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
/// Read: interrupt identification. Written: FIFO control.
const IDENTIFICATION: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const MODEM_STATUS: u8 = 6;
const SCRATCH: u8 = 7;

/// Interrupt enable: data was received, and the transmitter has room.
const ENABLE_RECEIVED: u8 = 1 << 0;
const ENABLE_TRANSMITTER: u8 = 1 << 1;
const ENABLES: u8 = 0x0f;
/// Identification: nothing, the transmitter has room, data was received.
const NOTHING: u8 = 1;
const TRANSMITTER: u8 = 2;
const RECEIVED: u8 = 4;
/// Identification: the FIFOs are on.
const FIFOS_ON: u8 = 0b11 << 6;
/// FIFO control: turns them on.
const FIFO_ENABLE: u8 = 1 << 0;
/// Line control: the divisor latch is in the place of data and interrupt enable.
pub(super) const DIVISOR_LATCH: u8 = 1 << 7;
/// Eight bits a character.
const EIGHT_BITS: u8 = 3;
/// Divisor for 9600 baud; nothing takes time here.
const DIVISOR: u8 = 12;
/// Modem control: data terminal ready, request to send, both outputs, loop-back.
const TERMINAL_READY: u8 = 1 << 0;
const REQUEST_TO_SEND: u8 = 1 << 1;
const OUTPUT_1: u8 = 1 << 2;
const OUTPUT_2: u8 = 1 << 3;
const LOOP_BACK: u8 = 1 << 4;
/// Line status: a received byte can be read.
pub(super) const DATA_READY: u8 = 1 << 0;
/// Line status: transmitter holding register and shift register empty.
pub(super) const TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;
/// Modem status: clear to send, data set ready, ring, carrier.
const CLEAR_TO_SEND: u8 = 1 << 4;
const SET_READY: u8 = 1 << 5;
const RING: u8 = 1 << 6;
const CARRIER: u8 = 1 << 7;
/// The other end is there and listens.
const CONNECTED: u8 = CLEAR_TO_SEND | SET_READY | CARRIER;

/// The registers and the receiver.
pub(super) struct Uart {
    divisor: [u8; 2],
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    fifos_on: bool,
    received: VecDeque<u8>,
    /// The transmitter has become empty, and the driver has not been told yet.
    emptied: bool,
}

impl Uart {
    /// As after power-on.
    pub(super) fn new() -> Self {
        Self {
            divisor: [DIVISOR, 0],
            interrupt_enable: 0,
            line_control: EIGHT_BITS,
            modem_control: OUTPUT_2,
            scratch: 0,
            fifos_on: false,
            received: VecDeque::new(),
            emptied: false,
        }
    }

    /// The level of the interrupt output.
    pub(super) fn interrupts(&self) -> bool {
        self.identification() != NOTHING
    }

    fn identification(&self) -> u8 {
        if self.interrupt_enable & ENABLE_RECEIVED != 0 && !self.received.is_empty() {
            RECEIVED
        } else if self.interrupt_enable & ENABLE_TRANSMITTER != 0 && self.emptied {
            TRANSMITTER
        } else {
            NOTHING
        }
    }

    fn latch_is_open(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }

    /// Whether what is sent comes back, and nothing else is received.
    pub(super) fn loops_back(&self) -> bool {
        self.modem_control & LOOP_BACK != 0
    }

    /// Whether a write to `register` now goes to the transmitter and from there to the outside.
    pub(super) fn transmits(&self, register: u8) -> bool {
        register == DATA && !self.latch_is_open() && !self.loops_back()
    }

    /// The guest reads a register. `busy`: the transmitter has no room.
    pub(super) fn read(&mut self, register: u8, busy: bool) -> u8 {
        match register {
            DATA | INTERRUPT_ENABLE if self.latch_is_open() => self.divisor[usize::from(register)],
            DATA => self.received.pop_front().unwrap_or(0),
            INTERRUPT_ENABLE => self.interrupt_enable,
            IDENTIFICATION => {
                let identification = self.identification();
                // Reading it is the answer to this one; a received byte must be fetched.
                if identification == TRANSMITTER {
                    self.emptied = false;
                }
                identification | if self.fifos_on { FIFOS_ON } else { 0 }
            }
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => {
                let empty = if busy { 0 } else { TRANSMITTER_EMPTY };
                empty | if self.received.is_empty() { 0 } else { DATA_READY }
            }
            MODEM_STATUS => self.modem_status(),
            SCRATCH => self.scratch,
            _ => 0xff,
        }
    }

    /// The guest writes a register; what it sends is no business of this. `busy`: the transmitter has no room.
    pub(super) fn write(&mut self, register: u8, value: u8, busy: bool) {
        match register {
            DATA | INTERRUPT_ENABLE if self.latch_is_open() => {
                self.divisor[usize::from(register)] = value;
            }
            DATA if self.loops_back() => self.receive(value),
            DATA => self.emptied = false,
            INTERRUPT_ENABLE => {
                let newly = value & !self.interrupt_enable;
                self.interrupt_enable = value & ENABLES;
                self.emptied |= newly & ENABLE_TRANSMITTER != 0 && !busy;
            }
            IDENTIFICATION => self.fifos_on = value & FIFO_ENABLE != 0,
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value,
            SCRATCH => self.scratch = value,
            _ => {}
        }
    }

    /// The transmitter has sent what it had.
    pub(super) fn transmitter_emptied(&mut self) {
        self.emptied = true;
    }

    /// How many bytes the receiver takes now.
    pub(super) fn room(&self) -> usize {
        let whole = if self.fifos_on { FIFO_LEN } else { 1 };
        if self.loops_back() { 0 } else { whole.saturating_sub(self.received.len()) }
    }

    /// A byte comes in; one too many is lost, as on the chip.
    pub(super) fn receive(&mut self, byte: u8) {
        if self.received.len() < FIFO_LEN {
            self.received.push_back(byte);
        }
    }

    /// Looped back, the outputs are the inputs.
    fn modem_status(&self) -> u8 {
        let pairs = [
            (REQUEST_TO_SEND, CLEAR_TO_SEND),
            (TERMINAL_READY, SET_READY),
            (OUTPUT_1, RING),
            (OUTPUT_2, CARRIER),
        ];
        let on = pairs.iter().filter(|(output, _)| self.modem_control & output != 0);
        if self.loops_back() { on.map(|(_, input)| input).sum() } else { CONNECTED }
    }

    /// The registers, beside what waits before and behind them.
    pub(super) fn save(&self, input: Bytes, output: Bytes) -> SerialState {
        let received: Vec<u8> = self.received.iter().copied().collect();
        let pending = if received.is_empty() { 0 } else { RECEIVED }
            | if self.emptied { TRANSMITTER } else { 0 };
        let identification = if pending == 0 { NOTHING } else { pending };
        SerialState {
            divisor_low: self.divisor[0],
            divisor_high: self.divisor[1],
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: identification | if self.fifos_on { FIFOS_ON } else { 0 },
            line_control: self.line_control,
            line_status: TRANSMITTER_EMPTY | if received.is_empty() { 0 } else { DATA_READY },
            modem_control: self.modem_control,
            modem_status: CONNECTED,
            scratch: self.scratch,
            receive_fifo: Bytes(received),
            input,
            output,
        }
    }

    /// The registers that were saved.
    ///
    /// # Errors
    /// When no such port can be.
    pub(super) fn restore(name: &str, state: &SerialState) -> StateResult<Self> {
        let bad = |what: &str| Err(StateError::state(format!("saved serial port {name}: {what}")));
        let identification = state.interrupt_identification;
        if state.receive_fifo.0.len() > FIFO_LEN {
            return bad("the receive FIFO is too long");
        }
        let known = NOTHING | TRANSMITTER | RECEIVED | FIFOS_ON;
        if state.interrupt_enable & !ENABLES != 0 || identification & !known != 0 {
            return bad("an interrupt register has bits that do not exist");
        }
        let ready = state.line_status & DATA_READY != 0;
        if state.line_status & !DATA_READY != TRANSMITTER_EMPTY
            || ready == state.receive_fifo.0.is_empty()
        {
            return bad("line status and receive FIFO contradict each other");
        }
        Ok(Self {
            divisor: [state.divisor_low, state.divisor_high],
            interrupt_enable: state.interrupt_enable,
            line_control: state.line_control,
            modem_control: state.modem_control,
            scratch: state.scratch,
            fifos_on: identification & FIFOS_ON != 0,
            received: state.receive_fifo.0.iter().copied().collect(),
            emptied: identification & TRANSMITTER != 0,
        })
    }
}

#[cfg(test)]
#[path = "uart_tests.rs"]
mod tests;
