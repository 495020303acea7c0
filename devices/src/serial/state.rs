//! Saved state of a serial port.

use ferry_migration::state::{Bytes, State};
use serde::{Deserialize, Serialize};

/// A 16550 and what has not yet passed through it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub divisor_low: u8,
    /// Divisor latch, high byte.
    pub divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// What interrupts when it is enabled, as bits of the interrupt identification register; and its FIFO bits.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// The receive FIFO, oldest byte first.
    pub receive_fifo: Bytes,
    /// Input that waits for room in the FIFO.
    pub input: Bytes,
    /// Output that the other end has not taken yet.
    pub output: Bytes,
}

impl State for SerialState {
    const KIND: &'static str = "serial-16550";
    const VERSION: u16 = 1;
    type Older = Self;
}
