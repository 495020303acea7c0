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
    graph.open(&BlockdevOptions::new(DriverOptions::Nbd(options))).await.unwrap()
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
        let server = Server::start(&graph, ServerOptions::new(address.clone())).await.unwrap();
        let options = ExportOptions { writable: true, ..ExportOptions::new("export", "disk") };
        server.add(options).await.unwrap();
        test(&disk, &connect(&graph, address).await).await;
        server.stop().await.unwrap();
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

/// Agrees on structured replies and answers the first read with half of what was asked for.
fn half_a_server(listener: &UnixListener) -> std::io::Result<UnixStream> {
    let (mut stream, _) = listener.accept()?;
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let mut answers = Vec::new();
    encode_reply(11, 1 << 31 | 1, b"no", &mut answers);
    encode_reply(8, 1, &[], &mut answers);
    encode_reply(10, 1, &[], &mut answers);
    encode_reply(7, 3, b"\0\0\0\0\0\0\0\x10\0\0\0\x81", &mut answers);
    encode_reply(7, 1, &[], &mut answers);
    stream.write_all(&answers)?;
    let mut seen = Vec::new();
    let request = loop {
        let mut more = [0; 4096];
        let count = stream.read(&mut more)?;
        seen.extend_from_slice(&more[..count]);
        let magic = 0x2560_9513_u32.to_be_bytes();
        let found = seen.windows(4).position(|bytes| bytes == magic);
        if let Some(start) = found.filter(|start| seen.len() >= start + 28) {
            break seen[start..start + 28].to_vec();
        }
    };
    let (cookie, offset) = (&request[8..16], &request[16..24]);
    let head = [&[0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1], cookie, &[0, 0, 1, 8]].concat();
    stream.write_all(&[&head[..], offset, &[1; 256]].concat())?;
    Ok(stream)
}

#[test]
fn less_data_than_was_asked_for_is_an_error() {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = crate::thread::spawn("half", move || half_a_server(&listener)).unwrap();
    executor.block_on(async {
        let mut options = NbdOptions::new(SocketAddress::unix(socket.to_str().unwrap()), None);
        options.export = Some("disk".to_owned());
        let mut all = BlockdevOptions::new(DriverOptions::Nbd(options));
        all.auto_read_only = Some(true);
        let node = graph.open(&all).await.unwrap();
        let error = node.read(0, full(512)).await.unwrap_err();
        assert!(error.to_string().contains("less data came"), "{error}");
    });
    drop(server.join().unwrap());
}
