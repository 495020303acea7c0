//! Keeps a disk busy with self-checking blocks and knows, for every block, what must be there.

use crate::args::Args;
use crate::console;
use crate::disk::{Disk, MAX_SLOTS, Op, Request, SECTOR};
use crate::memory::Memory;
use crate::pattern::{Content, SECTOR_WORDS, digest, examine, fill};
use crate::workload::Random;

/// The block may hold anything of ours: it was never touched, or discarded.
const UNKNOWN: u32 = 0x7fff_ffff;
/// The block has a request in flight.
const BUSY: u32 = 1 << 31;

/// The disk under test and what each block must hold: 0 is zeroes, other numbers a sequence number.
pub struct Verifier {
    /// The disk.
    pub disk: Disk,
    expected: *mut u32,
    blocks: u64,
    block_bytes: u64,
    random: Random,
    sequence: u32,
    write_percent: u64,
    flush_every: u64,
    zeroes: bool,
    discards: bool,
    draining: bool,
    interval_ticks: u64,
    next_start: u64,
    /// Requests completed.
    pub done: u64,
    /// Writes among them.
    pub writes: u64,
    /// Requests that failed or came back with the wrong content.
    pub failures: u64,
    /// Longest time of a request, in ticks, since it was last taken.
    pub longest: u64,
}

impl Verifier {
    /// Works on the first `disk_mib=` of the disk.
    pub fn new(args: &Args, disk: Disk, memory: &mut Memory, khz: u64) -> Verifier {
        let block_bytes = args.number("bs", 4096).next_multiple_of(SECTOR);
        let asked = args.number("disk_mib", u64::MAX >> 20) << 20;
        let blocks = (disk.sectors * SECTOR).min(asked) / block_bytes;
        let expected = memory.take(4 * blocks).cast::<u32>();
        let initial = if args.has("init", "zero") { 0 } else { UNKNOWN };
        for block in 0..blocks {
            // SAFETY: the table has an entry for every block.
            unsafe { expected.add(block as usize).write(initial) };
        }
        let rate = args.number("disk_iops", 0);
        Verifier {
            expected,
            blocks,
            block_bytes,
            random: Random::new(args.number("seed", 1)),
            sequence: args.number("first_sequence", 1) as u32,
            write_percent: if disk.can(Op::Write) { args.number("write_percent", 60) } else { 0 },
            flush_every: if disk.can(Op::Flush) { args.number("flush_every", 64) } else { 0 },
            zeroes: args.number("zeroes", 0) != 0,
            discards: args.number("discards", 0) != 0,
            draining: false,
            interval_ticks: (khz * 1000).checked_div(rate).unwrap_or(0),
            next_start: 0,
            disk,
            done: 0,
            writes: 0,
            failures: 0,
            longest: 0,
        }
    }

    /// Whether the device has given up.
    pub fn broken(&self) -> bool {
        self.disk.broken()
    }

    /// Takes what has completed and fills the free slots again.
    pub fn step(&mut self, now: u64) {
        self.collect();
        while self.in_flight_allowed(now) {
            let Some(slot) = self.disk.free_slot() else { break };
            let Some(request) = self.choose() else { break };
            self.start(slot, request);
        }
        self.disk.publish();
    }

    fn in_flight_allowed(&mut self, now: u64) -> bool {
        if self.draining || self.disk.in_flight >= self.disk.depth || now < self.next_start {
            return false;
        }
        self.next_start = now + self.interval_ticks;
        true
    }

    fn collect(&mut self) {
        while let Some((slot, request, status)) = self.disk.completed() {
            self.longest = self.longest.max(crate::clock::tsc() - request.started);
            self.finish(slot, request, status);
        }
    }

    /// Reads every block that must hold something and checks it; then tells the digest of the whole.
    pub fn check_all(&mut self) -> bool {
        self.drain();
        let mut block = 0;
        while block < self.blocks || self.disk.in_flight > 0 {
            self.collect();
            while let Some(slot) = self.disk.free_slot().filter(|_| block < self.blocks) {
                if *self.entry(block) != UNKNOWN {
                    self.start(slot, self.request(Op::Read, block));
                }
                block += 1;
            }
            self.disk.publish();
        }
        self.report();
        self.failures == 0
    }

    /// Waits for what is in flight and makes it durable.
    fn drain(&mut self) {
        self.draining = true;
        while self.disk.in_flight > 0 {
            self.collect();
        }
        if self.disk.can(Op::Flush) {
            self.start(0, self.request(Op::Flush, 0));
            self.disk.publish();
            while self.disk.in_flight > 0 {
                self.collect();
            }
        }
    }

    fn report(&mut self) {
        let (mut written, mut sum) = (0_u64, 0_u64);
        for block in 0..self.blocks {
            let state = *self.entry(block);
            if state != UNKNOWN && state != 0 {
                written += 1;
                sum = sum.wrapping_add(digest(block, state));
            }
        }
        let word = if self.failures == 0 { "ok" } else { "bad" };
        let (done, writes, failures) = (self.done, self.writes, self.failures);
        console::line(format_args!(
            "DISK {word} blocks={} bs={} written={written} digest={sum:#x} ops={done} \
             writes={writes} failures={failures} last_sequence={}",
            self.blocks, self.block_bytes, self.sequence
        ));
    }

    fn entry(&mut self, block: u64) -> &mut u32 {
        assert!(block < self.blocks);
        // SAFETY: the table has an entry for every block.
        unsafe { &mut *self.expected.add(block as usize) }
    }

    fn request(&self, op: Op, block: u64) -> Request {
        let sector = block * (self.block_bytes / SECTOR);
        Request { op, sector, bytes: self.block_bytes, tag: 0, started: 0 }
    }

    /// The next request, on a block that has none in flight.
    fn choose(&mut self) -> Option<Request> {
        if self.flush_every != 0 && self.random.below(self.flush_every) == 0 {
            return Some(self.request(Op::Flush, 0));
        }
        for _ in 0..2 * MAX_SLOTS {
            let block = self.random.below(self.blocks);
            if *self.entry(block) & BUSY != 0 {
                continue;
            }
            let op = if self.random.below(100) >= self.write_percent {
                Op::Read
            } else if self.zeroes && self.random.below(16) == 0 {
                Op::Zero
            } else if self.discards && self.random.below(16) == 0 {
                Op::Discard
            } else {
                Op::Write
            };
            if self.disk.can(op) {
                return Some(self.request(op, block));
            }
        }
        None
    }

    fn start(&mut self, slot: usize, mut request: Request) {
        let block = request.sector / (self.block_bytes / SECTOR);
        if request.op == Op::Write {
            self.sequence += 1;
            request.tag = self.sequence;
            for (index, words) in self.sectors(slot).iter_mut().enumerate() {
                fill(words, request.sector + index as u64, request.tag);
            }
        }
        if request.op != Op::Flush {
            *self.entry(block) |= BUSY;
        }
        self.disk.submit(slot, request);
    }

    fn finish(&mut self, slot: usize, request: Request, status: u8) {
        self.done += 1;
        let block = request.sector / (self.block_bytes / SECTOR);
        if status != 0 {
            self.complain(&request, format_args!("status={status}"));
        }
        if request.op == Op::Flush {
            return;
        }
        let before = *self.entry(block) & !BUSY;
        let after = match request.op {
            // A failed write may have left either content.
            _ if status != 0 && request.op != Op::Read => UNKNOWN,
            Op::Write => request.tag,
            Op::Zero => 0,
            Op::Discard => UNKNOWN,
            Op::Read | Op::Flush => before,
        };
        *self.entry(block) = after;
        self.writes += u64::from(request.op == Op::Write);
        if request.op == Op::Read && status == 0 {
            self.check(slot, &request, before);
        }
    }

    fn check(&mut self, slot: usize, request: &Request, expected: u32) {
        for index in 0..(self.block_bytes / SECTOR) as usize {
            let sector = request.sector + index as u64;
            let found = examine(&self.sectors(slot)[index], sector);
            let right = match found {
                Content::Zero => expected == 0 || expected == UNKNOWN,
                Content::Written(sequence) => sequence == expected || expected == UNKNOWN,
                Content::Foreign => expected == UNKNOWN,
                Content::Misplaced(..) | Content::Damaged => false,
            };
            if !right {
                self.complain(
                    request,
                    format_args!("at={sector} expected={expected} found={found:?}"),
                );
                return;
            }
        }
    }

    fn complain(&mut self, request: &Request, what: core::fmt::Arguments<'_>) {
        self.failures += 1;
        if self.failures <= 8 {
            let Request { op, sector, .. } = request;
            console::line(format_args!("FAIL disk op={op:?} sector={sector} {what}"));
        }
    }

    /// The sectors in a slot's buffer.
    fn sectors(&mut self, slot: usize) -> &mut [[u64; SECTOR_WORDS]] {
        let at = self.disk.buffer(slot).cast::<[u64; SECTOR_WORDS]>();
        // SAFETY: the buffer holds a block, and no request of the slot is in flight when we look.
        unsafe { core::slice::from_raw_parts_mut(at, (self.block_bytes / SECTOR) as usize) }
    }
}
