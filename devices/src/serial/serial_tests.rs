use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::uart::{DATA_READY, DIVISOR_LATCH, FIFO_LEN, TRANSMITTER_EMPTY};
use super::*;

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;

const THR_INTERRUPT: u8 = 2;
const RECEIVE_INTERRUPT: u8 = 1;

#[derive(Default)]
struct Wire {
    edges: AtomicUsize,
}

impl IrqLine for Wire {
    fn set_level(&self, level: bool) {
        self.edges.fetch_add(usize::from(level), Ordering::SeqCst);
    }
}

/// A sink that takes what it is allowed to.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<PipeState>>);

#[derive(Default)]
struct PipeState {
    taken: Vec<u8>,
    room: usize,
    gone: bool,
    interrupted: bool,
}

impl SerialSink for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = self.0.lock().unwrap();
        if std::mem::take(&mut pipe.interrupted) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if pipe.gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let taken = bytes.len().min(pipe.room);
        if taken == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        pipe.room -= taken;
        pipe.taken.extend(&bytes[..taken]);
        Ok(taken)
    }
}

struct Rig {
    port: SerialPort,
    pipe: Pipe,
    wire: Arc<Wire>,
    notices: Arc<Mutex<Vec<SerialNotice>>>,
}

fn rig(room: usize) -> Rig {
    let pipe = Pipe::default();
    pipe.0.lock().unwrap().room = room;
    let wire = Arc::new(Wire::default());
    let notices = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&notices);
    let port = SerialPort::new(
        "com1",
        Arc::clone(&wire) as Arc<dyn IrqLine>,
        Box::new(pipe.clone()),
        Arc::new(move |notice| log.lock().unwrap().push(notice)),
    );
    Rig { port, pipe, wire, notices }
}

impl Rig {
    fn read(&mut self, register: u64) -> u8 {
        let mut data = [0];
        BusDevice::read(&mut self.port, register, &mut data);
        data[0]
    }

    fn write(&mut self, register: u64, value: u8) {
        BusDevice::write(&mut self.port, register, &[value]);
    }

    fn send(&mut self, bytes: impl IntoIterator<Item = u8>) {
        for byte in bytes {
            self.write(DATA, byte);
        }
    }

    fn taken(&self) -> Vec<u8> {
        self.pipe.0.lock().unwrap().taken.clone()
    }

    fn give_room(&self, room: usize) {
        self.pipe.0.lock().unwrap().room = room;
    }

    fn notices(&self) -> Vec<SerialNotice> {
        std::mem::take(&mut self.notices.lock().unwrap())
    }

    fn edges(&self) -> usize {
        self.wire.edges.swap(0, Ordering::SeqCst)
    }
}

/// Bytes that differ, so that order can be seen.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[test]
fn output_goes_out_at_once() {
    let mut rig = rig(usize::MAX);
    rig.send(*b"hello");
    assert_eq!(rig.taken(), b"hello");
    assert_eq!(rig.read(LSR), TRANSMITTER_EMPTY);
    assert!(rig.notices().is_empty());
    rig.pipe.0.lock().unwrap().interrupted = true;
    rig.send(*b"!");
    assert_eq!(rig.taken(), b"hello!");
}

#[test]
fn output_waits_in_order_when_the_sink_is_full() {
    let mut rig = rig(2);
    rig.send(*b"hello");
    assert_eq!(rig.taken(), b"he");
    assert_eq!(rig.notices(), [SerialNotice::OutputWaits], "one notice is enough");
    assert_eq!(rig.read(LSR), TRANSMITTER_EMPTY, "there is still room");
    rig.give_room(1);
    assert!(!rig.port.drain_output());
    rig.give_room(100);
    assert!(rig.port.drain_output());
    rig.send(*b"!");
    assert_eq!(rig.taken(), b"hello!");
    assert!(rig.notices().is_empty());
    rig.give_room(0);
    rig.send(*b"?");
    assert_eq!(rig.notices(), [SerialNotice::OutputWaits], "and again the next time");
}

#[test]
fn a_full_queue_makes_the_transmitter_busy_and_an_interrupt_ends_it() {
    let mut rig = rig(0);
    rig.write(IER, THR_INTERRUPT);
    rig.send(bytes(OUTPUT_BUSY - 1));
    assert_eq!(rig.read(LSR), TRANSMITTER_EMPTY);
    rig.send([1]);
    assert_eq!(rig.read(LSR), 0, "busy");
    // The driver takes the interrupt it has been sent, finds the transmitter busy, and waits.
    assert_eq!(rig.read(IIR) & 0xf, 1);
    rig.edges();
    rig.give_room(OUTPUT_BUSY / 2);
    assert!(!rig.port.drain_output());
    assert_eq!((rig.read(LSR), rig.edges()), (0, 0), "half is not enough");
    rig.give_room(1);
    rig.port.drain_output();
    assert_eq!(rig.read(LSR), TRANSMITTER_EMPTY);
    assert_eq!(rig.edges(), 1);
    assert_eq!(rig.read(IIR) & 0xf, THR_INTERRUPT);
}

#[test]
fn a_guest_that_does_not_care_loses_only_what_is_beyond_the_limit() {
    let mut rig = rig(0);
    let sent = bytes(OUTPUT_LIMIT + 3);
    rig.send(sent.iter().copied());
    assert_eq!(rig.port.lost_output(), 3);
    rig.give_room(usize::MAX);
    assert!(rig.port.drain_output());
    assert!(rig.taken() == sent[..OUTPUT_LIMIT]);
}

#[test]
fn an_unplugged_sink_takes_nothing_and_blocks_nobody() {
    let mut rig = rig(1);
    rig.send(*b"ab");
    rig.pipe.0.lock().unwrap().gone = true;
    rig.send(*b"cd");
    assert_eq!(rig.port.lost_output(), 3);
    assert!(rig.port.drain_output());
    // Somebody else comes.
    let next = Pipe::default();
    next.0.lock().unwrap().room = 10;
    rig.port.set_sink(Box::new(next.clone()));
    rig.send(*b"ef");
    assert_eq!(next.0.lock().unwrap().taken, b"ef");
}

#[test]
fn input_reaches_the_guest_in_order_and_is_bounded() {
    let mut rig = rig(0);
    rig.write(IIR, 1); // the FIFOs
    rig.write(IER, RECEIVE_INTERRUPT);
    let sent = bytes(INPUT_LIMIT + FIFO_LEN + 100);
    let mut taken = rig.port.push_input(&sent[..FIFO_LEN + 1]);
    assert_eq!(taken, FIFO_LEN + 1);
    assert_eq!(rig.edges(), 1);
    while taken < sent.len() {
        let more = rig.port.push_input(&sent[taken..]);
        if more == 0 {
            break;
        }
        taken += more;
    }
    assert_eq!(taken, INPUT_LIMIT + FIFO_LEN);
    assert!(rig.notices().is_empty());
    let mut received = Vec::new();
    let mut told = 0;
    while rig.read(LSR) & DATA_READY != 0 {
        received.push(rig.read(DATA));
        if rig.notices() == [SerialNotice::InputRoom] {
            told += 1;
            taken += rig.port.push_input(&sent[taken..]);
        }
    }
    assert_eq!(told, 1);
    assert_eq!(taken, sent.len());
    assert!(received == sent);
}

#[test]
fn input_waits_while_the_guest_tests_itself() {
    let mut rig = rig(0);
    rig.write(MCR, 1 << 4);
    assert_eq!(rig.port.push_input(b"x"), 1);
    assert_eq!(rig.read(LSR) & DATA_READY, 0);
    rig.write(DATA, b'l');
    assert_eq!(rig.read(DATA), b'l', "loop-back");
    rig.write(MCR, 0);
    assert_eq!(rig.read(DATA), b'x');
    assert!(rig.taken().is_empty());
}

#[test]
fn state_goes_elsewhere_with_everything_that_waits() {
    let mut source = rig(0);
    source.write(IER, THR_INTERRUPT | RECEIVE_INTERRUPT);
    source.write(MCR, 0x0b);
    source.write(7, 0x5a);
    source.send(bytes(OUTPUT_BUSY));
    let input = bytes(100);
    source.port.push_input(&input);
    let mut sections = Sections::new();
    source.port.save(&mut sections).unwrap();
    let mut dest = rig(10);
    dest.port.restore(&mut sections).unwrap();
    sections.finish().unwrap();
    assert_eq!(dest.taken(), bytes(10), "it goes on sending at once");
    assert_eq!(dest.notices(), [SerialNotice::OutputWaits]);
    assert_eq!(dest.read(LSR), DATA_READY, "busy");
    assert_eq!([dest.read(IER), dest.read(MCR), dest.read(7)], [3, 0x0b, 0x5a]);
    let received: Vec<u8> = (0..100).map(|_| dest.read(DATA)).collect();
    assert_eq!(received, input);
    dest.give_room(usize::MAX);
    assert!(dest.port.drain_output());
    assert!(dest.taken() == bytes(OUTPUT_BUSY));
    assert_eq!(dest.read(LSR), TRANSMITTER_EMPTY);
}

#[test]
fn a_pending_interrupt_is_raised_again_after_the_move() {
    let mut source = rig(0);
    source.write(IER, RECEIVE_INTERRUPT);
    source.port.push_input(b"x");
    let mut sections = Sections::new();
    source.port.save(&mut sections).unwrap();
    let mut dest = rig(0);
    dest.port.restore(&mut sections).unwrap();
    assert_eq!(dest.edges(), 1);
}

#[test]
fn reset_keeps_only_what_the_guest_has_sent() {
    let mut rig = rig(0);
    rig.write(IER, 3);
    rig.write(7, 1);
    rig.send(*b"last words");
    rig.port.push_input(&bytes(200));
    rig.port.reset();
    assert_eq!([rig.read(IER), rig.read(7), rig.read(LSR)], [0, 0, TRANSMITTER_EMPTY]);
    rig.give_room(100);
    assert!(rig.port.drain_output());
    assert_eq!(rig.taken(), b"last words");
}

fn good_state() -> SerialState {
    SerialState {
        divisor_low: 1,
        divisor_high: 0,
        interrupt_enable: 3,
        interrupt_identification: 1,
        line_control: 3,
        line_status: TRANSMITTER_EMPTY | DATA_READY,
        modem_control: 8,
        modem_status: 0xb0,
        scratch: 0,
        receive_fifo: Bytes(vec![1]),
        input: Bytes(vec![2]),
        output: Bytes(vec![3]),
    }
}

#[test]
fn restore_refuses_what_no_port_has() {
    let restore = |state: SerialState| {
        let mut sections = Sections::new();
        sections.save("com1", &state).unwrap();
        rig(0).port.restore(&mut sections)
    };
    restore(good_state()).unwrap();
    restore(SerialState { interrupt_enable: 0x10, ..good_state() }).unwrap_err();
    restore(SerialState { interrupt_identification: 8, ..good_state() }).unwrap_err();
    restore(SerialState { line_status: TRANSMITTER_EMPTY, ..good_state() }).unwrap_err();
    restore(SerialState { line_status: DATA_READY, ..good_state() }).unwrap_err();
    restore(SerialState { receive_fifo: Bytes(vec![]), ..good_state() }).unwrap_err();
    restore(SerialState { receive_fifo: Bytes(vec![0; 65]), ..good_state() }).unwrap_err();
    restore(SerialState { input: Bytes(vec![0; INPUT_LIMIT + 1]), ..good_state() }).unwrap_err();
    restore(SerialState { output: Bytes(vec![0; OUTPUT_LIMIT + 1]), ..good_state() }).unwrap_err();
}

#[test]
fn golden_state() {
    crate::check_golden(&good_state());
}

/// Both when the pipe can be opened again and when it has to be asked.
#[test]
fn a_full_pipe_does_not_block() {
    for make in [FdSink::new, |fd| FdSink::asking(File::from(fd))] {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sink = make(OwnedFd::from(writer)).unwrap();
        let sent = fill(&mut sink);
        assert!(sent.len() >= 4096);
        let mut received = vec![0; sent.len()];
        reader.read_exact(&mut received).unwrap();
        assert!(received == sent);
        assert!(sink.write(b"x").is_ok(), "room again");
        drop(reader);
        assert_eq!(sink.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}

#[test]
fn a_shared_descriptor_stays_blocking() {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut shared = File::from(OwnedFd::from(writer.try_clone().unwrap()));
    let mut sink = FdSink::new(OwnedFd::from(writer)).unwrap();
    fill(&mut sink);
    // Another writer still waits for room, as it would without us.
    std::thread::scope(|threads| {
        let blocked = threads.spawn(move || shared.write(&[0; 4096]).is_ok());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!blocked.is_finished());
        reader.read_exact(&mut [0; 8192]).unwrap();
        assert!(blocked.join().unwrap());
    });
}

/// Writes until there is no room.
fn fill(sink: &mut FdSink) -> Vec<u8> {
    let mut sent = Vec::new();
    loop {
        let piece = bytes(1000);
        match sink.write(&piece) {
            Ok(taken) => sent.extend(&piece[..taken]),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                return sent;
            }
        }
    }
}

#[test]
fn a_full_socket_does_not_block() {
    let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut sink = FdSink::new(OwnedFd::from(near)).unwrap();
    let sent = fill(&mut sink);
    let mut received = vec![0; sent.len()];
    far.read_exact(&mut received).unwrap();
    assert!(received == sent);
    assert!(sink.write(b"x").is_ok());
}

#[test]
fn a_file_always_has_room() {
    let mut file = tempfile::tempfile().unwrap();
    let mut sink = FdSink::new(OwnedFd::from(file.try_clone().unwrap())).unwrap();
    assert_eq!(sink.write(&bytes(5000)).unwrap(), 5000);
    let mut back = Vec::new();
    io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut back).unwrap();
    assert!(back == bytes(5000));
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Room(usize),
    Input(usize),
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u64..8, prop::collection::vec(any::<u8>(), 0..10))
            .prop_map(|(r, d)| Op::Write(r, d)),
        4 => (0u64..8, 0usize..10).prop_map(|(r, l)| Op::Read(r, l)),
        1 => (0usize..200).prop_map(Op::Room),
        1 => (0usize..300).prop_map(Op::Input),
    ]
}

proptest! {
    /// Whatever a guest does: no panic, output comes out as sent, and any state can move.
    #[test]
    fn any_access_is_harmless(ops in prop::collection::vec(ops(), 1..120)) {
        let mut rig = rig(0);
        let mut sent = Vec::new();
        for op in ops {
            match op {
                Op::Write(register, data) => {
                    // One by one, to know what each byte means when it is written.
                    for (register, byte) in (register..8).zip(data) {
                        let latch = rig.read(LCR) & DIVISOR_LATCH != 0;
                        if register == DATA && !latch && rig.read(MCR) & 1 << 4 == 0 {
                            sent.push(byte);
                        }
                        rig.write(register, byte);
                    }
                }
                Op::Read(register, len) => {
                    BusDevice::read(&mut rig.port, register, &mut vec![0; len]);
                }
                Op::Room(room) => {
                    rig.give_room(room);
                    rig.port.drain_output();
                }
                Op::Input(len) => drop(rig.port.push_input(&bytes(len))),
            }
            let mut sections = Sections::new();
            rig.port.save(&mut sections).unwrap();
            rig.port.restore(&mut sections).unwrap();
        }
        rig.give_room(usize::MAX);
        prop_assert!(rig.port.drain_output());
        prop_assert_eq!(rig.taken(), sent);
        let kinds: BTreeSet<_> = rig.notices().iter().map(|notice| format!("{notice:?}")).collect();
        prop_assert!(!kinds.contains("InputRoom"));
    }
}
