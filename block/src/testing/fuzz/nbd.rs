//! Both sides of NBD.

use std::cell::RefCell;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;
use crate::executor::Executor;
use crate::graph::BlockGraph;
use crate::nbd::proto::request::Request;
use crate::nbd::proto::{
    ALLOCATION_DEPTH, BASE_ALLOCATION, HeaderStyle, cmd, flag, handshake, info, opt, option, rep,
};
use crate::nbd::{ExportOptions, Server, ServerOptions};
use crate::net::SocketAddress;
use crate::node::NodeOptions;
use crate::open::{BlockdevOptions, DriverOptions};
use crate::protocol::nbd::NbdOptions;
use crate::testing::{SimDisk, SimOptions};

/// Bytes of the export.
const EXPORT: usize = 64 << 10;
/// Bytes that are kept of what the other side says.
const KEPT: usize = 1 << 20;
/// Most turns of a server.
const TURNS: usize = 32;
/// How long the other side must say nothing to have no more to say.
const QUIET: Duration = Duration::from_millis(1);
/// Bytes of a server's first words.
const HELLO: usize = 18;
const STYLES: [HeaderStyle; 3] =
    [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended];

thread_local! {
    /// One for all inputs, as a process has: a connection that outlives its input would show in the end.
    static EXECUTOR: Executor = Executor::new(Clock::real()).expect("an executor");
}

/// Says the bytes to a server; how many bytes it answers.
///
/// # Panics
/// There is a mistake in what is tested, or there is no room for a socket.
pub fn fuzz_nbd_server(data: &[u8]) -> usize {
    said_by_server(vec![data.to_vec()]).concat().len()
}

/// Says the bytes to the client driver; how many of its requests succeeded. Each turn of the server
/// begins with its length in two bytes, and waits until the client has said what it had to say.
///
/// # Panics
/// There is a mistake in what is tested, or there is no room for a socket.
pub fn fuzz_nbd_client(data: &[u8]) -> u32 {
    let executor = EXECUTOR.with(Executor::clone);
    let graph = BlockGraph::new(executor.clone());
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.socket()).expect("a new socket");
    listener.set_nonblocking(true).expect("sockets can be polled");
    let (turns, spawner) = (split(data), executor.clone());
    let server = executor.spawn(async move {
        spawner.readable(listener.as_raw_fd()).await?;
        let (stream, _) = listener.accept().map_err(crate::net::lost)?;
        // The client can connect only once.
        drop(listener);
        talk(&spawner, stream, turns).await;
        Ok::<(), crate::error::Error>(())
    });
    let options = NbdOptions::new(SocketAddress::unix(folder.socket()), Some("disk".into()));
    let passed = executor.block_on(async {
        let options = BlockdevOptions::new(DriverOptions::Nbd(options));
        match graph.open(&options).await {
            Ok(node) => super::use_disk(&graph, &node).await,
            Err(_) => 0,
        }
    });
    drop(server);
    passed
}

/// What clients say.
pub fn nbd_server_seeds() -> Vec<Vec<u8>> {
    let seeds = STYLES.iter().map(|style| conversation(*style).concat());
    seeds.chain([curious_client()]).collect()
}

/// What a server answers to that. The driver asks for more than the clients did: that is refused.
pub fn nbd_client_seeds() -> Vec<Vec<u8>> {
    let seed = |style: &HeaderStyle| {
        let mut turns = said_by_server(conversation(*style));
        let refused: &[u32] = match style {
            HeaderStyle::Simple => &[opt::EXTENDED_HEADERS, opt::STRUCTURED_REPLY],
            HeaderStyle::Structured => &[opt::EXTENDED_HEADERS],
            HeaderStyle::Extended => &[],
        };
        let mut refusals = Vec::new();
        for asked in refused {
            option::encode_reply(*asked, rep::ERR_UNSUP, &[], &mut refusals);
        }
        turns[0].splice(HELLO..HELLO, refusals);
        join(&turns)
    };
    STYLES.iter().map(seed).collect()
}

fn split(mut data: &[u8]) -> Vec<Vec<u8>> {
    let mut turns = Vec::new();
    while let Some((len, rest)) = data.split_first_chunk().filter(|_| turns.len() < TURNS) {
        let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
        turns.push(rest[..len].to_vec());
        data = &rest[len..];
    }
    turns
}

fn join(turns: &[Vec<u8>]) -> Vec<u8> {
    let mut data = Vec::new();
    for turn in turns {
        data.extend_from_slice(&u16::try_from(turn.len()).unwrap_or(u16::MAX).to_be_bytes());
        data.extend_from_slice(turn);
    }
    data
}

/// What a server answers to each turn of a client.
fn said_by_server(turns: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let executor = EXECUTOR.with(Executor::clone);
    let graph = BlockGraph::new(executor.clone());
    let folder = Folder::new();
    executor.block_on(async {
        let disk = SimDisk::new(&executor, SimOptions::new(EXPORT as u64, 1).instant());
        disk.fill(0, &[0xa5; EXPORT]);
        graph.add(Some("disk"), disk, NodeOptions::default()).await.expect("a new graph");
        let options = ServerOptions::new(SocketAddress::unix(folder.socket()));
        let server = Server::bind(&graph, options).await.expect("a new socket");
        server.open();
        let export = ExportOptions::new("export", "disk");
        let export = ExportOptions { writable: true, allocation_depth: true, ..export };
        server.add(export).await.expect("a new export");
        let stream = UnixStream::connect(folder.socket()).expect("a server that listens");
        let heard = talk(&executor, stream, turns).await;
        server.stop().await;
        heard
    })
}

/// The turns of a client that asks in the driver's order, its requests as `use_disk` makes them.
fn conversation(style: HeaderStyle) -> Vec<Vec<u8>> {
    let mut out = (handshake::C_FIXED_NEWSTYLE | handshake::C_NO_ZEROES).to_be_bytes().to_vec();
    let mut export = Vec::new();
    option::put_string("disk", &mut export);
    match style {
        HeaderStyle::Simple => {}
        HeaderStyle::Structured => option::encode(opt::STRUCTURED_REPLY, &[], &mut out),
        HeaderStyle::Extended => option::encode(opt::EXTENDED_HEADERS, &[], &mut out),
    }
    if style != HeaderStyle::Simple {
        let mut context = [&export[..], &1_u32.to_be_bytes()].concat();
        option::put_string(BASE_ALLOCATION, &mut context);
        option::encode(opt::SET_META_CONTEXT, &context, &mut out);
    }
    let go = [&export[..], &1_u16.to_be_bytes(), &info::BLOCK_SIZE.to_be_bytes()].concat();
    option::encode(opt::GO, &go, &mut out);
    let mut turns = vec![out];
    let commands = [cmd::READ, cmd::BLOCK_STATUS, cmd::WRITE, cmd::READ, cmd::BLOCK_STATUS];
    let commands = commands.into_iter().chain([cmd::WRITE_ZEROES, cmd::TRIM, cmd::FLUSH]);
    // Without metadata the driver does not ask for it.
    let commands =
        commands.filter(|command| style != HeaderStyle::Simple || *command != cmd::BLOCK_STATUS);
    for (number, command) in (0_u64..).zip(commands) {
        let len = if command == cmd::FLUSH { 0 } else { super::STEP as u64 };
        let has_payload = command == cmd::WRITE && style == HeaderStyle::Extended;
        let flags = if has_payload { flag::PAYLOAD_LEN } else { 0 };
        let offset = number / 3 * len;
        let request = Request { flags, command, cookie: number << 32, offset, len };
        let mut out = Vec::new();
        request.encode(style, &mut out);
        out.resize(out.len() + usize::try_from(request.payload_len(style)).unwrap_or(0), 0x5a);
        turns.push(out);
    }
    turns
}

/// A client that wants to know everything first, and then uses every flag that there is.
fn curious_client() -> Vec<u8> {
    let mut out = (handshake::C_FIXED_NEWSTYLE | handshake::C_NO_ZEROES).to_be_bytes().to_vec();
    let mut export = Vec::new();
    option::put_string("disk", &mut export);
    let infos = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
    let infos: Vec<u8> = infos.into_iter().flat_map(u16::to_be_bytes).collect();
    let about = [&export[..], &3_u16.to_be_bytes(), &infos].concat();
    let mut contexts = [&export[..], &3_u32.to_be_bytes()].concat();
    for query in [BASE_ALLOCATION, ALLOCATION_DEPTH, "qemu:"] {
        option::put_string(query, &mut contexts);
    }
    let all_contexts = [&export[..], &0_u32.to_be_bytes()].concat();
    option::encode(opt::LIST, &[], &mut out);
    option::encode(opt::STARTTLS, &[], &mut out);
    option::encode(opt::INFO, &about, &mut out);
    option::encode(opt::EXTENDED_HEADERS, &[], &mut out);
    option::encode(opt::LIST_META_CONTEXT, &all_contexts, &mut out);
    option::encode(opt::SET_META_CONTEXT, &contexts, &mut out);
    option::encode(opt::GO, &about, &mut out);
    let all = EXPORT as u64;
    for (flags, command, len) in [
        (flag::DF, cmd::READ, all),
        (flag::FUA | flag::PAYLOAD_LEN, cmd::WRITE, 512),
        (flag::REQ_ONE, cmd::BLOCK_STATUS, all),
        (flag::PAYLOAD_LEN, cmd::BLOCK_STATUS, 12),
        (flag::FUA | flag::FAST_ZERO | flag::NO_HOLE, cmd::WRITE_ZEROES, 4096),
        (flag::FUA, cmd::TRIM, 4096),
        (0, cmd::CACHE, all),
        (0, cmd::FLUSH, 0),
        (0, cmd::DISC, 0),
    ] {
        let request = Request { flags, command, cookie: 1, offset: 0, len };
        request.encode(HeaderStyle::Extended, &mut out);
        match command {
            cmd::WRITE => out.extend([0x5a; 512]),
            // The status of all of it, in the first context alone.
            cmd::BLOCK_STATUS if flags == flag::PAYLOAD_LEN => {
                out.extend([&all.to_be_bytes()[..], &0_u32.to_be_bytes()].concat());
            }
            _ => {}
        }
    }
    out
}

/// Says all turns, each when the other side has become quiet, then nothing more; what the other
/// side says to each of them until it hangs up.
async fn talk(executor: &Executor, stream: UnixStream, turns: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    stream.set_nonblocking(true).expect("sockets can be polled");
    let ear = stream.try_clone().expect("room for a descriptor");
    let heard = Rc::new(RefCell::new(Vec::new()));
    let listening = executor.spawn(listen(executor.clone(), ear, Rc::clone(&heard)));
    let mut answers = Vec::new();
    let last = turns.len().saturating_sub(1);
    for (number, turn) in turns.iter().enumerate() {
        if say(executor, &stream, turn).await.is_err() {
            break;
        }
        let mut before = usize::MAX;
        while number < last && heard.borrow().len() != before {
            before = heard.borrow().len();
            executor.sleep(QUIET).await;
        }
        if number < last {
            answers.push(heard.take());
        }
    }
    if let Err(error) = stream.shutdown(Shutdown::Write) {
        tracing::trace!("the other side was faster: {error}");
    }
    listening.await;
    answers.push(heard.take());
    answers
}

async fn say(executor: &Executor, stream: &UnixStream, mut rest: &[u8]) -> io::Result<()> {
    let mut stream = stream;
    while !rest.is_empty() {
        match stream.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let waited = executor.writable(stream.as_raw_fd()).await;
                waited.map_err(io::Error::other)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn listen(executor: Executor, stream: UnixStream, heard: Rc<RefCell<Vec<u8>>>) {
    let mut buf = vec![0; 64 << 10];
    loop {
        match (&stream).read(&mut buf) {
            Ok(0) => return,
            Ok(count) if heard.borrow().len() < KEPT => {
                heard.borrow_mut().extend_from_slice(&buf[..count]);
            }
            Ok(_enough) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if executor.readable(stream.as_raw_fd()).await.is_err() {
                    return;
                }
            }
            Err(_gone) => return,
        }
    }
}

/// A folder of one run, gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let name =
            format!("ferry-fuzz-{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("room for a folder");
        Folder(path)
    }

    fn socket(&self) -> String {
        self.0.join("socket").to_string_lossy().into_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("{}: {error}", self.0.display());
        }
    }
}
