//! Hostile input, for tests of other crates: what may come to a machine that waits for a guest.
#![expect(unsafe_code, reason = "a machine has memory that the kernel writes to")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};

use crate::dest;
use crate::error::Result;
use crate::handshake::{DiskFact, Facts, PRELUDE_LEN, Prelude};
use crate::machine::DestMachine;
use crate::messages::{self, StateEnd};
use crate::ram::{Backing, GuestRam, PAGE_SIZE, RamMap, RamRegion};
use crate::session::{Session, Tuning};
use crate::state::{Bytes, Sections, State};
use crate::stats::{Phases, Status};
use crate::stream::{HEADER_LEN, Kind, SUM_LEN, header};
use crate::transport::Stream;

/// Bytes of a stream that are looked at: they are sent before anybody receives.
const LONGEST: usize = 64 << 10;
/// Pages of each of the two regions of memory.
const REGION: usize = 32;
/// Where the second one begins.
const HIGH: u64 = 4 << 30;
/// 64-bit words of a page.
const PAGE_WORDS: usize = 512;

/// Sends the bytes to a destination, with the checksums that belong to them: otherwise next to nothing would get
/// past those. How many steps the destination took with its machine. Comes back soon, having used little memory,
/// whatever they say.
///
/// # Panics
/// There is a mistake in what is tested.
pub fn fuzz_destination(data: &[u8]) -> u32 {
    let mut stream = data[..data.len().min(LONGEST)].to_vec();
    mend(&mut stream);
    let (mut source, ours) = UnixStream::pair().expect("two sockets");
    source.write_all(&stream).expect("room for everything");
    source.shutdown(Shutdown::Write).expect("a connected socket");
    let listen = move || drop(source.read_to_end(&mut Vec::new()));
    let listener = thread::Builder::new().spawn(listen).expect("a thread");
    let session = Session::new(Tuning::default()).expect("an eventfd");
    let stream = Stream::from_unix(ours, session.canceller.clone()).expect("a socket");
    let mut machine = Machine { ram: Arc::new(Ram::new()), steps: 0 };
    let (end, _) = dest::run(stream, &mut machine, &session);
    listener.join().expect("nobody panicked");
    assert_eq!(end == dest::End::Arrived, machine.steps == ARRIVED, "{end:?}");
    machine.ram.check();
    machine.steps
}

/// What sources send.
///
/// # Panics
/// There is a mistake in what is tested.
pub fn destination_seeds() -> Vec<Vec<u8>> {
    let begin = || {
        let facts = facts().encode().expect("few facts");
        [Prelude::OURS.encode().to_vec(), frame(Kind::Facts, &facts, &[])].concat()
    };
    let round = |number: u64| frame(Kind::RoundEnd, &number.to_le_bytes(), &[]);
    let copied = [
        pages(&[(0, 1), (31, 1), (64, 2)], 1),
        frame(Kind::ZeroPages, &runs(&[(1, 4), (70, 1)]), &[]),
        round(1),
        pages(&[(31, 1)], 2),
        round(2),
        pages(&[(95, 1)], 3),
    ];
    // Short, so that most changes are to its numbers.
    let empty = [frame(Kind::ZeroPages, &runs(&[(1, 4), (90, 6)]), &[]), round(1)];
    let given_up = frame(Kind::Cancel, b"the user thought better of it", &[]);
    vec![
        [begin(), copied.concat(), end(true)].concat(),
        [begin(), empty.concat(), end(false)].concat(),
        [begin(), given_up].concat(),
    ]
}

/// The state of a guest, and that it is the destination's.
fn end(running: bool) -> Vec<u8> {
    let end = StateEnd { sections: 2, guest_running: running };
    let end = messages::encode(&end).expect("a small message");
    let phases = messages::encode(&Phases::default()).expect("a small message");
    let frames = [(Kind::State, state()), (Kind::StateEnd, end), (Kind::Commit, phases)];
    frames.iter().flat_map(|(kind, body)| frame(*kind, body, &[])).collect()
}

/// Steps of a machine whose guest arrived: its state was restored, its disks were taken, it was started.
const ARRIVED: u32 = 3;

fn facts() -> Facts {
    let map = RamMap::new(Arc::new(Ram::new())).expect("whole pages");
    Facts {
        software: "fuzz".into(),
        machine: "pc-1".into(),
        page_size: 4096,
        vcpus: 1,
        memory: map.layout(),
        devices: Vec::new(),
        disks: vec![DiskFact { id: "disk".into(), size: 1 << 20, read_only: false }],
    }
}

/// State of a device, with a member of each kind.
#[derive(Serialize, Deserialize)]
struct Lamp {
    lit: bool,
    colours: Vec<u16>,
    name: Option<String>,
    dump: Bytes,
}

impl State for Lamp {
    const KIND: &'static str = "lamp";
    const VERSION: u16 = 1;
    type Older = Self;
}

fn state() -> Vec<u8> {
    let mut sections = Sections::new();
    for instance in ["desk", "floor"] {
        let name = Some(instance.to_owned());
        let lamp = Lamp { lit: true, colours: vec![1, 2, 3], name, dump: Bytes(vec![7; 64]) };
        sections.save(instance, &lamp).expect("little state");
    }
    let mut body = Vec::new();
    for section in sections.iter() {
        section.encode(&mut body).expect("little state");
    }
    body
}

fn frame(kind: Kind, body: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = header(kind, body, payload.len()).expect("a short frame");
    [&header, body, payload].concat()
}

fn runs(list: &[(u64, u32)]) -> Vec<u8> {
    let bytes =
        |(first, count): &(u64, u32)| [&first.to_le_bytes()[..], &count.to_le_bytes()].concat();
    list.iter().flat_map(bytes).collect()
}

/// Pages that are full of `byte`.
fn pages(list: &[(u64, u32)], byte: u8) -> Vec<u8> {
    let count: u32 = list.iter().map(|(_, count)| count).sum();
    let page = [byte; PAGE_WORDS * 8];
    let payload: Vec<u8> = (0..count).flat_map(|_| page).collect();
    let sums: Vec<u8> = (0..count).flat_map(|_| crc32fast::hash(&page).to_le_bytes()).collect();
    frame(Kind::Pages, &[runs(list), sums].concat(), &payload)
}

/// Puts the right checksums wherever the stream has some, but for those of pages.
fn mend(stream: &mut [u8]) {
    let Some((prelude, mut rest)) = stream.split_at_mut_checked(PRELUDE_LEN) else { return };
    let (text, sum) = prelude.split_at_mut(PRELUDE_LEN - SUM_LEN);
    sum.copy_from_slice(&crc32fast::hash(text).to_le_bytes());
    while let Some((header, after)) = rest.split_first_chunk_mut::<HEADER_LEN>() {
        let number =
            |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte])) as usize;
        let (body_len, payload_len) = (number(4), number(8));
        let (body, after) = after.split_at_mut(body_len.min(after.len()));
        if header[0] == Kind::State as u8 {
            mend_sections(body);
        }
        header[12..16].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        let sum = crc32fast::hash(&header[..16]);
        header[16..].copy_from_slice(&sum.to_le_bytes());
        rest = after.split_at_mut(payload_len.min(after.len())).1;
    }
}

/// The same for the sections of a State frame; see [`state`](crate::state) for where these have them.
fn mend_sections(mut body: &mut [u8]) {
    loop {
        let word =
            |at: usize| Some(usize::from(u16::from_le_bytes([*body.get(at)?, *body.get(at + 1)?])));
        let Some(kind) = word(0) else { return };
        let Some(instance) = word(kind + 2) else { return };
        let at = kind + instance + 8;
        let Some([low, high]) = word(at).zip(word(at + 2)).map(|(low, high)| [low, high]) else {
            return;
        };
        let begin = at + 8;
        let end = begin.saturating_add(low | high << 16);
        if end > body.len() {
            return;
        }
        let mut sum = crc32fast::Hasher::new();
        sum.update(&body[..at + 4]);
        sum.update(&body[begin..end]);
        body[at + 4..begin].copy_from_slice(&sum.finalize().to_le_bytes());
        body = body.split_at_mut(end).1;
    }
}

/// Memory of two regions with a page before, between and after them, where nobody writes, not even zeroes.
struct Ram(Box<[Page]>);

#[repr(C, align(4096))]
struct Page([AtomicU64; PAGE_WORDS]);

/// The first pages of the regions, and those outside.
const FIRST: [usize; 2] = [1, REGION + 2];
const OUTSIDE: [usize; 3] = [0, REGION + 1, 2 * REGION + 2];

impl Ram {
    fn new() -> Ram {
        let page = |number: usize| {
            let word = if OUTSIDE.contains(&number) { u64::MAX } else { 0 };
            Page(std::array::from_fn(|_| AtomicU64::new(word)))
        };
        Ram((0..2 * REGION + 3).map(page).collect())
    }

    fn check(&self) {
        for page in OUTSIDE {
            let untouched =
                self.0[page].0.iter().all(|word| word.load(Ordering::Relaxed) == u64::MAX);
            assert!(untouched, "page {page} is no guest memory");
        }
    }
}

// SAFETY: the pages are there until this goes, the regions are apart, and all access is atomic or the kernel's.
unsafe impl GuestRam for Ram {
    fn regions(&self) -> Vec<RamRegion> {
        let region = |(first, start): (usize, u64)| RamRegion {
            start,
            len: REGION as u64 * PAGE_SIZE,
            host: NonNull::from(&self.0[first..first + REGION]).cast(),
            backing: Backing::Anonymous,
        };
        FIRST.into_iter().zip([0, HIGH]).map(region).collect()
    }
}

/// A machine that counts its steps.
struct Machine {
    ram: Arc<Ram>,
    steps: u32,
}

impl DestMachine for Machine {
    fn facts(&self) -> Facts {
        facts()
    }

    fn ram(&self) -> Arc<dyn GuestRam> {
        Arc::<Ram>::clone(&self.ram)
    }

    fn restore(&mut self, mut sections: Sections) -> Result<()> {
        for instance in ["desk", "floor"] {
            sections.load::<Lamp>(instance)?;
        }
        sections.finish()?;
        self.steps += 1;
        Ok(())
    }

    fn activate(&mut self) -> Result<()> {
        self.steps += 1;
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        Ok(())
    }

    fn run_guest(&mut self, _run: bool) -> Result<()> {
        self.steps += 1;
        Ok(())
    }

    fn status(&mut self, _status: Status) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_go_deep() {
        let steps: Vec<u32> =
            destination_seeds().iter().map(|seed| fuzz_destination(seed)).collect();
        assert_eq!(steps, [ARRIVED, ARRIVED, 0]);
        assert_eq!(fuzz_destination(&[]), 0);
    }

    #[test]
    fn checksums_are_mended() {
        let whole = destination_seeds().swap_remove(0);
        let name = whole.windows(4).position(|bytes| bytes == b"desk").unwrap();
        let mut damaged = whole.clone();
        for at in [PRELUDE_LEN - 1, PRELUDE_LEN + 12, PRELUDE_LEN + 16, name + 12] {
            damaged[at] ^= 1;
        }
        mend(&mut damaged);
        assert_eq!(damaged, whole);
    }
}
