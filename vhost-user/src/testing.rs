//! Hostile input, for tests of other crates: what a front end may send, with a guest that writes its rings.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ferry_block::net::SocketAddress;
use ferry_block::testing::{SimDisk, SimOptions};
use ferry_block::{BlockGraph, Clock, Executor, NodeOptions};
use ferry_devices::virtio::features;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::wire::{feature, protocol};
use crate::{Export, ExportOptions};

/// Bytes of the disk and of the guest's memory.
pub(crate) const DISK: u64 = 1 << 20;
pub(crate) const MEMORY: u64 = 1 << 20;
/// Where the front end has its guest's memory.
pub(crate) const USER: u64 = 0x7000_0000_0000;
/// Where the guest has its ring and what it sends.
pub(crate) const DESC: u64 = 0x1000;
pub(crate) const AVAIL: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;
pub(crate) const HEADER: u64 = 0x4000;
pub(crate) const STATUS: u64 = 0x5000;
pub(crate) const DATA: u64 = 0x8000;

/// What an input consists of: a byte that says which of these it is, then its own.
mod step {
    /// Request, flags, descriptors, length of the payload, payload.
    pub(super) const MESSAGE: u8 = 0;
    /// Where in units of [`UNIT`](super::UNIT), two bytes, length, contents: the guest writes its memory.
    pub(super) const MEMORY: u8 = 1;
    /// The guest rings.
    pub(super) const KICK: u8 = 2;
}

/// Bytes from one place that the guest can write at to the next.
const UNIT: u64 = 16;
/// Most steps of an input.
const STEPS: usize = 200;
/// Bits of a descriptor byte that say how many there are, and then which each is.
const FD_BITS: u32 = 2;
/// The version of a message, and that it is to be answered.
const PLAIN: u8 = 1;
const ANSWERED: u8 = 9;

/// Says the bytes to an export as a front end and its guest; how many requests of the guest were served.
/// Comes back soon, having used little memory, whatever they say.
///
/// # Panics
/// There is a mistake in what is tested.
pub fn fuzz_front_end(data: &[u8]) -> u32 {
    let executor = Executor::new(Clock::real()).expect("an executor");
    let graph = BlockGraph::new(executor.clone());
    let place = Place::new();
    let served = executor.block_on(async {
        let disk = SimDisk::new(&executor, SimOptions::new(DISK, 1).instant());
        let node = graph.add(Some("d0"), disk, NodeOptions::default()).await;
        let export = Export::start(&graph, place.export()).await.expect("a node and a folder");
        let guest = Guest::connect(&place);
        guest.act(&executor, data).await;
        // What it rang for last is taken before it hangs up.
        executor.sleep(Duration::from_micros(100)).await;
        drop(guest.stream);
        export.close().await;
        drop(node);
        let mut index = [0; 2];
        guest.memory.read_exact_at(&mut index, USED + 2).expect("nobody made it shorter");
        u32::from(u16::from_le_bytes(index))
    });
    drop(graph);
    served
}

/// What front ends and guests do.
pub fn front_end_seeds() -> Vec<Vec<u8>> {
    let agreed = features::VERSION_1 | features::BLK_FLUSH | feature::PROTOCOL_FEATURES;
    let kick = || vec![step::KICK];
    let plain = [up(agreed, 0), request(1, 0), kick(), request(0, 1), kick(), asked()].concat();
    let one_region = words(&[0, 0, MEMORY, USER, 0]);
    let logged = [
        up(agreed | features::RING_INDIRECT_DESC | features::RING_EVENT_IDX, 0),
        request(0, 0),
        kick(),
        message(6, PLAIN, &words(&[4096, 0]), &[0]),
        message(2, PLAIN, &words(&[agreed | feature::LOG_ALL]), &[]),
        message(38, ANSWERED, &one_region, &[]),
        message(37, ANSWERED, &one_region, &[0]),
        request(1, 1),
        kick(),
        asked(),
    ];
    vec![plain, logged.concat()]
}

/// Numbers as a payload.
pub(crate) fn words(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

/// A ring and a number.
pub(crate) fn ring(index: u32, value: u32) -> Vec<u8> {
    [index, value].map(u32::to_ne_bytes).concat()
}

/// Where a ring is.
pub(crate) fn addresses(index: u32, desc: u64, used: u64, avail: u64) -> Vec<u8> {
    [ring(index, 0), words(&[desc, used, avail, 0])].concat()
}

/// Everything that brings ring 0 up.
fn up(agreed: u64, base: u32) -> Vec<u8> {
    let chosen = protocol::REPLY_ACK | protocol::LOG_SHMFD | protocol::CONFIGURE_MEM_SLOTS;
    let messages = [
        message(1, PLAIN, &[], &[]),
        message(15, PLAIN, &[], &[]),
        message(16, PLAIN, &words(&[chosen]), &[]),
        message(3, PLAIN, &[], &[]),
        message(2, PLAIN, &words(&[agreed]), &[]),
        message(5, ANSWERED, &words(&[1, 0, MEMORY, USER, 0]), &[0]),
        message(8, PLAIN, &ring(0, 8), &[]),
        message(9, PLAIN, &addresses(0, USER + DESC, USER + USED, USER + AVAIL), &[]),
        message(10, PLAIN, &ring(0, base), &[]),
        message(13, PLAIN, &words(&[0]), &[2]),
        message(12, PLAIN, &words(&[0]), &[1]),
        message(18, ANSWERED, &ring(0, 1), &[]),
    ];
    messages.concat()
}

/// The `number`th request, for 512 bytes: what it is and where, a chain of three descriptors, and the chain's
/// place in the available ring.
fn request(kind: u8, number: u8) -> Vec<u8> {
    let descriptor =
        |at: u64, len: u64, flags: u64, next: u64| [at, len | flags << 32 | next << 48];
    let chain = [
        descriptor(HEADER, 16, 1, 1),
        descriptor(DATA, 512, if kind == 0 { 3 } else { 1 }, 2),
        descriptor(STATUS, 1, 2, 0),
    ];
    let mut available = vec![0; 4 + 2 * 8];
    available[2] = number + 1;
    [
        memory(HEADER, &[[u64::from(kind), 0].map(u64::to_le_bytes).concat()].concat()),
        memory(
            DESC,
            &chain.concat().iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>(),
        ),
        memory(AVAIL, &available),
    ]
    .concat()
}

/// Questions at the end.
fn asked() -> Vec<u8> {
    let space = [[0_u32, 8, 0].map(u32::to_ne_bytes).concat(), vec![0; 8]].concat();
    [
        message(17, PLAIN, &[], &[]),
        message(24, PLAIN, &space, &[]),
        message(11, PLAIN, &ring(0, 0), &[]),
    ]
    .concat()
}

fn message(request: u8, flags: u8, payload: &[u8], fds: &[u8]) -> Vec<u8> {
    let chosen = fds.iter().rev().fold(0, |chosen, fd| chosen << FD_BITS | fd);
    let fds = chosen << FD_BITS | u8::try_from(fds.len()).unwrap_or(0);
    let len = u8::try_from(payload.len()).unwrap_or(u8::MAX);
    [&[step::MESSAGE, request, flags, fds, len], payload].concat()
}

fn memory(at: u64, contents: &[u8]) -> Vec<u8> {
    let [low, high, ..] = (at / UNIT).to_le_bytes();
    let len = u8::try_from(contents.len()).unwrap_or(u8::MAX);
    [&[step::MEMORY, low, high, len], contents].concat()
}

/// A front end and the guest that it has.
struct Guest {
    stream: UnixStream,
    memory: File,
    kick: EventFd,
    call: EventFd,
    /// Neither memory nor an eventfd.
    other: File,
}

impl Guest {
    fn connect(place: &Place) -> Guest {
        let stream = UnixStream::connect(place.socket()).expect("somebody listens");
        stream.set_nonblocking(true).expect("a socket");
        let event = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let other = File::open("/dev/null").expect("a device");
        Guest { stream, memory: place.memory(), kick: event(), call: event(), other }
    }

    async fn act(&self, executor: &Executor, mut data: &[u8]) {
        for _ in 0..STEPS {
            let Some((kind, rest)) = data.split_first() else { return };
            data = match *kind {
                step::MESSAGE => {
                    let Some(([request, flags, fds, len], rest)) = rest.split_first_chunk() else {
                        return;
                    };
                    let (payload, rest) = rest.split_at(usize::from(*len).min(rest.len()));
                    self.send([*request, *flags], payload, *fds);
                    rest
                }
                step::MEMORY => {
                    let Some(([low, high, len], rest)) = rest.split_first_chunk() else { return };
                    let (contents, rest) = rest.split_at(usize::from(*len).min(rest.len()));
                    let at = u64::from(u16::from_le_bytes([*low, *high])) * UNIT;
                    let fits = contents.len().min(usize::try_from(MEMORY - at).unwrap_or(0));
                    self.memory.write_all_at(&contents[..fits], at).expect("room");
                    rest
                }
                _ => {
                    self.kick.write(1).expect("a counter that is not full");
                    executor.sleep(Duration::from_micros(100)).await;
                    rest
                }
            };
            // Nobody waits for the answers.
            drop((&self.stream).read(&mut [0; 4096]));
        }
    }

    /// Sends a message as far as the export takes it.
    fn send(&self, [request, flags]: [u8; 2], payload: &[u8], fds: u8) {
        let len = u32::try_from(payload.len()).unwrap_or(0);
        let header = [u32::from(request), flags.into(), len].map(u32::to_ne_bytes).concat();
        let all = [&self.memory as &dyn AsRawFd, &self.kick, &self.call, &self.other];
        let mask = (1 << FD_BITS) - 1;
        let chosen = (1..=fds & mask).map(|place| {
            let which = fds >> (FD_BITS * u32::from(place)) & mask;
            all[usize::from(which)].as_raw_fd()
        });
        let chosen: Vec<RawFd> = chosen.collect();
        if let Err(error) = self.stream.send_with_fds(&[header.as_slice(), payload], &chosen) {
            tracing::trace!("the export has hung up: {error}");
        }
    }
}

/// A folder of one run, gone afterwards.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let (process, run) = (std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("ferry-front-end-{process}-{run}"));
        fs::create_dir(&path).expect("room for a folder");
        Place(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    fn memory(&self) -> File {
        let path = self.0.join("memory");
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.expect("room for a file");
        file.set_len(MEMORY).expect("a file");
        file
    }

    fn export(&self) -> ExportOptions {
        ExportOptions {
            id: "e0".into(),
            node_name: "d0".into(),
            address: SocketAddress::unix(self.socket().display().to_string()),
            writable: true,
            writethrough: false,
            block_size: 512,
            queues: 2,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("{}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_go_deep() {
        let served: Vec<u32> = front_end_seeds().iter().map(|seed| fuzz_front_end(seed)).collect();
        assert_eq!(served, [2, 2]);
        assert_eq!(fuzz_front_end(&[]), 0);
    }
}
