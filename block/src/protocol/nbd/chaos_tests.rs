//! A network that cuts connections wherever it likes: what was acknowledged is there, and nothing else.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::clock::Clock;
use crate::executor::Executor;
use crate::nbd::{ExportOptions, Server, ServerOptions};
use crate::net::SocketAddress;
use crate::node::NodeOptions;
use crate::open::{BlockdevOptions, DriverOptions};
use crate::testing::{Rng, SimDisk, SimOptions};

/// Bytes of the part of the disk that one worker has for itself.
const PART: u64 = 256 << 10;
const WORKERS: u64 = 6;
const ROUNDS: u32 = 150;

/// Passes on what goes from one to the other, until so many bytes are left of what it may; then both are cut
/// off. What is under way then is lost.
fn pass_on(mut from: UnixStream, mut to: UnixStream, mut left: u64) {
    let mut buf = vec![0; 48 << 10];
    while let Ok(count @ 1..) = from.read(&mut buf) {
        let count = u64::try_from(count).unwrap_or(0).min(left);
        left -= count;
        let part = &buf[..usize::try_from(count).unwrap_or(0)];
        if to.write_all(part).is_err() || left == 0 {
            break;
        }
    }
    for stream in [from, to] {
        // One that the other direction has cut is cut already.
        stream.shutdown(Shutdown::Both).ok();
    }
}

/// A way to `server` that does not last; how often it was cut is counted.
fn network(folder: &Path, server: PathBuf, seed: u64) -> (PathBuf, Arc<AtomicU64>) {
    let (path, count) = (folder.join("network"), Arc::new(AtomicU64::new(0)));
    let (listener, counted) = (UnixListener::bind(&path).unwrap(), Arc::clone(&count));
    let accept = move || {
        let mut random = Rng::new(seed);
        // The thread ends with the process.
        while let Ok((client, _)) = listener.accept() {
            let Ok(server) = UnixStream::connect(&server) else { continue };
            counted.fetch_add(1, Ordering::Relaxed);
            let ways = [(&client, &server), (&server, &client)];
            for (from, to) in ways.map(|(from, to)| (from.try_clone(), to.try_clone())) {
                // Some do not survive the handshake.
                let left = if random.one_in(8) { 100 } else { 20_000 + random.below(3 << 20) };
                crate::thread::spawn("network", move || pass_on(from.unwrap(), to.unwrap(), left))
                    .unwrap();
            }
        }
    };
    crate::thread::spawn("network", accept).unwrap();
    (path, count)
}

/// Writes, zeroes and reads its part in turn, and knows what it must find there.
async fn work(node: BlockNode, base: u64, seed: u64) -> Vec<u8> {
    let mut random = Rng::new(seed);
    let mut model = vec![0; usize::try_from(PART).unwrap()];
    for round in 0..ROUNDS {
        let range = random.range(PART, 512, 64 << 10);
        let place = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let at = base + range.start;
        let fua = random.one_in(4);
        let flags = WriteFlags { fua, may_unmap: random.one_in(2), ..WriteFlags::NONE };
        match random.below(8) {
            0..4 => {
                let byte = u8::try_from(round % 255 + 1).unwrap();
                model[place.clone()].fill(byte);
                let flags = WriteFlags { may_unmap: false, ..flags };
                node.write(at, IoBuf::from_vec(&model[place]), flags).await.unwrap();
            }
            4 => {
                model[place].fill(0);
                node.write_zeroes(at..base + range.end, flags).await.unwrap();
            }
            5 => node.flush().await.unwrap(),
            _ => {
                let found = IoBuf::alloc(place.len());
                node.read(at, found.clone()).await.unwrap();
                assert!(found.to_vec() == model[place], "round {round} at {at}");
            }
        }
    }
    model
}

fn with_connections(connections: u32) {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server");
    let (network, cuts) = network(folder.path(), path.clone(), u64::from(connections));
    executor.block_on(async {
        let disk = SimDisk::new(&executor, SimOptions::new(PART * WORKERS, 7).instant());
        graph.add(Some("disk"), disk.clone(), NodeOptions::default()).await.unwrap();
        let address = SocketAddress::unix(path.to_str().unwrap());
        let server = Server::bind(&graph, ServerOptions::new(address)).await.unwrap();
        server.open();
        let options = ExportOptions { writable: true, ..ExportOptions::new("export", "disk") };
        server.add(options).await.unwrap();
        let options = NbdOptions {
            x_connections: Some(connections),
            reconnect_delay: 100,
            open_timeout: 100,
            ..NbdOptions::new(SocketAddress::unix(network.to_str().unwrap()), Some("disk".into()))
        };
        let node = graph.open(&BlockdevOptions::new(DriverOptions::Nbd(options))).await.unwrap();
        node.write_zeroes(0..PART * WORKERS, WriteFlags::NONE).await.unwrap();
        let worker = |number| work(node.clone(), number * PART, number);
        let workers: Vec<_> = (0..WORKERS).map(|it| executor.spawn(worker(it))).collect();
        let mut expected = Vec::new();
        for worker in workers {
            expected.extend(worker.await);
        }
        node.flush().await.unwrap();
        let below = graph.node("disk").unwrap();
        let found = IoBuf::alloc(expected.len());
        below.read(0, found.clone()).await.unwrap();
        assert!(found.to_vec() == expected);
        server.stop().await;
    });
    let cuts = cuts.load(Ordering::Relaxed);
    assert!(cuts > 5, "only {cuts} connections were needed");
}

#[test]
fn what_is_acknowledged_over_one_connection_at_a_time_is_there() {
    with_connections(1);
}

#[test]
fn what_is_acknowledged_over_several_connections_is_there() {
    with_connections(4);
}
