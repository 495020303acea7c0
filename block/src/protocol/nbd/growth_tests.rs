//! A disk that grows on its server, while its client goes on.

use std::path::Path;
use std::process::{Child, Stdio};

use super::*;
use crate::bitmap::DirtyBitmap;
use crate::clock::Clock;
use crate::executor::{Executor, Task};
use crate::nbd::{Export, ExportOptions, Server, ServerOptions};
use crate::net::SocketAddress;
use crate::node::{AttachedBitmap, NodeOptions};
use crate::open::{BlockdevOptions, BlockdevRef, DriverOptions};
use crate::testing::{Effect, Fault, SimDisk, SimOp, SimOptions, have_tool};

const OLD: u64 = 1 << 20;
const NEW: u64 = 3 << 20;

/// Server and client on one executor; the client's node is `raw` over the driver.
struct Rig {
    executor: Executor,
    graph: BlockGraph,
    folder: tempfile::TempDir,
    disk: SimDisk,
}

impl Rig {
    fn run(test: impl AsyncFnOnce(&Rig)) {
        let executor = Executor::new(Clock::real()).unwrap();
        let graph = BlockGraph::new(executor.clone());
        let options = SimOptions { resizable: true, ..SimOptions::new(OLD, 7) };
        let disk = SimDisk::new(&executor, options.instant());
        let rig = Rig { executor, graph, folder: tempfile::tempdir().unwrap(), disk };
        let executor = rig.executor.clone();
        executor.block_on(async {
            rig.graph.add(Some("disk"), rig.disk.clone(), NodeOptions::default()).await.unwrap();
            test(&rig).await;
        });
    }

    fn address(&self) -> SocketAddress {
        SocketAddress::unix(self.folder.path().join("socket").to_str().unwrap())
    }

    async fn serve(&self) -> (Server, Rc<Export>) {
        let server = Server::bind(&self.graph, ServerOptions::new(self.address())).await.unwrap();
        server.open();
        let options = ExportOptions { writable: true, ..ExportOptions::new("export", "disk") };
        let export = server.add(options).await.unwrap();
        (server, export)
    }

    async fn connect(&self, connections: u32) -> BlockNode {
        let options = NbdOptions {
            x_connections: Some(connections),
            reconnect_delay: 30,
            ..NbdOptions::new(self.address(), Some("disk".to_owned()))
        };
        open(&self.graph, options).await
    }

    async fn grow(&self, len: u64) {
        self.graph.node("disk").unwrap().resize(len).await.unwrap();
    }

    /// A write of ones to the first bytes that reaches the disk and stays there.
    async fn hanging_write(&self, node: &BlockNode) -> Task<Result<()>> {
        self.disk.inject(Fault::once(SimOp::Write, Effect::Hang));
        let before = self.disk.counts().writes.0;
        let hanging = write(&self.executor, node, 0, 1);
        while self.disk.counts().writes.0 == before {
            self.pause(1).await;
        }
        hanging
    }

    /// The disk grows, and the node follows, while such a write is under way.
    async fn grow_during_a_write(&self, node: &BlockNode, len: u64) -> Task<Result<()>> {
        self.grow(len).await;
        let hanging = self.hanging_write(node).await;
        resize(node, len).await.unwrap();
        hanging
    }

    fn flush(&self, node: &BlockNode) -> Task<Result<()>> {
        let node = node.clone();
        self.executor.spawn(async move { node.flush().await })
    }

    async fn pause(&self, milliseconds: u64) {
        self.executor.sleep(Duration::from_millis(milliseconds)).await;
    }

    async fn client_count(&self, export: &Export, count: usize) {
        while export.client_count() != count {
            self.pause(1).await;
        }
    }
}

async fn open(graph: &BlockGraph, options: NbdOptions) -> BlockNode {
    let options = NbdOptions { open_timeout: 10, ..options };
    let nbd = BlockdevOptions::new(DriverOptions::Nbd(options));
    graph.open(&BlockdevOptions::raw(BlockdevRef::nested(nbd))).await.unwrap()
}

async fn resize(node: &BlockNode, len: u64) -> Result<()> {
    node.look_again().await?;
    node.resize(len).await
}

fn write(executor: &Executor, node: &BlockNode, at: u64, byte: u8) -> Task<Result<()>> {
    let node = node.clone();
    executor.spawn(
        async move { node.write(at, IoBuf::from_vec(&[byte; 4096]), WriteFlags::NONE).await },
    )
}

async fn byte_at(node: &BlockNode, at: u64) -> u8 {
    let into = IoBuf::alloc(512);
    node.read(at, into.clone()).await.unwrap();
    into.to_vec()[0]
}

#[test]
fn the_new_part_is_there_and_what_was_under_way_comes_to_its_end() {
    Rig::run(async |rig| {
        for connections in [1, 4] {
            let old = rig.graph.node("disk").unwrap().len();
            let (server, export) = rig.serve().await;
            let node = rig.connect(connections).await;
            rig.client_count(&export, connections as usize).await;
            rig.grow(old + NEW).await;
            let hanging = rig.hanging_write(&node).await;
            resize(&node, old + NEW).await.unwrap();
            assert_eq!(node.len(), old + NEW);
            write(&rig.executor, &node, old + NEW - 4096, 2).await.unwrap();
            assert_eq!(byte_at(&node, old + NEW - 4096).await, 2);
            assert!(!hanging.is_finished());
            // The one that the request hangs in is kept for it, the others are gone.
            rig.client_count(&export, connections as usize + 1).await;
            let writes = rig.disk.counts().writes.0;
            rig.disk.heal();
            hanging.await.unwrap();
            assert_eq!(rig.disk.counts().writes.0, writes, "it was not sent again");
            rig.client_count(&export, connections as usize).await;
            assert_eq!(byte_at(&node, 0).await, 1);
            // Left alone it would come back to the next server.
            let name = node.name().to_owned();
            drop(node);
            rig.graph.remove(&name).await.unwrap();
            server.stop().await;
        }
    });
}

#[test]
fn a_connection_that_breaks_with_a_request_gives_it_to_the_new_ones() {
    Rig::run(async |rig| {
        let (server, _export) = rig.serve().await;
        let node = rig.connect(1).await;
        rig.grow(NEW).await;
        rig.disk.inject(Fault::once(SimOp::Write, Effect::Hang));
        let hanging = write(&rig.executor, &node, 0, 1);
        rig.executor.sleep(Duration::from_millis(20)).await;
        resize(&node, NEW).await.unwrap();
        let stopping = rig.executor.spawn(async move { server.stop().await });
        rig.executor.sleep(Duration::from_millis(20)).await;
        rig.disk.heal();
        stopping.await;
        let (_server, export) = rig.serve().await;
        hanging.await.unwrap();
        assert_eq!(byte_at(&node, 0).await, 1);
        assert_eq!(export.client_count(), 1);
    });
}

/// A flush over one connection need not cover what another one has acknowledged.
#[test]
fn what_old_connections_acknowledge_is_made_durable_over_them() {
    Rig::run(async |rig| {
        let (_server, export) = rig.serve().await;
        let node = rig.connect(1).await;
        let hanging = rig.grow_during_a_write(&node, NEW).await;
        let flushes = rig.disk.counts().flushes;
        let flushing = rig.flush(&node);
        rig.pause(50).await;
        assert!(!flushing.is_finished(), "the write may be acknowledged and not be flushed");
        rig.disk.heal();
        hanging.await.unwrap();
        flushing.await.unwrap();
        assert_eq!(rig.disk.counts().flushes, flushes + 2, "one over each");
        rig.client_count(&export, 1).await;
    });
}

#[test]
fn what_old_connections_could_not_make_durable_is_not_promised_later() {
    Rig::run(async |rig| {
        let (_server, export) = rig.serve().await;
        let node = rig.connect(1).await;
        let hanging = rig.grow_during_a_write(&node, NEW).await;
        rig.disk.heal();
        rig.disk.inject(Fault::once(SimOp::Flush, Effect::Fail(ErrorKind::NoSpace)));
        hanging.await.unwrap();
        rig.client_count(&export, 1).await;
        for _ in 0..2 {
            let error = node.flush().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoSpace);
            assert!(error.to_string().contains("over an earlier connection"), "{error}");
        }
        assert_eq!(byte_at(&node, 0).await, 1);
    });
}

#[test]
fn a_flush_waits_no_longer_than_the_connection_lasts() {
    Rig::run(async |rig| {
        let (server, _export) = rig.serve().await;
        let node = rig.connect(1).await;
        let hanging = rig.grow_during_a_write(&node, NEW).await;
        let flushing = rig.flush(&node);
        let stopping = rig.executor.spawn(async move { server.stop().await });
        rig.pause(20).await;
        rig.disk.heal();
        stopping.await;
        let (_server, export) = rig.serve().await;
        hanging.await.unwrap();
        flushing.await.unwrap();
        rig.client_count(&export, 1).await;
        let hanging = rig.grow_during_a_write(&node, NEW + OLD).await;
        let flushing = rig.flush(&node);
        rig.pause(20).await;
        assert!(!flushing.is_finished());
        assert!(abandonable(&rig.graph).iter().all(|name| abandon(&rig.graph, name)));
        assert_eq!(flushing.await.unwrap_err().kind(), ErrorKind::Disconnected);
        assert_eq!(hanging.await.unwrap_err().kind(), ErrorKind::Disconnected);
        rig.disk.heal();
    });
}

#[test]
fn only_the_length_that_the_server_says_will_do() {
    Rig::run(async |rig| {
        let (_server, export) = rig.serve().await;
        let node = rig.connect(2).await;
        let refused = async |len| {
            let error = resize(&node, len).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert_eq!(node.len(), OLD);
            error.to_string()
        };
        let text = refused(NEW).await;
        assert!(
            text.contains("has 1048576 bytes, says its server: it has to be resized"),
            "{text}"
        );
        let text = refused(4096).await;
        assert!(text.contains("cannot be shortened while it is in use"), "{text}");
        rig.client_count(&export, 2).await;
        rig.grow(NEW).await;
        let text = refused(2 << 20).await;
        assert!(text.contains("has 3145728 bytes, says its server"), "{text}");
        resize(&node, NEW).await.unwrap();
        resize(&node, NEW).await.unwrap();
        rig.grow(OLD).await;
        let error = resize(&node, OLD).await.unwrap_err();
        assert!(error.to_string().contains("it has 1048576 bytes, not 3145728"), "{error}");
        assert_eq!(node.len(), NEW);
        rig.client_count(&export, 2).await;
    });
}

/// A connection made anew must not change a node behind the back of those who go by its length.
#[test]
fn a_node_keeps_its_length_until_it_is_resized() {
    Rig::run(async |rig| {
        let (server, _export) = rig.serve().await;
        let node = rig.connect(1).await;
        let bits = AttachedBitmap::new(None, DirtyBitmap::new(OLD, 65536).unwrap());
        node.attach_bitmap(Rc::clone(&bits));
        rig.grow(NEW).await;
        server.stop().await;
        let (_server, _export) = rig.serve().await;
        assert_eq!(byte_at(&node, 0).await, 0);
        assert_eq!(node.len(), OLD);
        let beyond = write(&rig.executor, &node, OLD, 1).await.unwrap_err();
        assert_eq!(beyond.kind(), ErrorKind::OutOfRange);
        resize(&node, NEW).await.unwrap();
        bits.bits.borrow_mut().clear_all();
        write(&rig.executor, &node, NEW - 4096, 1).await.unwrap();
        assert!(bits.bits.borrow().is_dirty(NEW - 1));
    });
}

#[test]
fn a_server_that_is_away_when_it_is_asked_is_an_error_and_no_more() {
    Rig::run(async |rig| {
        let (server, _export) = rig.serve().await;
        let node = rig.connect(1).await;
        rig.grow(NEW).await;
        server.stop().await;
        assert!(resize(&node, NEW).await.is_err());
        let reading = rig.executor.spawn({
            let node = node.clone();
            async move { byte_at(&node, 0).await }
        });
        let (_server, export) = rig.serve().await;
        assert_eq!(reading.await, 0);
        resize(&node, NEW).await.unwrap();
        rig.client_count(&export, 1).await;
    });
}

/// A server of others, ended when it is dropped.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

fn start(program: &str, arguments: &[&str]) -> Peer {
    let mut command = std::process::Command::new(program);
    Peer(command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
}

fn make_file(path: &Path, len: u64) {
    let file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

/// nbdkit holds a connection to the size at its begin, and delays what is under way here.
fn grow_under_nbdkit(filters: &[&str], parameters: &[&str], seen_at_once: Option<u8>) {
    if !have_tool("nbdkit") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (disk, socket) = (folder.path().join("disk"), folder.path().join("socket"));
    let (path, socket) = (disk.to_str().unwrap(), socket.to_str().unwrap());
    make_file(&disk, OLD);
    let delay = ["--filter=delay", "file", path, "wdelay=300ms"];
    let peer = start("nbdkit", &[&["-f", "-U", socket][..], filters, &delay, parameters].concat());
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(async {
        let options = NbdOptions::new(SocketAddress::unix(socket), None);
        let node = open(&graph, NbdOptions { x_connections: Some(3), ..options }).await;
        let writers: Vec<_> =
            (0..32).map(|place| write(&executor, &node, place * 4096, 5)).collect();
        executor.sleep(Duration::from_millis(50)).await;
        make_file(&disk, NEW);
        resize(&node, NEW).await.unwrap();
        if let Some(byte) = seen_at_once {
            assert_eq!(byte_at(&node, 31 * 4096).await, byte);
        }
        write(&executor, &node, NEW - 4096, 6).await.unwrap();
        assert_eq!(byte_at(&node, NEW - 4096).await, 6);
        for writer in writers {
            writer.await.unwrap();
        }
    });
    drop(peer);
    let bytes = std::fs::read(&disk).unwrap();
    assert!(bytes[..32 * 4096].iter().all(|byte| *byte == 5));
    assert!(bytes.iter().rev().take(4096).all(|byte| *byte == 6));
}

#[test]
fn a_file_that_grows_under_nbdkit() {
    grow_under_nbdkit(&[], &[], None);
}

/// What one connection of such a server writes another one need not see.
#[test]
fn a_file_that_grows_under_a_server_for_one_connection_at_a_time() {
    grow_under_nbdkit(&["--filter=multi-conn"], &["multi-conn-mode=disable"], Some(5));
}

/// qemu-nbd holds all connections to the size when it began; it is started again.
#[test]
fn a_file_that_grows_under_qemu_nbd() {
    if !have_tool("qemu-nbd") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (disk, socket) = (folder.path().join("disk"), folder.path().join("socket"));
    let (path, socket) = (disk.to_str().unwrap(), socket.to_str().unwrap());
    make_file(&disk, OLD);
    let serve = || start("qemu-nbd", &["-t", "-e", "4", "-f", "raw", "-k", socket, path]);
    let mut peer = Some(serve());
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(async {
        let options = NbdOptions::new(SocketAddress::unix(socket), None);
        let node = open(&graph, NbdOptions { reconnect_delay: 30, ..options }).await;
        let refused = resize(&node, NEW).await.unwrap_err();
        assert!(refused.to_string().contains("says its server"), "{refused}");
        drop(peer.take());
        let writers: Vec<_> =
            (0..32).map(|place| write(&executor, &node, place * 4096, 5)).collect();
        make_file(&disk, NEW);
        peer = Some(serve());
        for writer in writers {
            writer.await.unwrap();
        }
        resize(&node, NEW).await.unwrap();
        write(&executor, &node, NEW - 4096, 6).await.unwrap();
        assert_eq!(byte_at(&node, NEW - 4096).await, 6);
    });
}
