//! The server word by word: a client that speaks bytes, with nothing of ours between it and the socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::error::ErrorKind;
use crate::executor::Executor;
use crate::node::NodeOptions;
use crate::protocol::null::NullDriver;
use crate::testing::{Effect, Fault, SimDisk, SimOp, SimOptions};

const LEN: u64 = 4 << 20;
/// What is no zero on the disk: its last 64 KiB but one, and 1 MiB in its middle.
const DATA: [std::ops::Range<u64>; 2] = [1 << 20..2 << 20, LEN - 131_072..LEN - 65_536];

pub(super) const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

const FUA: u16 = 1 << 0;
const NO_HOLE: u16 = 1 << 1;
const DF: u16 = 1 << 2;
const REQ_ONE: u16 = 1 << 3;

const FAST_ZERO: u16 = 1 << 4;

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;

const DONE: u16 = 1;

/// A client in the transmission phase, with structured or extended replies and `base:allocation`.
pub(super) struct Wire {
    pub(super) stream: UnixStream,
    context: u32,
    /// Bytes of the export.
    len: u64,
    /// What the export says that it can do.
    flags: u16,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Simple { error: u32, cookie: u64 },
    Chunk { flags: u16, kind: u16, cookie: u64, payload: Vec<u8> },
}

pub(super) fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

pub(super) fn long(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

impl Wire {
    pub(super) fn connect(path: &Path, export: &str) -> Wire {
        Wire::connect_with(path, export, 8)
    }

    /// Connects with the replies that the option of this number asks for.
    pub(super) fn connect_with(path: &Path, export: &str, replies: u32) -> Wire {
        let stream = UnixStream::connect(path).unwrap();
        let mut wire = Wire { stream, context: u32::MAX, len: 0, flags: 0 };
        assert_eq!(wire.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        wire.stream.write_all(&3_u32.to_be_bytes()).unwrap();
        assert_eq!(wire.option(replies, &[]), []);
        let name =
            [&u32::try_from(export.len()).unwrap().to_be_bytes(), export.as_bytes()].concat();
        let query = [&name[..], &[0, 0, 0, 1, 0, 0, 0, 15], b"base:allocation"].concat();
        let contexts = wire.option(10, &query);
        let [(4, context)] = &contexts[..] else { panic!("{contexts:?}") };
        assert_eq!(&context[4..], b"base:allocation");
        wire.context = word(context);
        let infos = wire.option(7, &[&name[..], &[0, 0]].concat());
        let info = infos.iter().find(|(_, data)| data[..2] == [0, 0]).unwrap();
        wire.len = long(&info.1[2..]);
        wire.flags = u16::from_be_bytes([info.1[10], info.1[11]]);
        wire
    }

    /// Asks for an option; its replies but for the last, which acknowledges it.
    fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let len = u32::try_from(data.len()).unwrap();
        let head = [&b"IHAVEOPT"[..], &option.to_be_bytes(), &len.to_be_bytes(), data].concat();
        self.stream.write_all(&head).unwrap();
        let mut replies = Vec::new();
        loop {
            let head = self.take(20);
            let (kind, len) = (word(&head[12..]), word(&head[16..]));
            let data = self.take(len as usize);
            match kind {
                1 => return replies,
                _ => replies.push((kind, data)),
            }
            assert_eq!(kind >> 31, 0, "refused: {replies:?}");
        }
    }

    pub(super) fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn send(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u64) {
        let bytes = Wire::request(flags, command, cookie, offset, len);
        self.stream.write_all(&bytes).unwrap();
    }

    pub(super) fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend([flags.to_be_bytes(), command.to_be_bytes()].concat());
        bytes.extend([cookie.to_be_bytes(), offset.to_be_bytes()].concat());
        bytes.extend(u32::try_from(len).unwrap().to_be_bytes());
        if command == WRITE {
            bytes.resize(bytes.len() + usize::try_from(len).unwrap(), 0xa5);
        }
        bytes
    }

    pub(super) fn reply(&mut self) -> Reply {
        match word(&self.take(4)) {
            0x6744_6698 => {
                let rest = self.take(12);
                Reply::Simple { error: word(&rest), cookie: long(&rest[4..]) }
            }
            0x668e_33ef => {
                let head = self.take(16);
                let payload = self.take(word(&head[12..]) as usize);
                let flags = u16::from_be_bytes([head[0], head[1]]);
                let kind = u16::from_be_bytes([head[2], head[3]]);
                Reply::Chunk { flags, kind, cookie: long(&head[4..]), payload }
            }
            other => panic!("no reply begins with {other:#x}"),
        }
    }

    /// The error that a request is answered with, 0 for none.
    fn errno(&mut self, flags: u16, command: u16, offset: u64, len: u64) -> u32 {
        let asked = 0x0102_0304_0506_0708 ^ offset;
        self.send(flags, command, asked, offset, len);
        match self.reply() {
            Reply::Simple { error, cookie } => {
                assert_eq!(cookie, asked);
                assert_ne!(command, READ, "answers to reads have structure, errors too");
                error
            }
            Reply::Chunk { flags, kind, cookie, payload } => {
                assert_eq!((flags, kind >> 15, cookie), (DONE, 1, asked));
                word(&payload)
            }
        }
    }

    /// What a read gives, put together from its chunks, and how many of them there were.
    fn read(&mut self, flags: u16, offset: u64, len: u64) -> (Vec<u8>, usize) {
        self.send(flags, READ, 77, offset, len);
        let mut bytes: Vec<Option<u8>> = vec![None; usize::try_from(len).unwrap()];
        for count in 1.. {
            let Reply::Chunk { flags, kind, cookie: 77, payload } = self.reply() else {
                panic!("something else was answered");
            };
            let part = match kind {
                0 => vec![],
                1 => payload[8..].to_vec(),
                2 => vec![0; word(&payload[8..]) as usize],
                _ => panic!("a chunk of kind {kind}"),
            };
            if kind != 0 {
                let start = usize::try_from(long(&payload) - offset).unwrap();
                for (place, byte) in bytes[start..start + part.len()].iter_mut().zip(part) {
                    assert_eq!(place.replace(byte), None, "it comes twice");
                }
            }
            if flags == DONE {
                let all = bytes.into_iter().map(|byte| byte.expect("all of it comes"));
                return (all.collect(), count);
            }
        }
        unreachable!()
    }
}

/// Serves a disk as `rw`, as `ro` and, with every write durable, as `wt`, and one of 64 MiB of zeroes
/// as `long`; `test` is a client on a thread of its own.
pub(super) fn converse(test: impl FnOnce(&Path) + Send + 'static) -> SimDisk {
    converse_with(&[], test)
}

/// The same with faults of the disk.
fn converse_with(faults: &[Fault], test: impl FnOnce(&Path) + Send + 'static) -> SimDisk {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let disk = SimDisk::new(&executor, SimOptions::new(LEN, 5).instant());
    for (number, range) in DATA.into_iter().enumerate() {
        let bytes: Vec<u8> = range.clone().map(|at| pattern(at, number)).collect();
        disk.fill(range.start, &bytes);
    }
    faults.iter().for_each(|fault| disk.inject(fault.clone()));
    let seen = disk.clone();
    executor.block_on(async {
        graph.add(Some("disk"), disk, NodeOptions::default()).await.unwrap();
        let zeroes = NullDriver::new(executor.clone(), 64 << 20, true, Duration::ZERO);
        graph.add(Some("long"), zeroes, NodeOptions::default()).await.unwrap();
        let address = SocketAddress::unix(socket.to_str().unwrap());
        let server = Server::bind(&graph, ServerOptions::new(address)).await.unwrap();
        server.open();
        for name in ["rw", "ro", "wt"] {
            let (writable, writethrough) = (name != "ro", name == "wt");
            let plain = ExportOptions::new(format!("export {name}"), "disk");
            let name = Some(name.to_owned());
            server.add(ExportOptions { name, writable, writethrough, ..plain }).await.unwrap();
        }
        server.add(ExportOptions::new("export long", "long")).await.unwrap();
        let client = crate::thread::spawn("client", move || test(&socket)).unwrap();
        while !client.is_finished() {
            executor.sleep(Duration::from_millis(2)).await;
        }
        client.join().unwrap();
        server.stop().await;
    });
    seen
}

fn pattern(at: u64, number: usize) -> u8 {
    (at / 512 * 7 + at + number as u64).to_le_bytes()[0] | 1
}

#[test]
fn an_export_says_what_it_can_do() {
    converse(|path| {
        // There are flags; flush, FUA, DF, several connections, cache.
        let always = [0, 2, 3, 7, 8, 10];
        let set = |bits: &[u32]| bits.iter().fold(0, |all, bit| all | 1 << bit);
        // Trim, zeroes, fast zeroes.
        let writable = set(&always) | set(&[5, 6, 11]);
        let wire = Wire::connect(path, "rw");
        assert_eq!((wire.len, wire.flags), (LEN, writable));
        assert_eq!(Wire::connect(path, "ro").flags, set(&always) | set(&[1]));
    });
}

/// The first is received into memory of its own, to its last byte and no further.
#[test]
fn a_long_write_does_not_hide_what_follows_it() {
    converse(|path| {
        let mut wire = Wire::connect(path, "rw");
        for _ in 0..50 {
            let mut bytes = Wire::request(0, WRITE, 1, 0, 1 << 20);
            bytes.extend(Wire::request(0, READ, 2, 0, 512));
            wire.stream.write_all(&bytes).unwrap();
            assert_eq!(wire.reply(), Reply::Simple { error: 0, cookie: 1 });
            assert!(matches!(wire.reply(), Reply::Chunk { cookie: 2, .. }));
        }
    });
}

#[test]
fn what_leaves_the_export_is_refused_and_its_last_byte_is_not() {
    converse(|path| {
        let mut wire = Wire::connect(path, "rw");
        for (command, beyond) in [(WRITE, ENOSPC), (ZEROES, ENOSPC), (TRIM, ENOSPC)] {
            assert_eq!(wire.errno(0, command, LEN - 4096, 4096), 0, "{command}");
            assert_eq!(wire.errno(0, command, LEN - 4096, 4097), beyond, "{command}");
            assert_eq!(wire.errno(0, command, LEN, 1), beyond, "{command}");
            assert_eq!(wire.errno(0, command, u64::MAX, 2), beyond, "{command}");
        }
        assert_eq!(wire.errno(0, READ, LEN - 1, 2), EINVAL);
        assert_eq!(wire.errno(0, READ, LEN - 4096, (1 << 20) + 1), EINVAL);
        assert_eq!(wire.read(0, LEN - 1, 1).0.len(), 1);
        assert_eq!(wire.errno(0, STATUS, LEN - 1, 2), EINVAL);
        assert_eq!(wire.errno(0, STATUS, 0, 0), EINVAL);
        // Nobody may have a flag that its command does not know.
        assert_eq!(wire.errno(DF, WRITE, 0, 512), EINVAL);
        assert_eq!(wire.errno(0, 999, 0, 512), EINVAL);
    });
}

#[test]
fn the_longest_read_is_given_and_none_that_is_longer() {
    converse(|path| {
        let mut wire = Wire::connect(path, "long");
        let longest = 32 << 20;
        assert_eq!(wire.errno(0, READ, 1, longest + 1), EOVERFLOW);
        wire.send(0, READ, 3, 1, longest);
        let Reply::Chunk { flags: DONE, kind: 2, cookie: 3, payload } = wire.reply() else {
            panic!("no single hole was answered");
        };
        assert_eq!((long(&payload), u64::from(word(&payload[8..]))), (1, longest));
    });
}

/// Only who asks for zeroes that must be cheap may be told that something is not supported.
#[test]
fn what_a_disk_cannot_do_is_told_as_the_protocol_wants_it() {
    let unsupported = |op| Fault::every(op, Effect::Fail(ErrorKind::Unsupported));
    let faults = [unsupported(SimOp::Zeroes), unsupported(SimOp::Write).within(0..512)];
    let disk = converse_with(&faults, |path| {
        let mut wire = Wire::connect(path, "rw");
        assert_eq!(wire.errno(FAST_ZERO, ZEROES, 1 << 20, 4096), ENOTSUP);
        assert_eq!(wire.errno(0, ZEROES, (1 << 20) + 4096, 4096), 0, "they are written");
        assert_eq!(wire.errno(0, WRITE, 0, 512), EINVAL);
    });
    let contents = disk.contents();
    assert_eq!(contents[1 << 20], pattern(1 << 20, 0));
    assert_eq!(contents[(1 << 20) + 4096..(1 << 20) + 8192], [0; 4096]);
}

#[test]
fn who_may_only_read_changes_nothing() {
    let disk = converse(|path| {
        let mut wire = Wire::connect(path, "ro");
        for command in [WRITE, ZEROES, TRIM] {
            assert_eq!(wire.errno(0, command, 1 << 20, 4096), EPERM);
        }
        assert_eq!(wire.read(0, 1 << 20, 512).0[0], pattern(1 << 20, 0));
    });
    assert_eq!(disk.contents()[1 << 20], pattern(1 << 20, 0));
}

#[test]
fn fua_makes_durable_what_it_is_set_on() {
    let disk = converse(|path| {
        let mut wire = Wire::connect(path, "rw");
        assert_eq!(wire.errno(FUA, WRITE, 512, 512), 0);
        assert_eq!(wire.errno(FUA | NO_HOLE, ZEROES, 1 << 20, 512), 0);
        // Durable with the trim that follows it.
        assert_eq!(wire.errno(0, WRITE, 32_768, 512), 0);
        assert_eq!(wire.errno(FUA, TRIM, DATA[1].start, 4096), 0);
        // From here on nothing makes durable what went before.
        assert_eq!(Wire::connect(path, "wt").errno(0, WRITE, 16_384, 512), 0);
        assert_eq!(wire.errno(0, WRITE, 8192, 512), 0);
    });
    let durable = disk.durable();
    assert_eq!(durable[32_768..33_280], [0xa5; 512]);
    assert_eq!(durable[16_384..16_896], [0xa5; 512]);
    assert_eq!(durable[512..1024], [0xa5; 512]);
    assert_eq!(durable[1 << 20..(1 << 20) + 512], [0; 512]);
    assert_eq!(durable[8192..8704], [0; 512], "nobody asked for this");
    assert_eq!(disk.contents()[8192..8704], [0xa5; 512]);
}

#[test]
fn zeroes_give_space_back_unless_that_is_forbidden() {
    let disk = converse(|path| {
        let mut wire = Wire::connect(path, "rw");
        assert_eq!(wire.errno(NO_HOLE, ZEROES, 1 << 20, 512 << 10), 0);
        assert_eq!(wire.errno(0, ZEROES, 3 << 19, 512 << 10), 0);
    });
    let all: u64 = DATA.iter().map(|range| range.end - range.start).sum();
    // What is written in two steps leaves the piece with the seam as data.
    let gone = all - disk.data_bytes();
    assert!(gone == 512 << 10 || gone == 508 << 10, "{gone}");
}

#[test]
fn a_read_gives_every_byte_once_in_one_chunk_or_in_many() {
    converse(|path| {
        let mut wire = Wire::connect(path, "rw");
        let expected = |range: std::ops::Range<u64>| -> Vec<u8> {
            let byte = |at: u64| {
                let number = DATA.iter().position(|data| data.contains(&at));
                number.map_or(0, |number| pattern(at, number))
            };
            range.map(byte).collect()
        };
        for range in [
            0..LEN,
            12_345..LEN - 777,
            (1 << 20) - 1..(1 << 20) + 1,
            (1 << 20) + 131_071..(1 << 20) + 262_145,
            0..262_144,
            LEN - 100_000..LEN,
        ] {
            let (bytes, count) = wire.read(0, range.start, range.end - range.start);
            assert!(bytes == expected(range.clone()), "{range:?}");
            let (whole, one) = wire.read(DF, range.start, range.end - range.start);
            assert!(whole == bytes && one == 1, "{range:?}");
            assert!(range != (0..LEN) || count > 3, "{count} chunks");
        }
    });
}

#[test]
fn a_status_is_that_of_the_context_that_was_asked_for() {
    converse(|path| {
        let mut wire = Wire::connect(path, "rw");
        let status = |wire: &mut Wire, flags, offset, len| {
            wire.send(flags, STATUS, 5, offset, len);
            let Reply::Chunk { flags: DONE, kind: 5, cookie: 5, payload } = wire.reply() else {
                panic!("something else was answered");
            };
            assert_eq!(word(&payload), wire.context);
            let words: Vec<u32> = payload[4..].chunks(4).map(word).collect();
            words.chunks(2).map(|pair| (pair[0], pair[1])).collect::<Vec<_>>()
        };
        let mib = 1 << 20;
        let data = [(mib, 3), (mib, 0), (2 * mib - 131_072, 3), (65_536, 0), (65_536, 3)];
        assert_eq!(status(&mut wire, 0, 0, LEN), data);
        assert_eq!(status(&mut wire, REQ_ONE, 0, LEN), data[..1]);
        assert_eq!(status(&mut wire, REQ_ONE, 1 << 20, 4096), [(4096, 0)]);
    });
}
