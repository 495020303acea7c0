//! Our client with our server, and with misbehaving ones, on one executor.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;
use crate::backend::BackendKind;
use crate::bitmap::DirtyBitmap;
use crate::clock::Clock;
use crate::executor::Executor;
use crate::nbd::{Export, ExportOptions, Server, ServerOptions};
use crate::net::SocketAddress;
use crate::node::{AttachedBitmap, NodeOptions};
use crate::open::{BlockdevOptions, DriverOptions};
use crate::testing::{CONFORMANCE_LEN, Rng, SimDisk, SimOptions, conformance};

struct Rig {
    executor: Executor,
    graph: BlockGraph,
    folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        let executor = Executor::new(Clock::real()).unwrap();
        let graph = BlockGraph::new(executor.clone());
        Rig { executor, graph, folder: tempfile::tempdir().unwrap() }
    }

    fn address(&self) -> SocketAddress {
        SocketAddress::unix(self.folder.path().join("socket").to_str().unwrap())
    }

    async fn disk(&self, len: u64) -> SimDisk {
        let disk = SimDisk::new(&self.executor, SimOptions::new(len, 7));
        self.graph.add(Some("disk"), disk.clone(), NodeOptions::default()).await.unwrap();
        disk
    }

    async fn serve(&self) -> Server {
        let server = Server::bind(&self.graph, ServerOptions::new(self.address())).await.unwrap();
        server.open();
        server
    }

    async fn export(&self, server: &Server) -> Rc<Export> {
        let options = ExportOptions { writable: true, ..ExportOptions::new("export", "disk") };
        server.add(options).await.unwrap()
    }

    fn options(&self) -> NbdOptions {
        NbdOptions::new(self.address(), Some("disk".to_owned()))
    }

    async fn connect(&self, options: NbdOptions) -> Result<BlockNode> {
        let mut all = BlockdevOptions::new(DriverOptions::Nbd(options));
        all.node_name = Some("client".to_owned());
        self.graph.open(&all).await
    }

    fn run(&self, test: impl AsyncFnOnce(&Rig)) {
        self.executor.block_on(test(self));
    }
}

#[test]
fn it_is_a_disk() {
    Rig::new().run(async |rig| {
        rig.disk(CONFORMANCE_LEN + 1536).await;
        let server = rig.serve().await;
        rig.export(&server).await;
        let node = rig.connect(rig.options()).await.unwrap();
        conformance(&rig.executor, &node, 1).await;
    });
}

#[test]
fn several_connections_are_one_disk() {
    Rig::new().run(async |rig| {
        rig.disk(CONFORMANCE_LEN).await;
        let server = rig.serve().await;
        let export = rig.export(&server).await;
        let options = NbdOptions { x_connections: Some(4), ..rig.options() };
        let node = rig.connect(options).await.unwrap();
        assert_eq!(export.client_count(), 4);
        conformance(&rig.executor, &node, 2).await;
    });
}

#[test]
fn long_requests_are_cut_to_what_the_server_takes() {
    Rig::new().run(async |rig| {
        rig.disk(80 << 20).await;
        let server = rig.serve().await;
        rig.export(&server).await;
        let node = rig.connect(rig.options()).await.unwrap();
        let buf = IoBuf::alloc(70 << 20);
        buf.slice(0..5).copy_from(b"begin");
        buf.slice((70 << 20) - 3..70 << 20).copy_from(b"end");
        node.write(3, buf.clone(), WriteFlags::NONE).await.unwrap();
        let back = IoBuf::alloc(70 << 20);
        node.read(3, back.clone()).await.unwrap();
        assert!(back.to_vec() == buf.to_vec());
    });
}

/// The protocol tells a client of the size when it connects, and never again.
#[test]
fn a_disk_that_grows_is_seen_with_the_next_connection() {
    Rig::new().run(async |rig| {
        let path = rig.folder.path().join("file");
        std::fs::write(&path, [1; 4096]).unwrap();
        let mut disk = BlockdevOptions::raw_file(path.to_str().unwrap());
        disk.node_name = Some("disk".to_owned());
        let disk = rig.graph.open(&disk).await.unwrap();
        let server = rig.serve().await;
        rig.export(&server).await;
        let old = rig.connect(rig.options()).await.unwrap();
        disk.resize(1 << 20).await.unwrap();
        let mut again = BlockdevOptions::new(DriverOptions::Nbd(rig.options()));
        again.node_name = Some("again".to_owned());
        let new = rig.graph.open(&again).await.unwrap();
        assert_eq!(new.len(), 1 << 20);
        new.write(8192, IoBuf::from_vec(b"new"), WriteFlags::NONE).await.unwrap();
        assert_eq!(old.len(), 4096);
    });
}

#[test]
fn an_export_that_goes_disconnects_its_clients_and_lets_its_node_go() {
    Rig::new().run(async |rig| {
        rig.disk(1 << 20).await;
        let server = rig.serve().await;
        let export = rig.export(&server).await;
        assert_eq!(rig.graph.remove("disk").await.unwrap_err().kind(), ErrorKind::Busy);
        let node = rig.connect(rig.options()).await.unwrap();
        assert_eq!(export.client_count(), 1);
        server.remove(&export).await;
        drop(export);
        rig.graph.remove("disk").await.unwrap();
        let error = node.read(0, IoBuf::alloc(512)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disconnected);
        server.stop().await;
        assert!(!rig.folder.path().join("socket").exists());
    });
}

#[test]
fn a_server_that_comes_back_gets_the_requests_again() {
    Rig::new().run(async |rig| {
        rig.disk(1 << 20).await;
        let server = rig.serve().await;
        rig.export(&server).await;
        let options = NbdOptions { reconnect_delay: 30, ..rig.options() };
        let node = rig.connect(options).await.unwrap();
        server.stop().await;
        let write = rig.executor.spawn({
            let node = node.clone();
            async move { node.write(512, IoBuf::from_vec(b"again"), WriteFlags::FUA).await }
        });
        rig.executor.sleep(Duration::from_millis(120)).await;
        assert!(!write.is_finished());
        let server = rig.serve().await;
        rig.export(&server).await;
        write.await.unwrap();
        let back = IoBuf::alloc(5);
        node.read(512, back.clone()).await.unwrap();
        assert_eq!(back.to_vec(), b"again");
    });
}

#[test]
fn a_server_that_stays_away_is_waited_for_no_longer_than_that() {
    Rig::new().run(async |rig| {
        rig.disk(1 << 20).await;
        let server = rig.serve().await;
        rig.export(&server).await;
        let options = NbdOptions { reconnect_delay: 1, ..rig.options() };
        let node = rig.connect(options).await.unwrap();
        server.stop().await;
        let started = rig.executor.clock().now();
        let error = node.read(0, IoBuf::alloc(512)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disconnected);
        let waited = Duration::from_nanos(rig.executor.clock().now() - started);
        assert!(
            waited > Duration::from_millis(800) && waited < Duration::from_secs(5),
            "{waited:?}"
        );
        // From then on requests fail at once, until the server is there again.
        assert!(node.read(0, IoBuf::alloc(512)).await.is_err());
        let server = rig.serve().await;
        rig.export(&server).await;
        rig.executor.sleep(Duration::from_secs(3)).await;
        node.read(0, IoBuf::alloc(512)).await.unwrap();
    });
}

/// A server that greets and then says nothing more.
fn mute(rig: &Rig) -> std::thread::JoinHandle<Option<UnixStream>> {
    let listener = UnixListener::bind(rig.folder.path().join("socket")).unwrap();
    crate::thread::spawn("mute", move || {
        let (mut stream, _) = listener.accept().ok()?;
        stream.write_all(b"NBDMAGICIHAVEOPT\0\0").ok()?;
        let mut asked = [0; 24];
        stream.read_exact(&mut asked).ok()?;
        let description = [&(1_u64 << 20).to_be_bytes()[..], &[0, 1], &[0; 124]].concat();
        stream.write_all(&description).ok()?;
        Some(stream)
    })
    .unwrap()
}

#[test]
fn a_server_that_hangs_can_be_abandoned() {
    Rig::new().run(async |rig| {
        let server = mute(rig);
        let options = NbdOptions { reconnect_delay: 1000, ..rig.options() };
        let node = rig.connect(options).await.unwrap();
        assert_eq!(abandonable(&rig.graph), ["client"]);
        let reading = rig.executor.spawn({
            let node = node.clone();
            async move { node.read(0, IoBuf::alloc(512)).await }
        });
        rig.executor.sleep(Duration::from_millis(20)).await;
        assert!(!reading.is_finished());
        assert!(abandon(&rig.graph, "client"));
        assert!(!abandon(&rig.graph, "disk"));
        let error = reading.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disconnected);
        assert!(node.read(0, IoBuf::alloc(512)).await.is_err());
        drop(server.join().unwrap());
    });
}

#[test]
fn a_bitmap_is_seen_through_the_server() {
    Rig::new().run(async |rig| {
        rig.disk(1 << 20).await;
        let disk = rig.graph.node("disk").unwrap();
        let bits = DirtyBitmap::new(1 << 20, 65536).unwrap();
        disk.attach_bitmap(AttachedBitmap::new(Some("b0".to_owned()), bits));
        let server = rig.serve().await;
        let options = ExportOptions {
            writable: true,
            bitmaps: vec!["b0".to_owned()],
            ..ExportOptions::new("export", "disk")
        };
        server.add(options).await.unwrap();
        let context = Some("qemu:dirty-bitmap:b0".to_owned());
        let options = NbdOptions { x_dirty_bitmap: context, ..rig.options() };
        let node = rig.connect(options).await.unwrap();
        node.write(70_000, IoBuf::from_vec(b"x"), WriteFlags::NONE).await.unwrap();
        let driver = node.driver::<NbdDriver>().unwrap();
        let mut seen = Vec::new();
        let mut at = 0;
        while at < 1 << 20 {
            let status = driver.chosen_status(at..1 << 20).await.unwrap().unwrap();
            seen.push((status.hole, status.zero, status.len));
            at += status.len;
        }
        let rest = (1 << 20) - 131_072;
        assert_eq!(seen, [(false, false, 65536), (true, false, 65536), (false, false, rest)]);
        // Who wants to know what there is to copy is not led astray.
        let extent = node.map(0..1 << 20).await.unwrap();
        assert_eq!((extent.kind, extent.len), (ExtentKind::Data, 1 << 20));
        let missing =
            NbdOptions { x_dirty_bitmap: Some("qemu:dirty-bitmap:b1".to_owned()), ..rig.options() };
        let mut all = BlockdevOptions::new(DriverOptions::Nbd(missing));
        all.node_name = Some("other".to_owned());
        let error = rig.graph.open(&all).await.unwrap_err();
        assert!(error.to_string().contains("requested x-dirty-bitmap"), "{error}");
    });
}

/// What a migration's destination does: the disk is filled over NBD, then the guest takes it.
#[test]
fn a_guest_resumes_only_when_nobody_fills_its_disk_any_more() {
    Rig::new().run(async |rig| {
        let disk = SimDisk::new(&rig.executor, SimOptions::new(1 << 20, 7));
        let inactive = NodeOptions { active: false, ..NodeOptions::default() };
        let disk = rig.graph.add(Some("disk"), disk, inactive).await.unwrap();
        let perms = EdgePerms::READ_WRITE;
        let device = rig.graph.add_backend(BackendKind::Device, "d0", &disk, perms).unwrap();
        let server = rig.serve().await;
        let export = rig.export(&server).await;
        let node = rig.connect(rig.options()).await.unwrap();
        let data = || IoBuf::from_vec(b"filled");
        node.write(0, data(), WriteFlags::NONE).await.unwrap();
        let error = rig.graph.activate_all(None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionConflict);
        assert!(error.to_string().contains("export 'export'"), "{error}");
        assert!(device.write(0, data(), WriteFlags::NONE).await.is_err());
        node.write(0, data(), WriteFlags::NONE).await.unwrap();
        server.remove(&export).await;
        drop(export);
        rig.graph.activate_all(None).await.unwrap();
        device.write(0, data(), WriteFlags::NONE).await.unwrap();
        let options = ExportOptions { writable: true, ..ExportOptions::new("export", "disk") };
        let error = server.add(options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionConflict);
    });
}

#[test]
fn a_read_only_export_takes_no_writes() {
    Rig::new().run(async |rig| {
        rig.disk(1 << 20).await;
        let server = rig.serve().await;
        server.add(ExportOptions::new("export", "disk")).await.unwrap();
        let error = rig.connect(rig.options()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnly);
        let mut all = BlockdevOptions::new(DriverOptions::Nbd(rig.options()));
        all.auto_read_only = Some(true);
        let node = rig.graph.open(&all).await.unwrap();
        assert!(node.is_read_only());
        node.read(0, IoBuf::alloc(512)).await.unwrap();
    });
}

#[test]
fn an_export_that_is_not_there_is_named() {
    Rig::new().run(async |rig| {
        let server = rig.serve().await;
        let error = rig.connect(rig.options()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("export 'disk' not present"), "{error}");
        server.stop().await;
        let error = rig.connect(rig.options()).await.unwrap_err();
        assert!(error.to_string().contains("Failed to connect to"), "{error}");
    });
}

/// Clients that send what looks like the protocol for a while.
#[test]
fn the_server_survives_whatever_clients_send() {
    Rig::new().run(async |rig| {
        rig.disk(1 << 20).await;
        let server = rig.serve().await;
        rig.export(&server).await;
        let path = rig.folder.path().join("socket");
        let attack = crate::thread::spawn("attack", move || {
            let mut random = Rng::new(0x6e62_6401);
            for _ in 0..300 {
                let mut stream = UnixStream::connect(&path).unwrap();
                let bytes = nonsense(&mut random);
                // The server hangs up on most of it.
                if stream.write_all(&bytes).is_ok() {
                    stream.shutdown(std::net::Shutdown::Write).unwrap();
                    let mut answer = Vec::new();
                    drop(stream.take(64 << 20).read_to_end(&mut answer));
                }
            }
        })
        .unwrap();
        while !attack.is_finished() {
            rig.executor.sleep(Duration::from_millis(5)).await;
        }
        attack.join().unwrap();
        let node = rig.connect(rig.options()).await.unwrap();
        node.read(0, IoBuf::alloc(512)).await.unwrap();
    });
}

#[test]
fn who_does_not_read_replies_is_not_read_from() {
    Rig::new().run(async |rig| {
        rig.disk(1 << 20).await;
        let server = rig.serve().await;
        let export = rig.export(&server).await;
        let path = rig.folder.path().join("socket");
        let flood = crate::thread::spawn("flood", move || {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
            stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04disk").unwrap();
            let mut flush = [0; 28];
            flush[..8].copy_from_slice(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 3]);
            let many = flush.repeat(10_000);
            (0..200).position(|_| stream.write_all(&many).is_err())
        })
        .unwrap();
        while !flood.is_finished() {
            rig.executor.sleep(Duration::from_millis(5)).await;
        }
        // 56 MB would have been sent, and their replies kept.
        let sent = flood.join().unwrap().expect("the server takes everything");
        assert!(sent < 40, "{sent} times 10000 requests were taken");
        server.remove(&export).await;
    });
}

fn nonsense(random: &mut Rng) -> Vec<u8> {
    let byte = |random: &mut Rng| u8::try_from(random.below(256)).unwrap();
    let mut bytes = vec![0, 0, 0, if random.one_in(20) { byte(random) } else { 3 }];
    if random.one_in(2) {
        bytes.extend_from_slice(b"IHAVEOPT\0\0\0\x08\0\0\0\0");
    }
    bytes.extend_from_slice(b"IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x04disk\0\0");
    for _ in 0..random.below(40) {
        bytes.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        bytes.extend([0, if random.one_in(2) { 0 } else { byte(random) }]);
        bytes.extend([0, u8::try_from(random.below(9)).unwrap()]);
        bytes.extend_from_slice(&random.bits().to_be_bytes());
        let at = if random.one_in(5) { random.bits() } else { random.below(1 << 20) };
        bytes.extend_from_slice(&at.to_be_bytes());
        let len = if random.one_in(9) { random.bits() >> 32 } else { random.below(9000) };
        bytes.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
        if random.one_in(3) {
            bytes.extend((0..random.below(9000)).map(|_| 0x5a));
        }
    }
    for _ in 0..random.below(3) {
        let place = usize::try_from(random.below(bytes.len() as u64)).unwrap();
        bytes[place] = byte(random);
    }
    bytes
}

/// Servers that answer what looks like the protocol for a while.
#[test]
fn the_client_survives_whatever_servers_send() {
    Rig::new().run(async |rig| {
        let listener = UnixListener::bind(rig.folder.path().join("socket")).unwrap();
        let rounds = 150;
        let attack = crate::thread::spawn("attack", move || {
            let mut random = Rng::new(0x6e62_6402);
            for _ in 0..rounds {
                let (mut stream, _) = listener.accept().unwrap();
                let answer = false_server(&mut stream, &mut random);
                tracing::trace!("{answer:?}");
            }
        })
        .unwrap();
        for round in 0..rounds {
            let mut all = BlockdevOptions::new(DriverOptions::Nbd(rig.options()));
            all.node_name = Some(format!("client{round}"));
            let Ok(node) = rig.graph.open(&all).await else { continue };
            // Each may fail; none may hang, for the server hangs up in the end.
            drop(node.read(0, IoBuf::alloc(8192)).await);
            drop(node.map(0..1 << 16).await);
            abandon(&rig.graph, node.name());
            rig.graph.remove(node.name()).await.ok();
        }
        assert!(attack.is_finished() || attack.join().is_ok());
    });
}

fn false_server(stream: &mut UnixStream, random: &mut Rng) -> std::io::Result<()> {
    let damage = |bytes: &mut Vec<u8>, random: &mut Rng| {
        if random.one_in(4) {
            let place = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            bytes[place] ^= 1 << random.below(8);
        }
    };
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    stream.read_exact(&mut [0; 20])?;
    let reply = |option: u32, kind: u32, data: &[u8]| {
        let mut out = Vec::new();
        crate::nbd::proto::option::encode_reply(option, kind, data, &mut out);
        out
    };
    let mut answers = reply(11, 1 << 31 | 1, b"no");
    answers.extend(reply(8, 1, &[]));
    answers.extend(reply(10, 4, b"\0\0\0\x01base:allocation"));
    answers.extend(reply(10, 1, &[]));
    answers.extend(reply(7, 3, b"\0\0\0\0\0\0\0\x10\0\0\x01\xff"));
    answers.extend(reply(7, 1, &[]));
    damage(&mut answers, random);
    stream.write_all(&answers)?;
    let mut seen = vec![0; 4096];
    for _ in 0..4 {
        let count = stream.read(&mut seen)?;
        let Some(cookie) = seen[..count].len().checked_sub(20).map(|at| &seen[at..at + 8]) else {
            continue;
        };
        let kind = [0, 1, 2, 5, 6, 9][usize::try_from(random.below(6)).unwrap()];
        let payload = vec![0; usize::try_from(random.below(9000)).unwrap()];
        let mut chunk = 0x668e_33ef_u32.to_be_bytes().to_vec();
        chunk.extend([0, u8::try_from(random.below(2)).unwrap(), 0, kind]);
        chunk.extend_from_slice(cookie);
        chunk.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        chunk.extend_from_slice(&payload);
        damage(&mut chunk, random);
        stream.write_all(&chunk)?;
    }
    Ok(())
}
