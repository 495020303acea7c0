//! Measures a disk: one kind of request at one depth for a time, with the rate and the latency.

use core::fmt;

use crate::args::parse_number;
use crate::clock::{Clock, tsc};
use crate::console;
use crate::disk::{Disk, Op, Request, SECTOR};
use crate::workload::Random;

/// One measurement, as the command line spells it: `randread/4096/32`.
#[derive(Clone, Copy)]
pub struct Phase<'a> {
    name: &'a str,
    bytes: u64,
    depth: usize,
}

impl fmt::Display for Phase<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "workload={} bs={} depth={}", self.name, self.bytes, self.depth)
    }
}

impl Phase<'_> {
    /// Reads a phase.
    pub fn parse(text: &str) -> Option<Phase<'_>> {
        let mut parts = text.split('/');
        let name = parts.next()?;
        let bytes = parts.next().and_then(parse_number)?;
        let depth = parts.next().and_then(parse_number)? as usize;
        (bytes >= SECTOR && bytes % SECTOR == 0).then_some(Phase { name, bytes, depth })
    }

    fn op(&self) -> Option<Op> {
        match self.name {
            "randread" | "seqread" => Some(Op::Read),
            "randwrite" | "seqwrite" => Some(Op::Write),
            "flush" => Some(Op::Flush),
            _ => None,
        }
    }

    /// Runs for `ns` nanoseconds on the first `span` bytes of the disk and prints the figures.
    pub fn run(&self, disk: &mut Disk, clock: &Clock, ns: u64, span: u64) -> bool {
        let blocks = span.min(disk.sectors * SECTOR) / self.bytes;
        let Some(op) = self.op().filter(|op| disk.can(*op) && blocks > 0) else {
            console::line(format_args!("FAIL bench {self}: not possible on this disk"));
            return false;
        };
        disk.set_depth(self.depth);
        let sequential = self.name.starts_with("seq");
        let mut random = Random::new(tsc());
        let mut cursor = 0;
        let mut next = move || {
            cursor = if sequential { (cursor + 1) % blocks } else { random.below(blocks) };
            cursor * (self.bytes / SECTOR)
        };
        let started = tsc();
        let limit = ns.saturating_mul(clock.khz) / 1_000_000;
        let mut tally = Tally::default();
        for slot in 0..disk.depth {
            let request = Request { op, sector: next(), bytes: self.bytes, tag: 0, started: 0 };
            disk.submit(slot, request);
        }
        disk.publish();
        while disk.in_flight > 0 {
            let Some((slot, request, status)) = disk.completed() else {
                core::hint::spin_loop();
                continue;
            };
            let now = tsc();
            tally.add(now - request.started, status);
            if now - started < limit {
                disk.submit(slot, Request { sector: next(), ..request });
            }
            // A batch of completions is answered by one batch of requests.
            while let Some((slot, request, status)) = disk.completed() {
                tally.add(now - request.started, status);
                if now - started < limit {
                    disk.submit(slot, Request { sector: next(), ..request });
                }
            }
            disk.publish();
        }
        self.report(&tally, clock, clock.ns(tsc() - started), disk);
        tally.failed == 0
    }

    fn report(&self, tally: &Tally, clock: &Clock, ns: u64, disk: &Disk) {
        let iops = tally.count * 1_000_000_000 / ns.max(1);
        console::line(format_args!(
            "IOPS {self} ops={} failed={} ns={ns} iops={iops} mib_s={} lat_avg_ns={} lat_max_ns={} kicks={}",
            tally.count,
            tally.failed,
            (iops * self.bytes) >> 20,
            clock.ns(tally.ticks / tally.count.max(1)),
            clock.ns(tally.longest),
            disk.queue_facts().2,
        ));
    }
}

#[derive(Default)]
struct Tally {
    count: u64,
    failed: u64,
    ticks: u64,
    longest: u64,
}

impl Tally {
    #[inline]
    fn add(&mut self, ticks: u64, status: u8) {
        self.count += 1;
        self.failed += u64::from(status != 0);
        self.ticks += ticks;
        self.longest = self.longest.max(ticks);
    }
}
