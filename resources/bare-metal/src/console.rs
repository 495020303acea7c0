//! The serial port: whole lines out, single-letter commands in.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::port::{in8, out8};

const DATA: u16 = 0x3f8;
const FIFO_CONTROL: u16 = 0x3fa;
const LINE_STATUS: u16 = 0x3fd;
const DATA_READY: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 0x20;
const FIFO_BYTES: usize = 16;

/// True while the cursor stands behind heartbeat dots: the next line then starts on a fresh one.
static DOTS: AtomicBool = AtomicBool::new(false);

/// Turns the transmit FIFO on, so that a line costs one status read for sixteen bytes.
pub fn init() {
    out8(FIFO_CONTROL, 1);
}

/// A port access costs tens of microseconds on some hosts: send full FIFOs.
struct Serial {
    room: usize,
}

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.room == 0 {
                wait_empty();
                self.room = FIFO_BYTES;
            }
            self.room -= 1;
            out8(DATA, byte);
        }
        Ok(())
    }
}

fn wait_empty() {
    while in8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
        core::hint::spin_loop();
    }
}

/// Prints one line.
pub fn line(text: fmt::Arguments<'_>) {
    let mut serial = Serial { room: 0 };
    if DOTS.swap(false, Ordering::Relaxed) {
        serial.write_str("\n").ok();
    }
    serial.write_fmt(text).ok();
    serial.write_str("\n").ok();
}

/// Sends one heartbeat dot; a host that stamps their arrival sees every pause of the guest.
pub fn dot() {
    DOTS.store(true, Ordering::Relaxed);
    wait_empty();
    out8(DATA, b'.');
}

/// The next command letter, when one has arrived.
pub fn command() -> Option<u8> {
    (in8(LINE_STATUS) & DATA_READY != 0).then(|| in8(DATA))
}
