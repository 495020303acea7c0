//! The driver of a virtio-blk disk (virtio 1.2, section 5.2): a fixed set of slots, each with its
//! descriptors, header, buffer and at most one request in flight.

use crate::args::Args;
use crate::clock::tsc;
use crate::memory::{Memory, PAGE};
use crate::pci::Function;
use crate::queue::{Descriptor, EVENT_INDEX, INDIRECT, NEXT, Queue, TABLE, WRITE};
use crate::transport::{NEEDS_RESET, Transport};

const VERSION_1: u64 = 1 << 32;
const READ_ONLY: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;
const SEVERAL_QUEUES: u64 = 1 << 12;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// Requests in flight at most.
pub const MAX_SLOTS: usize = 256;
const MAX_QUEUES: usize = 4;
const MAX_SEGMENTS: u64 = 32;
/// Bytes of a sector, the unit of every disk address.
pub const SECTOR: u64 = 512;

// A slot's page: header, status, range and table of descriptors.
const STATUS_AT: u64 = 16;
const RANGE_AT: u64 = 32;
const TABLE_AT: u64 = 64;

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// Make durable.
    Flush,
    /// The content is no longer wanted.
    Discard,
    /// Zeroes from now on.
    Zero,
}

impl Op {
    fn number(self) -> u32 {
        match self {
            Op::Read => 0,
            Op::Write => 1,
            Op::Flush => 4,
            Op::Discard => 11,
            Op::Zero => 13,
        }
    }
}

/// One request.
#[derive(Clone, Copy)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// Where, in sectors.
    pub sector: u64,
    /// How much, in bytes.
    pub bytes: u64,
    /// The workload's own note.
    pub tag: u32,
    /// When it was submitted (counter ticks).
    pub started: u64,
}

/// The disk.
pub struct Disk {
    transport: Transport,
    queues: [Option<Queue>; MAX_QUEUES],
    queue_count: usize,
    next_queue: usize,
    requests: [Option<Request>; MAX_SLOTS],
    /// Slots in use.
    pub depth: usize,
    /// Requests in flight.
    pub in_flight: usize,
    pages: u64,
    buffers: u64,
    buffer_bytes: u64,
    segments: u64,
    /// Size in sectors.
    pub sectors: u64,
}

impl Disk {
    /// Finds disk number `disk=` and brings it up; tells why not.
    pub fn open(args: &Args, memory: &mut Memory) -> Result<Disk, &'static str> {
        let function = Function::find([0x1042, 0x1001], args.number("disk", 0));
        let function = function.ok_or("no virtio disk on bus 0")?;
        let transport = Transport::open(function, memory);
        let mut transport = transport.ok_or("the disk has no modern virtio registers")?;
        let mut wanted = VERSION_1 | READ_ONLY | FLUSH | DISCARD | WRITE_ZEROES | SEVERAL_QUEUES;
        if args.number("event_idx", 1) != 0 {
            wanted |= EVENT_INDEX;
        }
        if args.number("indirect", 0) != 0 {
            wanted |= INDIRECT;
        }
        if !transport.negotiate(wanted) || transport.features & VERSION_1 == 0 {
            return Err("the disk refused the features");
        }
        let queue_count = args.number("queues", 1).clamp(1, MAX_QUEUES as u64) as u16;
        let queue_count = queue_count.min(transport.queue_count());
        let mut queues = [const { None }; MAX_QUEUES];
        for index in 0..queue_count {
            queues[usize::from(index)] = Some(transport.queue(index, MAX_SLOTS as u16, memory));
        }
        transport.start();
        let sectors = transport.config64(0);
        let mut disk = Disk {
            transport,
            queues,
            queue_count: usize::from(queue_count),
            next_queue: 0,
            requests: [None; MAX_SLOTS],
            depth: 0,
            in_flight: 0,
            pages: memory.take(PAGE * MAX_SLOTS as u64) as u64,
            buffers: 0,
            buffer_bytes: 0,
            segments: args.number("segs", 1).clamp(1, MAX_SEGMENTS),
            sectors,
        };
        disk.reserve(args, memory);
        Ok(disk)
    }

    /// Makes buffers for the deepest queue and the largest request that the command line names.
    fn reserve(&mut self, args: &Args, memory: &mut Memory) {
        self.buffer_bytes = args.number("max_bs", args.number("bs", 4096)).next_multiple_of(PAGE);
        let slots = args.number("max_depth", args.number("depth", 32)).clamp(1, MAX_SLOTS as u64);
        self.buffers = memory.take(self.buffer_bytes * slots) as u64;
        self.set_depth(slots as usize);
    }

    /// Uses this many slots, or as many as the queues have room for.
    pub fn set_depth(&mut self, depth: usize) {
        let size = self.queues[0].as_ref().map_or(0, |queue| usize::from(queue.size));
        self.depth = depth.min(size / self.chain() * self.queue_count).clamp(1, MAX_SLOTS);
    }

    /// Whether the device takes this kind of request.
    pub fn can(&self, op: Op) -> bool {
        let bit = match op {
            Op::Read => return true,
            Op::Write => return !self.read_only(),
            Op::Flush => FLUSH,
            Op::Discard => DISCARD,
            Op::Zero => WRITE_ZEROES,
        };
        self.transport.features & bit != 0 && (op == Op::Flush || !self.read_only())
    }

    /// Whether the device refuses writes.
    pub fn read_only(&self) -> bool {
        self.transport.features & READ_ONLY != 0
    }

    /// Whether the device has given up.
    pub fn broken(&self) -> bool {
        self.transport.status() & NEEDS_RESET != 0
    }

    /// The size in sectors as the device tells it now, read whole (section 2.5.3).
    pub fn sectors_now(&self) -> u64 {
        loop {
            let before = self.transport.generation();
            let sectors = self.transport.config64(0);
            if self.transport.generation() == before {
                return sectors;
            }
        }
    }

    /// The generation of the configuration, and whether the interrupt of a change is pending.
    pub fn changes(&self) -> (u8, bool) {
        (self.transport.generation(), self.transport.config_interrupt())
    }

    /// The agreed features.
    pub fn features(&self) -> u64 {
        self.transport.features
    }

    /// Queues in use, entries of the first, and notifications so far.
    pub fn queue_facts(&self) -> (usize, u16, u64) {
        let kicks = self.queues.iter().flatten().map(|queue| queue.kicks).sum();
        (self.queue_count, self.queues[0].as_ref().map_or(0, |queue| queue.size), kicks)
    }

    /// A slot's data buffer.
    pub fn buffer(&self, slot: usize) -> *mut u64 {
        (self.buffers + self.buffer_bytes * slot as u64) as *mut u64
    }

    /// A slot that is free.
    pub fn free_slot(&self) -> Option<usize> {
        self.requests[..self.depth].iter().position(Option::is_none)
    }

    /// Descriptors of one request in the queue's own table.
    fn chain(&self) -> usize {
        if self.transport.features & INDIRECT != 0 { 1 } else { self.segments as usize + 2 }
    }

    /// Builds the request in a free slot; the device sees it at `publish`.
    pub fn submit(&mut self, slot: usize, mut request: Request) {
        let page = self.pages + PAGE * slot as u64;
        let ranged = matches!(request.op, Op::Discard | Op::Zero);
        let header = [u64::from(request.op.number()), if ranged { 0 } else { request.sector }];
        // SAFETY: the slot's page is ours, and the device is done with it.
        unsafe { (page as *mut [u64; 2]).write_volatile(header) };
        let range = [request.sector, request.bytes / SECTOR];
        // SAFETY: as above.
        unsafe { ((page + RANGE_AT) as *mut [u64; 2]).write_volatile(range) };
        // SAFETY: as above; no status of the standard has this value.
        unsafe { ((page + STATUS_AT) as *mut u8).write_volatile(0xff) };

        let mut list = [Descriptor { at: 0, len: 0, flags: 0, next: 0 }; MAX_SEGMENTS as usize + 2];
        let mut count = 0;
        let mut add = |at: u64, len: u64, flags: u16| {
            list[count] = Descriptor { at, len: len as u32, flags, next: 0 };
            count += 1;
        };
        add(page, 16, 0);
        let direction = if request.op == Op::Read { WRITE } else { 0 };
        match request.op {
            Op::Read | Op::Write => {
                let step = (request.bytes / self.segments).next_multiple_of(SECTOR);
                let mut done = 0;
                while done < request.bytes {
                    let len = step.min(request.bytes - done);
                    add(self.buffer(slot) as u64 + done, len, direction);
                    done += len;
                }
            }
            Op::Discard | Op::Zero => add(page + RANGE_AT, 16, 0),
            Op::Flush => {}
        }
        add(page + STATUS_AT, 1, WRITE);
        request.started = tsc();
        self.requests[slot] = Some(request);
        self.in_flight += 1;
        self.place(slot, page, &mut list[..count]);
    }

    /// Puts a request's descriptors into the queue's table, or into a table of its own.
    fn place(&mut self, slot: usize, page: u64, list: &mut [Descriptor]) {
        let chain = self.chain();
        let indirect = self.transport.features & INDIRECT != 0;
        let head = if indirect { 0 } else { slot / self.queue_count * chain };
        let last = list.len() - 1;
        for (index, descriptor) in list.iter_mut().enumerate() {
            if index < last {
                descriptor.flags |= NEXT;
                descriptor.next = (head + index + 1) as u16;
            }
        }
        let Some(queue) = &mut self.queues[slot % self.queue_count] else { return };
        if indirect {
            for (index, descriptor) in list.iter().enumerate() {
                let at = (page + TABLE_AT) as *mut Descriptor;
                // SAFETY: the table has room for every segment, and the device is done with it.
                unsafe { at.add(index).write_volatile(*descriptor) };
            }
            let head = (slot / self.queue_count) as u16;
            let len = core::mem::size_of_val(list) as u32;
            queue.describe(head, Descriptor { at: page + TABLE_AT, len, flags: TABLE, next: 0 });
            queue.push(head);
            return;
        }
        for (index, descriptor) in list.iter().enumerate() {
            queue.describe((head + index) as u16, *descriptor);
        }
        queue.push(head as u16);
    }

    /// Shows the device everything submitted.
    pub fn publish(&mut self) {
        for queue in self.queues.iter_mut().flatten() {
            queue.publish();
        }
    }

    /// The next completed request: its slot, itself and its status (0 is success).
    pub fn completed(&mut self) -> Option<(usize, Request, u8)> {
        let chain = self.chain();
        for _ in 0..self.queue_count {
            let number = self.next_queue;
            if let Some((head, _)) = self.queues[number].as_mut().and_then(Queue::pop) {
                let slot = usize::from(head) / chain * self.queue_count + number;
                let Some(request) = self.requests.get_mut(slot).and_then(Option::take) else {
                    panic!("the device completed head {head} of queue {number}, which is idle");
                };
                self.in_flight -= 1;
                let status = (self.pages + PAGE * slot as u64 + STATUS_AT) as *const u8;
                // SAFETY: the slot's page is ours.
                return Some((slot, request, unsafe { status.read_volatile() }));
            }
            self.next_queue = (number + 1) % self.queue_count;
        }
        None
    }
}
