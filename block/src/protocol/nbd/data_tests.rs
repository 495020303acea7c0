//! What is sent and what comes back, on buffers that are not empty before.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;
use crate::clock::Clock;
use crate::executor::Executor;
use crate::nbd::proto::option::encode_reply;
use crate::nbd::{ExportOptions, Server, ServerOptions};
use crate::net::SocketAddress;
use crate::node::NodeOptions;
use crate::open::{BlockdevOptions, DriverOptions};
use crate::testing::{SimDisk, SimOptions};

const LEN: u64 = 1 << 20;

/// A buffer in which every byte is set.
fn full(len: usize) -> IoBuf {
    IoBuf::from_vec(&vec![0xee; len])
}

async fn connect(graph: &BlockGraph, address: SocketAddress) -> BlockNode {
    let options = NbdOptions::new(address, Some("disk".to_owned()));
    let options = BlockdevOptions::new(DriverOptions::Nbd(options));
    let discard = Some(crate::open::DiscardMode::Unmap);
    graph.open(&BlockdevOptions { discard, ..options }).await.unwrap()
}

/// Runs `test` on a client of a server of ours over a simulated disk.
fn with_disk(test: impl AsyncFnOnce(&SimDisk, &BlockNode)) {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let folder = tempfile::tempdir().unwrap();
    let address = SocketAddress::unix(folder.path().join("socket").to_str().unwrap());
    executor.block_on(async {
        let disk = SimDisk::new(&executor, SimOptions::new(LEN, 3));
        graph.add(Some("disk"), disk.clone(), NodeOptions::default()).await.unwrap();
        let server = Server::bind(&graph, ServerOptions::new(address.clone())).await.unwrap();
        server.open();
        let options = ExportOptions { writable: true, ..ExportOptions::new("export", "disk") };
        server.add(options).await.unwrap();
        test(&disk, &connect(&graph, address).await).await;
        server.stop().await;
    });
}

#[test]
fn a_durable_write_is_durable_behind_the_server() {
    with_disk(async |disk, node| {
        node.write(0, full(512), WriteFlags::FUA).await.unwrap();
        node.write(4096, full(512), WriteFlags::NONE).await.unwrap();
        assert_eq!(disk.durable()[..512], [0xee; 512]);
        assert_eq!(disk.durable()[4096..4608], [0; 512], "nobody asked for this");
        let zeroes = WriteFlags { fua: true, may_unmap: true, ..WriteFlags::NONE };
        node.write_zeroes(0..512, zeroes).await.unwrap();
        assert_eq!(disk.durable()[..512], [0; 512]);
    });
}

#[test]
fn holes_are_zeroes_whatever_was_in_the_buffer() {
    with_disk(async |disk, node| {
        disk.fill(200_000, &[7; 100_000]);
        for (at, len) in [(0, 1 << 20), (5, 150_000), (190_000, 20_000)] {
            let into = full(len);
            node.read(at, into.clone()).await.unwrap();
            let start = usize::try_from(at).unwrap();
            assert!(into.to_vec() == disk.contents()[start..start + len], "{len} at {at}");
        }
    });
}

/// What a server says and can do.
#[derive(Clone, Copy)]
struct Manner {
    extended: bool,
    /// Flags of the export.
    flags: u16,
}

/// Has flags, is several connections' disk, and no more than that.
const PLAIN: u16 = 0x81;
const STRUCTURED: Manner = Manner { extended: false, flags: PLAIN };

/// Agrees on structured or extended replies and `base:allocation`, and goes on until the first
/// request: the stream, and what has come of it.
fn agree(listener: &UnixListener, manner: Manner) -> std::io::Result<(UnixStream, Vec<u8>)> {
    let (mut stream, _) = listener.accept()?;
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let mut answers = Vec::new();
    if manner.extended {
        encode_reply(11, 1, &[], &mut answers);
    } else {
        encode_reply(11, 1 << 31 | 1, b"no", &mut answers);
        encode_reply(8, 1, &[], &mut answers);
    }
    encode_reply(10, 4, b"\0\0\0\x07base:allocation", &mut answers);
    encode_reply(10, 1, &[], &mut answers);
    let facts = [&b"\0\0\0\0\0\0\0\x10\0\0"[..], &manner.flags.to_be_bytes()].concat();
    encode_reply(7, 3, &facts, &mut answers);
    encode_reply(7, 1, &[], &mut answers);
    stream.write_all(&answers)?;
    let (magic, len) = if manner.extended { (0x21e4_1c71_u32, 32) } else { (0x2560_9513, 28) };
    let mut seen = Vec::new();
    loop {
        let mut more = [0; 4096];
        let count = stream.read(&mut more)?;
        seen.extend_from_slice(&more[..count]);
        let found = seen.windows(4).position(|bytes| bytes == magic.to_be_bytes());
        if let Some(start) = found.filter(|start| seen.len() >= start + len) {
            return Ok((stream, seen.split_off(start)));
        }
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Answers the first request, of which it is told cookie and offset, with these bytes.
fn answer(
    listener: &UnixListener,
    manner: Manner,
    reply: impl FnOnce(&[u8], &[u8]) -> Vec<u8>,
) -> std::io::Result<UnixStream> {
    let (mut stream, request) = agree(listener, manner)?;
    stream.write_all(&reply(&request[8..16], &request[16..24]))?;
    Ok(stream)
}

/// Does all that is asked, which is no read: the flags and commands of the requests.
fn obey(listener: &UnixListener, manner: Manner) -> std::io::Result<Vec<(u16, u16)>> {
    let (mut stream, mut seen) = agree(listener, manner)?;
    let mut requests = Vec::new();
    loop {
        while seen.len() < 28 {
            let mut more = [0; 4096];
            let count = stream.read(&mut more)?;
            if count == 0 {
                return Ok(requests);
            }
            seen.extend_from_slice(&more[..count]);
        }
        let short = |at: usize| u16::from_be_bytes([seen[at], seen[at + 1]]);
        let (flags, command) = (short(4), short(6));
        let cookie = seen[8..16].to_vec();
        let payload = if command == 1 { usize::from(short(26)) } else { 0 };
        while seen.len() < 28 + payload {
            let mut more = [0; 4096];
            let count = stream.read(&mut more)?;
            seen.extend_from_slice(&more[..count]);
        }
        seen.drain(..28 + payload);
        requests.push((flags, command));
        if command == 2 {
            // Goodbyes are not answered.
            return Ok(requests);
        }
        stream.write_all(&[&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &cookie].concat())?;
    }
}

fn chunk(flags: u16, kind: u16, cookie: &[u8], payload: &[&[u8]]) -> Vec<u8> {
    let payload = payload.concat();
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&0x668e_33ef_u32.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()];
    [&head.concat(), cookie, &len, &payload].concat()
}

/// What `test` finds on a disk whose server answers its first request like that.
fn with_answer<T>(
    reply: impl FnOnce(&[u8], &[u8]) -> Vec<u8> + Send + 'static,
    test: impl AsyncFnOnce(&BlockNode) -> T,
) -> T {
    with_server(move |listener| answer(listener, STRUCTURED, reply), test).0
}

/// What `test` finds on a disk of that server, and what becomes of the server.
fn with_server<T, S: Send + 'static>(
    serve: impl FnOnce(&UnixListener) -> S + Send + 'static,
    test: impl AsyncFnOnce(&BlockNode) -> T,
) -> (T, S) {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = crate::thread::spawn("fake", move || serve(&listener)).unwrap();
    let found = executor.block_on(async {
        let mut options = NbdOptions::new(SocketAddress::unix(socket.to_str().unwrap()), None);
        options.export = Some("disk".to_owned());
        let mut all = BlockdevOptions::new(DriverOptions::Nbd(options));
        all.auto_read_only = Some(true);
        test(&graph.open(&all).await.unwrap()).await
    });
    // Its connection goes with the last of it.
    drop(graph);
    (found, server.join().unwrap())
}

/// The error of a read of 512 bytes from the start.
fn refused(reply: impl FnOnce(&[u8], &[u8]) -> Vec<u8> + Send + 'static) -> String {
    let read = async |node: &BlockNode| node.read(0, full(512)).await.unwrap_err().to_string();
    with_answer(reply, read)
}

#[test]
fn answers_that_break_the_protocol_are_errors() {
    const DONE: u16 = 1;
    let half = refused(|cookie, at| chunk(DONE, 1, cookie, &[at, &[1; 256]]));
    assert!(half.contains("less data came"), "{half}");
    let long = refused(|cookie, at| chunk(DONE, 1, cookie, &[at, &[1; 513]]));
    assert!(long.contains("data of what was not asked"), "{long}");
    let hole = refused(|cookie, at| chunk(DONE, 2, cookie, &[at, &513_u32.to_be_bytes()]));
    assert!(hole.contains("a hole where nothing was asked"), "{hole}");
    let empty = refused(|cookie, _| chunk(0, 0, cookie, &[]));
    assert!(empty.contains("an empty chunk is not the last"), "{empty}");
    let simple = refused(|cookie, _| {
        [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], cookie, &[1; 512]].concat()
    });
    assert!(simple.contains("a read is answered without structure"), "{simple}");
    let chatty = refused(|cookie, _| chunk(DONE, 1 << 15 | 1, cookie, &[&[0; 70_000]]));
    assert!(chatty.contains("a chunk is too long"), "{chatty}");
    let status = refused(|cookie, _| chunk(DONE, 5, cookie, &[&[0, 0, 0, 7], &[0; 8]]));
    assert!(status.contains("a status"), "{status}");
    let unknown = refused(|cookie, _| chunk(DONE, 77, cookie, &[]));
    assert!(unknown.contains("a chunk of an unknown kind"), "{unknown}");
    let strange = refused(|_, at| chunk(DONE, 1, &[9; 8], &[at, &[1; 512]]));
    assert!(strange.contains("a reply to what was not asked"), "{strange}");
}

#[test]
fn an_extended_reply_must_be_about_the_offset_of_its_request() {
    let manner = Manner { extended: true, flags: PLAIN };
    let read = |change: u8| {
        let reply = move |cookie: &[u8], at: &[u8]| {
            let mut about = at.to_vec();
            about[7] ^= change;
            let head = [&0x6e8a_278c_u32.to_be_bytes()[..], &[0, 1, 0, 1], cookie].concat();
            [&head[..], &about, &520_u64.to_be_bytes(), at, &[5; 512]].concat()
        };
        let read = async |node: &BlockNode| node.read(1024, full(512)).await;
        with_server(move |listener| answer(listener, manner, reply), read).0
    };
    read(0).unwrap();
    let error = read(1).unwrap_err().to_string();
    assert!(error.contains("a reply is about another offset"), "{error}");
}

/// Whoever cannot make one write durable can still be asked to make everything durable after it.
#[test]
fn a_durable_write_is_followed_by_a_flush_where_there_is_no_fua() {
    const FLUSH: u16 = 1 << 2;
    const FUA: u16 = 1 << 3;
    const ZEROES: u16 = 1 << 6;
    let asked = |flags: u16| {
        let manner = Manner { extended: false, flags: PLAIN | flags };
        let test = async |node: &BlockNode| {
            node.write(0, full(512), WriteFlags::NONE).await.unwrap();
            node.write(0, full(512), WriteFlags::FUA).await.unwrap();
            node.write_zeroes(0..512, WriteFlags::FUA).await.unwrap();
        };
        with_server(move |listener| obey(listener, manner), test).1.unwrap()
    };
    // The zeroes may not be a hole.
    let with_fua = [(0, 1), (1, 1), (1 | 2, 6)];
    assert_eq!(asked(FLUSH | FUA | ZEROES)[..3], with_fua);
    let without = [(0, 1), (0, 1), (0, 3), (2, 6), (0, 3)];
    assert_eq!(asked(FLUSH | ZEROES)[..5], without);
}

#[test]
fn only_what_is_said_to_be_zero_is_taken_for_zero() {
    let status = |context: u8, flags: u8| {
        let map = async |node: &BlockNode| node.map(0..4096).await;
        let bytes = [0, 0, 0, context, 0, 0, 0x10, 0, 0, 0, 0, flags];
        with_answer(move |cookie, _| chunk(1, 5, cookie, &[&bytes]), map)
    };
    for (flags, kind) in
        [(0, ExtentKind::Data), (1, ExtentKind::Data), (2, ExtentKind::Zero), (3, ExtentKind::Zero)]
    {
        assert_eq!(status(7, flags).unwrap(), Extent { kind, len: 4096 }, "{flags}");
    }
    let other = status(6, 0).unwrap_err().to_string();
    assert!(other.contains("a status that was not asked for"), "{other}");
}

#[test]
fn zeroes_keep_their_space_unless_it_may_be_given_back() {
    with_disk(async |disk, node| {
        disk.fill(0, &[7; 1 << 19]);
        node.write_zeroes(0..1 << 18, WriteFlags::NONE).await.unwrap();
        assert_eq!(disk.data_bytes(), 1 << 19);
        node.write_zeroes(1 << 18..1 << 19, WriteFlags::UNMAP).await.unwrap();
        // The piece at the seam of two steps stays.
        let left = disk.data_bytes();
        assert!(left == 1 << 18 || left == (1 << 18) + 4096, "{left}");
    });
}
