use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::bus::BusDevice;
use crate::irq::IrqLine;
use crate::serial::{SerialPort, SerialSink};

/// Counts how often the line rises, as an edge-triggered input sees it.
#[derive(Default)]
struct Edges(AtomicUsize);

impl IrqLine for Edges {
    fn set_level(&self, level: bool) {
        self.0.fetch_add(usize::from(level), Ordering::SeqCst);
    }
}

struct Sink;

impl SerialSink for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
}

/// A port, and what its handler is called for.
struct Rig {
    port: SerialPort,
    edges: Arc<Edges>,
}

impl Rig {
    fn new() -> Self {
        let edges = Arc::new(Edges::default());
        let line = Arc::clone(&edges) as Arc<dyn IrqLine>;
        Self { port: SerialPort::new("com1", line, Box::new(Sink), Arc::new(|_| {})), edges }
    }

    fn read(&mut self, register: u8) -> u8 {
        let mut data = [0];
        self.port.read(u64::from(register), &mut data);
        data[0]
    }

    fn write(&mut self, register: u8, value: u8) {
        self.port.write(u64::from(register), &[value]);
    }

    /// Whether the handler is called.
    fn interrupted(&self) -> bool {
        self.edges.0.swap(0, Ordering::SeqCst) > 0
    }
}

/// The simplest handlers there are: they look at nothing and fetch one byte.
#[test]
fn one_byte_for_each_interrupt_is_enough() {
    for fifo in [0, FIFO_ENABLE] {
        let mut rig = Rig::new();
        rig.write(IDENTIFICATION, fifo);
        rig.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
        assert!(!rig.interrupted());
        rig.port.push_input(b"hello");
        let mut received = Vec::new();
        while rig.interrupted() {
            received.push(rig.read(DATA));
        }
        assert_eq!(received, b"hello");
    }
}

/// As the chip's manual has it: look what is pending, serve it, until nothing is.
#[test]
fn the_identification_names_what_holds_until_it_is_served() {
    let mut rig = Rig::new();
    rig.write(IDENTIFICATION, FIFO_ENABLE);
    rig.write(INTERRUPT_ENABLE, ENABLE_RECEIVED | ENABLE_TRANSMITTER);
    rig.port.push_input(b"hello");
    assert!(rig.interrupted());
    let mut received = Vec::new();
    while rig.read(IDENTIFICATION) == FIFOS_ON | RECEIVED {
        received.push(rig.read(DATA));
    }
    assert_eq!(received, b"hello", "received bytes come first");
    assert_eq!(rig.read(IDENTIFICATION), FIFOS_ON | NOTHING, "the loop has seen the transmitter");
}

#[test]
fn each_byte_sent_interrupts_anew() {
    let mut rig = Rig::new();
    rig.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER);
    for byte in *b"hello" {
        // The identification is not read: sending is an answer, too.
        assert!(rig.interrupted());
        rig.write(DATA, byte);
    }
    assert!(rig.interrupted());
    assert_eq!(rig.read(IDENTIFICATION), TRANSMITTER);
    assert_eq!(rig.read(IDENTIFICATION), NOTHING);
    assert!(!rig.interrupted());
}

#[test]
fn what_holds_when_it_is_enabled_interrupts_at_once() {
    let mut rig = Rig::new();
    rig.port.push_input(b"x");
    for enable in [ENABLE_TRANSMITTER, ENABLE_RECEIVED] {
        for _ in 0..3 {
            rig.write(INTERRUPT_ENABLE, enable);
            assert!(rig.interrupted(), "{enable}");
            rig.write(INTERRUPT_ENABLE, 0);
        }
    }
    assert_eq!(rig.read(IDENTIFICATION), NOTHING, "nothing is enabled");
}

#[test]
fn only_with_its_fifos_on_does_it_say_so() {
    let mut rig = Rig::new();
    assert_eq!(rig.read(IDENTIFICATION), NOTHING);
    rig.write(IDENTIFICATION, 0xc7);
    assert_eq!(rig.read(IDENTIFICATION), FIFOS_ON | NOTHING);
    rig.write(IDENTIFICATION, 0);
    assert_eq!(rig.read(IDENTIFICATION), NOTHING);
}

/// The test that many drivers begin with.
#[test]
fn looped_back_it_hears_itself() {
    let mut rig = Rig::new();
    rig.write(MODEM_CONTROL, LOOP_BACK | OUTPUT_2 | OUTPUT_1 | REQUEST_TO_SEND);
    assert_eq!(rig.read(MODEM_STATUS), CARRIER | RING | CLEAR_TO_SEND);
    rig.write(DATA, 0xae);
    assert_eq!(rig.read(LINE_STATUS), TRANSMITTER_EMPTY | DATA_READY);
    assert_eq!(rig.read(DATA), 0xae);
    assert_eq!(rig.read(LINE_STATUS), TRANSMITTER_EMPTY);
    rig.write(MODEM_CONTROL, 0);
    assert_eq!(rig.read(MODEM_STATUS), CONNECTED);
}

#[test]
fn the_divisor_latch_hides_data_and_interrupt_enable() {
    let mut rig = Rig::new();
    rig.write(LINE_CONTROL, DIVISOR_LATCH | EIGHT_BITS);
    rig.write(DATA, 1);
    rig.write(INTERRUPT_ENABLE, 2);
    assert_eq!([rig.read(DATA), rig.read(INTERRUPT_ENABLE)], [1, 2]);
    assert!(!rig.interrupted(), "nothing was sent or enabled");
    rig.write(LINE_CONTROL, EIGHT_BITS);
    assert_eq!(rig.read(INTERRUPT_ENABLE), 0);
}
