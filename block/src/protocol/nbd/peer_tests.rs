//! Our client with the servers of others, our server with their clients.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::clock::Clock;
use crate::executor::Executor;
use crate::io_thread::{IoThread, IoThreadOptions};
use crate::nbd::{ExportOptions, Server, ServerOptions};
use crate::net::{SocketAddress, TlsCreds, TlsCredsOptions, TlsEndpoint};
use crate::open::{BlockdevOptions, DriverOptions};
use crate::testing::{CONFORMANCE_LEN, conformance, have_tool, tool};

const SMALL: usize = 256 << 10;

/// A program that runs until the end of the test.
struct Peer(Child);

impl Peer {
    fn start(program: &str, arguments: &[&str]) -> Peer {
        let child = Command::new(program).args(arguments).stdout(Stdio::null()).spawn();
        Peer(child.unwrap())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

pub(super) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A folder with a disk of that length full of pseudo-random data, and a name for a socket.
pub(super) fn folder(len: usize) -> (tempfile::TempDir, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let (disk, socket) = (text(&folder.path().join("disk")), text(&folder.path().join("socket")));
    let mut random = crate::testing::Rng::new(1);
    let bytes: Vec<u8> = (0..len / 8).flat_map(|_| random.bits().to_le_bytes()).collect();
    std::fs::write(&disk, bytes).unwrap();
    (folder, disk, socket)
}

/// Runs `test` on what the server at `socket` exports under that name.
fn with_client(options: NbdOptions, test: impl AsyncFnOnce(&Executor, BlockNode)) {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let options = NbdOptions { open_timeout: 10, ..options };
    executor.block_on(async {
        let options = BlockdevOptions::new(DriverOptions::Nbd(options));
        let node = graph.open(&options).await.unwrap();
        test(&executor, node).await;
    });
}

pub(super) fn at(socket: &str, export: &str) -> NbdOptions {
    let export = Some(export.to_owned()).filter(|name| !name.is_empty());
    NbdOptions::new(SocketAddress::unix(socket), export)
}

#[test]
fn qemu_nbd_serves_us() {
    if !have_tool("qemu-nbd") {
        return;
    }
    let (_folder, disk, socket) = folder(SMALL);
    let peer = Peer::start("qemu-nbd", &["-t", "-f", "raw", "-k", &socket, "-x", "d", &disk]);
    with_client(at(&socket, "d"), async |executor, node| conformance(executor, &node, 3).await);
    drop(peer);
}

#[test]
fn qemu_storage_daemon_serves_us() {
    if !have_tool("qemu-storage-daemon") {
        return;
    }
    let (_folder, disk, socket) = folder(SMALL);
    let file = format!("driver=file,node-name=f,filename={disk}");
    let server = format!("addr.type=unix,addr.path={socket}");
    let export = "type=nbd,id=e,node-name=f,name=d,writable=on";
    let arguments = ["--blockdev", &file, "--nbd-server", &server, "--export", export];
    let peer = Peer::start("qemu-storage-daemon", &arguments);
    let options = NbdOptions { x_connections: Some(3), ..at(&socket, "d") };
    with_client(options, async |executor, node| conformance(executor, &node, 4).await);
    drop(peer);
}

#[test]
fn the_last_sector_of_an_export_may_be_cut_off() {
    if !have_tool("nbdkit") {
        return;
    }
    let (_folder, _disk, socket) = folder(8);
    let peer = Peer::start("nbdkit", &["-f", "-U", &socket, "memory", "1000"]);
    with_client(at(&socket, ""), async |_executor, node| {
        assert_eq!(node.len(), 1024);
        node.write(0, IoBuf::from_vec(&[7; 1000]), WriteFlags::NONE).await.unwrap();
        let all = IoBuf::from_vec(&[0xee; 1024]);
        node.read(0, all.clone()).await.unwrap();
        assert_eq!(all.to_vec(), [&[7; 1000][..], &[0; 24]].concat());
        let tail = IoBuf::from_vec(&[0xee; 10]);
        node.read(1010, tail.clone()).await.unwrap();
        assert!(tail.is_zero());
        let found = node.map(0..1024).await.unwrap();
        assert_eq!(found, Extent { kind: ExtentKind::Data, len: 1000 });
        let found = node.map(1000..1024).await.unwrap();
        assert_eq!(found, Extent { kind: ExtentKind::Zero, len: 24 });
        // Nothing but zeroes can be behind the end.
        let mut bytes = [[8; 512], [0; 512]].concat();
        node.write(0, IoBuf::from_vec(&bytes), WriteFlags::NONE).await.unwrap();
        node.write(1000, IoBuf::alloc(24), WriteFlags::NONE).await.unwrap();
        bytes[1023] = 1;
        let error = node.write(0, IoBuf::from_vec(&bytes), WriteFlags::NONE).await.unwrap_err();
        assert!(error.kind() == ErrorKind::NoSpace, "{error}");
        node.write_zeroes(0..1024, WriteFlags::UNMAP).await.unwrap();
        node.discard(512..1024).await.unwrap();
        node.read(0, all.clone()).await.unwrap();
        assert!(all.is_zero());
    });
    drop(peer);
}

/// Every way in which nbdkit can be less than the best server.
#[test]
fn nbdkit_serves_us() {
    if !have_tool("nbdkit") {
        return;
    }
    let len = CONFORMANCE_LEN.to_string();
    let small = ["blocksize-minimum=4096", "blocksize-maximum=64k", "blocksize-error-policy=error"];
    let cases: [(&str, Vec<&str>); 6] = [
        ("memory", vec![]),
        ("--no-sr", vec![]),
        ("--mask-handshake=0", vec![]),
        ("--filter=blocksize-policy", small.to_vec()),
        ("--filter=nozero", vec![]),
        ("--filter=noextents", vec![]),
    ];
    for (flag, options) in cases {
        let (_folder, _disk, socket) = folder(8);
        let mut arguments = vec!["-f", "-U", &socket];
        if flag != "memory" {
            arguments.push(flag);
        }
        arguments.extend(["memory", &len]);
        arguments.extend(options);
        let peer = Peer::start("nbdkit", &arguments);
        with_client(at(&socket, ""), async |executor, node| {
            conformance(executor, &node, 5).await;
        });
        drop(peer);
    }
}

#[test]
fn errors_of_a_server_come_through_with_their_kind() {
    if !have_tool("nbdkit") {
        return;
    }
    let (_folder, _disk, socket) = folder(8);
    let arguments = ["-f", "-U", &socket, "--filter=error", "memory", "1M", "error-pwrite=ENOSPC"];
    let rate = [&arguments[..], &["error-pwrite-rate=100%"]].concat();
    let peer = Peer::start("nbdkit", &rate);
    with_client(at(&socket, ""), async |_executor, node| {
        let error = node.write(0, IoBuf::alloc(512), WriteFlags::NONE).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        node.read(0, IoBuf::alloc(512)).await.unwrap();
    });
    drop(peer);
}

/// The server is killed under load and comes back; nobody above notices.
#[test]
fn a_killed_server_is_reconnected_to() {
    if !have_tool("nbdkit") {
        return;
    }
    let (_folder, disk, socket) = folder(1 << 20);
    let serve = || Peer::start("nbdkit", &["-f", "-U", &socket, "file", &disk]);
    let mut peer = Some(serve());
    let options = NbdOptions { reconnect_delay: 30, x_connections: Some(2), ..at(&socket, "") };
    with_client(options, async |executor, node| {
        for round in 0..4_u8 {
            let writers: Vec<_> = (0..64_u64)
                .map(|place| {
                    let node = node.clone();
                    executor.spawn(async move {
                        let data = IoBuf::from_vec(&[round + 1; 4096]);
                        node.write(place * 4096, data, WriteFlags::NONE).await
                    })
                })
                .collect();
            executor.yield_now().await;
            drop(peer.take());
            // Not there if the server had not come as far as that.
            std::fs::remove_file(&socket).ok();
            peer = Some(serve());
            for writer in writers {
                writer.await.unwrap();
            }
        }
    });
    let bytes = std::fs::read(&disk).unwrap();
    assert!(bytes[..64 * 4096].iter().all(|byte| *byte == 4));
}

/// Our server over a file, in a thread of its own; `test` gets the name of the export.
pub(super) fn with_server(
    disk: &str,
    address: SocketAddress,
    tls: Option<&str>,
    test: impl FnOnce(String),
) {
    let thread = IoThread::spawn("server", IoThreadOptions::default()).unwrap();
    let handle = thread.handle();
    let (disk, tls) = (disk.to_owned(), tls.map(str::to_owned));
    let started = handle.call_blocking(async move |graph| -> Result<SocketAddress> {
        let mut options = BlockdevOptions::raw_file(disk);
        options.node_name = Some("disk".to_owned());
        options.discard = Some(crate::open::DiscardMode::Unmap);
        graph.open(&options).await?;
        let mut options = ServerOptions::new(address);
        if let Some(dir) = tls {
            let endpoint = TlsEndpoint::Server;
            let creds = TlsCredsOptions { dir, endpoint, verify_peer: true };
            options.tls = Some(Rc::new(TlsCreds::load(graph.executor(), &creds).await?));
        }
        let server = Server::bind(&graph, options).await?;
        server.open();
        let export = ExportOptions {
            writable: true,
            allocation_depth: true,
            description: Some("a disk".to_owned()),
            ..ExportOptions::new("export", "disk")
        };
        server.add(export).await?;
        Ok(server.address().clone())
    });
    let address = started.unwrap().unwrap();
    test(NbdOptions::new(address, Some("disk".to_owned())).filename());
    thread.stop().unwrap();
}

#[test]
fn we_serve_nbdinfo_and_nbdcopy() {
    if !have_tool("nbdinfo") || !have_tool("nbdcopy") {
        return;
    }
    let (folder, disk, socket) = folder(3 << 20);
    with_server(&disk, SocketAddress::unix(socket), None, |name| {
        let info = tool("nbdinfo", &[&name]);
        for expected in [
            "export-size: 3145728",
            "can_multi_conn: true",
            "can_fast_zero: true",
            "base:allocation",
            "qemu:allocation-depth",
            "description: a disk",
        ] {
            assert!(info.contains(expected), "{expected} is missing in {info}");
        }
        assert!(tool("nbdinfo", &["--list", &name]).contains("export=\"disk\""));
        let copy = text(&folder.path().join("copy"));
        tool("nbdcopy", &[&name, &copy]);
        assert!(std::fs::read(&copy).unwrap() == std::fs::read(&disk).unwrap());
        let zeroes = text(&folder.path().join("zeroes"));
        std::fs::write(&zeroes, vec![0; 3 << 20]).unwrap();
        tool("nbdcopy", &["--connections=4", "--requests=64", &zeroes, &name]);
        assert!(std::fs::read(&disk).unwrap().iter().all(|byte| *byte == 0));
        assert!(tool("nbdinfo", &["--map", &name]).contains("hole,zero"));
    });
}

#[test]
fn we_serve_qemu() {
    if !have_tool("qemu-io") || !have_tool("qemu-img") {
        return;
    }
    let (_folder, disk, socket) = folder(8 << 20);
    with_server(&disk, SocketAddress::unix(socket), None, |name| {
        let commands = [
            "write -P 7 1M 64k",
            "read -P 7 1M 64k",
            "write -z 2M 1M",
            "read -P 0 2M 1M",
            "write -z -u 3M 1M",
            "discard 4M 1M",
            "aio_write -P 9 100k 300k",
            "aio_flush",
            "read -P 9 100k 300k",
            "write -f -P 5 0 512",
            "flush",
            "read -P 5 0 512",
        ];
        let arguments: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
        let output = tool("qemu-io", &[&["-f", "raw"][..], &arguments, &[&name]].concat());
        assert!(!output.contains("rror") && !output.contains("failed"), "{output}");
        tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &name, &disk]);
    });
}

#[test]
fn we_serve_over_tcp() {
    if !have_tool("nbdcopy") {
        return;
    }
    let (folder, disk, _socket) = folder(5 << 20);
    with_server(&disk, SocketAddress::tcp("127.0.0.1", 0), None, |name| {
        let copy = text(&folder.path().join("copy"));
        tool("nbdcopy", &[&name, &copy]);
        assert!(std::fs::read(&copy).unwrap() == std::fs::read(&disk).unwrap());
    });
}

/// An authority and what it signed, for both sides, in the layout that QEMU has.
pub(super) fn certificates(folder: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let authority = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "authority");
    let signed = params.self_signed(&authority).unwrap();
    std::fs::write(folder.join("ca-cert.pem"), signed.pem()).unwrap();
    let issuer = Issuer::from_params(&params, &authority);
    for side in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join(format!("{side}-cert.pem")), cert.pem()).unwrap();
        std::fs::write(folder.join(format!("{side}-key.pem")), key.serialize_pem()).unwrap();
    }
}

pub(super) fn with_tls_client(
    dir: &str,
    options: NbdOptions,
    test: impl AsyncFnOnce(&Executor, BlockNode),
) {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(async {
        let endpoint = TlsEndpoint::Client;
        let creds = TlsCredsOptions { dir: dir.to_owned(), endpoint, verify_peer: true };
        let creds = TlsCreds::load(&executor, &creds).await.unwrap();
        creds.register(&graph, "tls0").unwrap();
        let options = NbdOptions {
            tls_creds: Some("tls0".to_owned()),
            tls_hostname: Some("localhost".to_owned()),
            open_timeout: 10,
            ..options
        };
        let options = BlockdevOptions::new(DriverOptions::Nbd(options));
        test(&executor, graph.open(&options).await.unwrap()).await;
    });
}

#[test]
fn tls_between_us() {
    let (folder, disk, socket) = folder(SMALL);
    certificates(folder.path());
    let dir = text(folder.path());
    with_server(&disk, SocketAddress::unix(&socket), Some(&dir), |_name| {
        with_tls_client(&dir, at(&socket, "disk"), async |executor, node| {
            conformance(executor, &node, 6).await;
        });
        // Without TLS nothing is told.
        let executor = Executor::new(Clock::real()).unwrap();
        let graph = BlockGraph::new(executor.clone());
        let options = BlockdevOptions::new(DriverOptions::Nbd(at(&socket, "disk")));
        let error = executor.block_on(graph.open(&options)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("wants TLS"), "{error}");
    });
}

/// What a client hears that shows what is in `dir` and expects a server of that name.
fn tls_refusal(dir: &Path, options: NbdOptions, name: Option<&str>) -> Error {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(async {
        let creds =
            TlsCredsOptions { dir: text(dir), endpoint: TlsEndpoint::Client, verify_peer: true };
        TlsCreds::load(&executor, &creds).await.unwrap().register(&graph, "tls0").unwrap();
        let options = NbdOptions {
            tls_creds: Some("tls0".to_owned()),
            tls_hostname: name.map(str::to_owned),
            // Waiting and trying again cannot help, so there is an answer at once.
            open_timeout: 1000,
            ..options
        };
        graph.open(&BlockdevOptions::new(DriverOptions::Nbd(options))).await.unwrap_err()
    })
}

#[test]
fn who_is_refused_by_tls_is_told_why() {
    let (ours, disk, socket) = folder(SMALL);
    let [theirs, nothing, mixed] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    certificates(ours.path());
    certificates(theirs.path());
    let copy = |file: &str, from: &tempfile::TempDir, to: &tempfile::TempDir| {
        std::fs::copy(from.path().join(file), to.path().join(file)).unwrap();
    };
    copy("ca-cert.pem", &ours, &nothing);
    copy("ca-cert.pem", &ours, &mixed);
    copy("client-cert.pem", &theirs, &mixed);
    copy("client-key.pem", &theirs, &mixed);
    let dir = text(ours.path());
    with_server(&disk, SocketAddress::unix(&socket), Some(&dir), |_name| {
        let cases = [
            (&theirs, Some("localhost"), "TLS handshake failed: invalid peer certificate"),
            (&nothing, Some("localhost"), "TLS handshake failed: received fatal alert: Cert"),
            (&mixed, Some("localhost"), "TLS handshake failed: received fatal alert: "),
            (&ours, Some("example.org"), "not valid for name \"example.org\""),
            (&ours, None, "TLS over a local socket needs 'tls-hostname'"),
        ];
        for (dir, name, expected) in cases {
            let error = tls_refusal(dir.path(), at(&socket, "disk"), name);
            assert!(error.to_string().contains(expected), "{error}");
            let kinds = [ErrorKind::PermissionDenied, ErrorKind::InvalidArgument];
            assert!(kinds.contains(&error.kind()), "{error:?}");
        }
    });
}

#[test]
fn tls_with_others() {
    let (folder, disk, socket) = folder(SMALL);
    certificates(folder.path());
    let dir = text(folder.path());
    if have_tool("nbdkit") {
        let certificates = format!("--tls-certificates={dir}");
        let arguments = ["-f", "-U", &socket, "--tls=require", &certificates, "file", &disk];
        let peer = Peer::start("nbdkit", &arguments);
        with_tls_client(&dir, at(&socket, ""), async |executor, node| {
            conformance(executor, &node, 7).await;
        });
        drop(peer);
    }
    if have_tool("qemu-img") {
        with_server(&disk, SocketAddress::tcp("127.0.0.1", 0), Some(&dir), |name| {
            let port = name.split([':', '/']).nth(4).unwrap();
            let creds = format!("tls-creds-x509,id=t,dir={dir},endpoint=client");
            let image = format!("driver=nbd,host=127.0.0.1,port={port},export=disk,tls-creds=t");
            tool(
                "qemu-img",
                &[
                    "compare",
                    "--object",
                    &creds,
                    "--image-opts",
                    &image,
                    &format!("driver=raw,file.driver=file,file.filename={disk},file.locking=off"),
                ],
            );
        });
    }
}
