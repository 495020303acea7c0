//! A front end for tests, on a thread of its own: it does what it is told, right or wrong.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use ferry_block::net::SocketAddress;
use ferry_block::testing::{SimDisk, SimOptions};
use ferry_block::{BlockGraph, Clock, Executor, NodeOptions};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::testing::{
    AVAIL, DATA, DESC, DISK, HEADER, MEMORY, STATUS, USED, USER, addresses, ring, words,
};
use crate::wire::{self, HEADER_LEN, feature, protocol};
use crate::{Export, ExportOptions};

/// The guest wants to hear of every request, so it does without the event index.
pub(crate) const UNUSED: u64 = ferry_devices::virtio::features::RING_EVENT_IDX;
/// Nothing here takes longer, unless it hangs.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs `front` against an export of an empty disk, and the export's process, so to speak, until it is done.
pub(crate) fn against_export(
    change: impl FnOnce(&mut ExportOptions),
    front: impl FnOnce(&Path) + Send + 'static,
    meanwhile: impl FnOnce(&BlockGraph, &Export),
) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("blk");
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(async {
        let disk = SimOptions { resizable: true, ..SimOptions::new(DISK, 1) };
        let disk = SimDisk::new(&executor, disk);
        let node = graph.add(Some("d0"), disk, NodeOptions::default()).await.unwrap();
        let mut options = ExportOptions {
            id: "e0".into(),
            node_name: "d0".into(),
            address: SocketAddress::unix(socket.display().to_string()),
            writable: true,
            writethrough: false,
            block_size: 512,
            queues: 2,
        };
        change(&mut options);
        let export = Export::start(&graph, options).await.unwrap();
        let thread = start(front, socket.clone());
        meanwhile(&graph, &export);
        while !thread.is_finished() {
            executor.sleep(Duration::from_millis(1)).await;
        }
        let done = thread.join();
        export.close().await;
        drop(node);
        assert!(!socket.exists() && done.is_ok());
    });
}

fn start(front: impl FnOnce(&Path) + Send + 'static, socket: PathBuf) -> JoinHandle<()> {
    Builder::new().spawn(move || front(&socket)).unwrap()
}

/// A front end and its guest.
pub(crate) struct FrontEnd {
    pub(crate) stream: UnixStream,
    pub(crate) file: File,
    pub(crate) memory: GuestMemoryMmap<()>,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    pub(crate) err: EventFd,
    next: u16,
}

impl FrontEnd {
    /// Connects and says nothing yet.
    pub(crate) fn connect(socket: &Path) -> FrontEnd {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(MEMORY).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let region = (GuestAddress(0), usize::try_from(MEMORY).unwrap(), Some(offset));
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        FrontEnd {
            stream,
            file,
            memory: GuestMemoryMmap::from_ranges_with_files([region]).unwrap(),
            kick: event(),
            call: event(),
            err: event(),
            next: 0,
        }
    }

    /// Connects and negotiates everything.
    pub(crate) fn negotiated(socket: &Path) -> FrontEnd {
        let front = FrontEnd::connect(socket);
        let features = front.ask_word(1);
        assert_ne!(features & feature::PROTOCOL_FEATURES, 0);
        let ours = front.ask_word(15);
        front.send(16, &words(&[ours]), &[]);
        front.send(2, &words(&[features & !(feature::LOG_ALL | UNUSED)]), &[]);
        front
    }

    /// Connects and brings ring 0 up, with 8 entries.
    pub(crate) fn up(socket: &Path) -> FrontEnd {
        let front = FrontEnd::negotiated(socket);
        front.set_memory();
        front.set_ring(0);
        front
    }

    pub(crate) fn set_memory(&self) {
        let table = [words(&[1, 0, MEMORY, USER, 0])].concat();
        assert_eq!(self.acknowledged(5, &table, &[self.file.as_raw_fd()]), 0);
    }

    /// Everything of ring 0, which begins at `base`.
    pub(crate) fn set_ring(&self, base: u32) {
        self.send(8, &ring(0, 8), &[]);
        self.send(9, &addresses(0, USER + DESC, USER + USED, USER + AVAIL), &[]);
        self.send(10, &ring(0, base), &[]);
        self.send(13, &words(&[0]), &[self.call.as_raw_fd()]);
        self.send(14, &words(&[0]), &[self.err.as_raw_fd()]);
        self.send(12, &words(&[0]), &[self.kick.as_raw_fd()]);
        assert_eq!(self.acknowledged(18, &ring(0, 1), &[]), 0);
    }

    pub(crate) fn send(&self, request: u32, payload: &[u8], fds: &[RawFd]) {
        self.send_flagged(request, 1, payload, fds);
    }

    /// Whether the back end still takes messages.
    pub(crate) fn try_send(&self, request: u32, payload: &[u8], fds: &[RawFd]) -> bool {
        let message = wire::message(request, false, payload);
        self.stream.send_with_fds(&[message.as_slice()], fds).is_ok()
    }

    fn send_flagged(&self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) {
        let mut message = wire::message(request, false, payload);
        message[4..8].copy_from_slice(&flags.to_ne_bytes());
        self.stream.send_with_fds(&[message.as_slice()], fds).unwrap();
    }

    /// What a message is answered with that asks for it: 0 if all is well.
    pub(crate) fn acknowledged(&self, request: u32, payload: &[u8], fds: &[RawFd]) -> u64 {
        self.send_flagged(request, 9, payload, fds);
        word(&self.receive(request))
    }

    pub(crate) fn ask(&self, request: u32, payload: &[u8]) -> Vec<u8> {
        self.send(request, payload, &[]);
        self.receive(request)
    }

    pub(crate) fn ask_word(&self, request: u32) -> u64 {
        word(&self.ask(request, &[]))
    }

    /// The answer to a request.
    pub(crate) fn receive(&self, request: u32) -> Vec<u8> {
        let mut header = [0; HEADER_LEN];
        (&self.stream).read_exact(&mut header).unwrap();
        let field = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((field(0), field(4)), (request, 5));
        let mut payload = vec![0; usize::try_from(field(8)).unwrap()];
        (&self.stream).read_exact(&mut payload).unwrap();
        payload
    }

    /// Waits until the back end has hung up.
    pub(crate) fn expect_hang_up(&self) {
        let mut rest = Vec::new();
        match (&self.stream).read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        // The back end may have hung up before it got everything.
        drop((&self.stream).write_all(bytes));
    }

    /// The guest asks for 4 KiB, to or from [`DATA`], and rings.
    pub(crate) fn request(&mut self, kind: u32, sector: u64) {
        let header = [u64::from(kind), sector].map(u64::to_le_bytes).concat();
        self.memory.write_slice(&header, GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(0xee_u8, GuestAddress(STATUS)).unwrap();
        let data_flags = if kind == 0 { 3 } else { 1 };
        self.descriptor(0, (HEADER, 16), 1, 1);
        self.descriptor(1, (DATA, 4096), data_flags, 2);
        self.descriptor(2, (STATUS, 1), 2, 0);
        self.offer(0);
    }

    pub(crate) fn descriptor(&self, index: u64, (addr, len): (u64, u32), flags: u16, next: u16) {
        let tail = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        let bytes = [addr, tail].map(u64::to_le_bytes).concat();
        self.memory.write_slice(&bytes, GuestAddress(DESC + 16 * index)).unwrap();
    }

    /// Makes a head available and rings.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = AVAIL + 4 + 2 * u64::from(self.next % 8);
        self.memory.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        self.next = self.next.wrapping_add(1);
        self.set_avail(self.next);
    }

    /// Sets the available index and rings.
    pub(crate) fn set_avail(&mut self, index: u16) {
        self.next = index;
        self.memory.store(index.to_le(), GuestAddress(AVAIL + 2), Ordering::Release).unwrap();
        self.kick.write(1).unwrap();
    }

    /// Waits until the back end has seen what was offered: it has taken the ring's count, and answers a question
    /// that was asked after that, so it has looked into the ring meanwhile.
    pub(crate) fn wait_taken(&self) {
        let epoll = Epoll::new().unwrap();
        let interest = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, self.kick.as_raw_fd(), interest).unwrap();
        for _ in 0..5000 {
            if epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 0 {
                self.ask_word(1);
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("nobody heard");
    }

    pub(crate) fn used(&self) -> u16 {
        self.memory.load(GuestAddress(USED + 2), Ordering::Acquire).unwrap()
    }

    pub(crate) fn status(&self) -> u8 {
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    /// Waits until `event` is rung, which takes its count.
    pub(crate) fn wait_event(&self, event: &EventFd) {
        for _ in 0..5000 {
            if event.read().is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("nobody rang");
    }

    /// Where ring 0 stops.
    pub(crate) fn stop_ring(&self) -> u32 {
        let state = self.ask(11, &ring(0, 0));
        u32::from_ne_bytes(state[4..8].try_into().unwrap())
    }
}

fn word(payload: &[u8]) -> u64 {
    u64::from_ne_bytes(payload.try_into().unwrap())
}

/// Those of the protocol that a test can count on.
pub(crate) const NEEDED: u64 = protocol::CONFIG | protocol::REPLY_ACK | protocol::LOG_SHMFD;
