//! NBD servers side by side: ours, qemu-storage-daemon and nbdkit serve one raw file, each in a process of its
//! own, to the same client in the same run. The client keeps so many requests under way on one connection; shown
//! are requests a second, their bandwidth, and the processor time that the server spent on each.
//!
//! `cargo bench -p ferry-block --bench nbd [-- DIRECTORY [SECONDS]]`; the default directory is `/dev/shm`.
//! With `serve SOCKET FILE` it is our server alone.

#![expect(clippy::print_stdout, reason = "prints a table")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferry_block::nbd::{ExportOptions, Server, ServerOptions};
use ferry_block::net::SocketAddress;
use ferry_block::{BlockGraph, BlockdevOptions, Clock, Executor};

const FILE_LEN: u64 = 1 << 30;

#[derive(Clone, Copy)]
struct Case {
    block: u32,
    depth: usize,
    write: bool,
    sequential: bool,
}

fn main() -> Result<()> {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let [verb, socket, file] = &arguments[..]
        && verb == "serve"
    {
        return serve(socket, file);
    }
    let directory = arguments.first().map_or("/dev/shm", String::as_str);
    let seconds = arguments.get(1).map_or(Ok(2.0), |text| text.parse())?;
    let folder = tempfile::Builder::new().prefix("ferry-bench").tempdir_in(directory)?;
    let file = folder.path().join("disk");
    fill(&file)?;
    let servers = ["ferry", "qemu-storage-daemon", "nbdkit"];
    println!("{:<28}{:<22}{:>12}{:>12}{:>14}", "", "server", "req/s", "MiB/s", "CPU us/req");
    for case in [
        Case { block: 4096, depth: 1, write: false, sequential: false },
        Case { block: 4096, depth: 1, write: true, sequential: false },
        Case { block: 4096, depth: 32, write: false, sequential: false },
        Case { block: 4096, depth: 32, write: true, sequential: false },
        Case { block: 1 << 20, depth: 8, write: false, sequential: true },
        Case { block: 1 << 20, depth: 8, write: true, sequential: true },
    ] {
        for name in servers {
            let what = format!(
                "{} KiB {} depth {}",
                case.block >> 10,
                if case.write { "write" } else { "read" },
                case.depth
            );
            match run(name, folder.path(), &file, case, seconds) {
                Ok((rate, cpu)) => {
                    let bandwidth = rate * f64::from(case.block) / f64::from(1 << 20);
                    println!("{what:<28}{name:<22}{rate:>12.0}{bandwidth:>12.0}{cpu:>14.2}");
                }
                Err(error) => println!("{what:<28}{name:<22}  {error:#}"),
            }
        }
    }
    Ok(())
}

fn fill(path: &Path) -> Result<()> {
    let status = Command::new("dd")
        .args(["if=/dev/urandom", "bs=1M", "status=none"])
        .arg(format!("of={}", path.display()))
        .arg(format!("count={}", FILE_LEN >> 20))
        .status()?;
    ensure!(status.success(), "cannot fill {}", path.display());
    Ok(())
}

/// Our server, until it is killed.
fn serve(socket: &str, file: &str) -> Result<()> {
    let executor = Executor::new(Clock::real())?;
    // As `ferry storage` does: a socket is not found by polling.
    executor.set_poll_max_ns(0);
    let graph = BlockGraph::new(executor.clone());
    let mut options = BlockdevOptions::raw_file(file);
    options.node_name = Some("disk".to_owned());
    executor.block_on(graph.open(&options))?;
    let address = SocketAddress::unix(socket);
    let server = executor.block_on(Server::bind(&graph, ServerOptions::new(address)))?;
    server.open();
    let export = ExportOptions {
        name: Some(String::new()),
        writable: true,
        ..ExportOptions::new("export", "disk")
    };
    executor.block_on(server.add(export))?;
    executor.run();
    Ok(())
}

/// A server process, killed at the end.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            println!("cannot end a server: {error}");
        }
    }
}

fn start(name: &str, socket: &Path, file: &Path) -> Result<Peer> {
    let (socket, file) = (socket.display(), file.display());
    let mut command = match name {
        "ferry" => {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("serve").arg(socket.to_string()).arg(file.to_string());
            command
        }
        "nbdkit" => {
            let mut command = Command::new("nbdkit");
            command.args(["-f", "-U", &socket.to_string(), "file", &file.to_string()]);
            command
        }
        _ => {
            let mut command = Command::new(name);
            command
                .arg("--blockdev")
                .arg(format!("driver=file,node-name=f,filename={file}"))
                .args(["--blockdev", "driver=raw,node-name=d,file=f", "--nbd-server"])
                .arg(format!("addr.type=unix,addr.path={socket}"))
                .args(["--export", "type=nbd,id=e,node-name=d,name=,writable=on"]);
            command
        }
    };
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Ok(Peer(child.with_context(|| format!("{name} is not here"))?))
}

fn run(name: &str, folder: &Path, file: &Path, case: Case, seconds: f64) -> Result<(f64, f64)> {
    let socket: PathBuf = folder.join(format!("{name}.sock"));
    if socket.exists() {
        std::fs::remove_file(&socket)?;
    }
    let peer = start(name, &socket, file)?;
    let mut client = Client::connect(&socket)?;
    client.load(case, 0.2)?;
    let before = cpu_time(peer.0.id())?;
    let (count, elapsed) = client.load(case, seconds)?;
    let cpu = cpu_time(peer.0.id())? - before;
    Ok((count / elapsed, cpu * 1e6 / count))
}

/// Processor time of a process so far, seconds; of all its threads, those too that have ended.
fn cpu_time(pid: u32) -> Result<f64> {
    let mut ns = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        ns += text.split(' ').next().context("schedstat")?.parse::<f64>()?;
    }
    Ok(ns / 1e9)
}

/// The simplest client that keeps many requests under way: replies are read as they come, and what they make
/// room for is asked for in one write.
struct Client {
    stream: UnixStream,
    clock: Clock,
}

impl Client {
    fn connect(socket: &Path) -> Result<Client> {
        let clock = Clock::real();
        let mut stream = None;
        for _ in 0..500 {
            match UnixStream::connect(socket) {
                Ok(connected) => {
                    stream = Some(connected);
                    break;
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        let mut stream = stream.context("the server does not listen")?;
        let mut hello = [0; 18];
        stream.read_exact(&mut hello)?;
        // Fixed newstyle without zeroes, then the export without a name.
        stream.write_all(&3_u32.to_be_bytes())?;
        stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0")?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        let size = u64::from_be_bytes(export[..8].try_into()?);
        ensure!(size == FILE_LEN, "the export has {size} bytes");
        Ok(Client { stream, clock })
    }

    /// Requests made and the seconds they took.
    fn load(&mut self, case: Case, seconds: f64) -> Result<(f64, f64)> {
        let block = case.block as usize;
        let payload = vec![0x5a; block];
        let (mut random, mut next) = (0x9e37_79b9_7f4a_7c15_u64, 0_u64);
        let mut out = Vec::new();
        let mut request = |out: &mut Vec<u8>| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            next += 1;
            let place = if case.sequential { next } else { random };
            let at = place % (FILE_LEN / u64::from(case.block)) * u64::from(case.block);
            out.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
            out.extend_from_slice(&u32::from(case.write).to_be_bytes());
            out.extend_from_slice(&next.to_be_bytes());
            out.extend_from_slice(&at.to_be_bytes());
            out.extend_from_slice(&case.block.to_be_bytes());
            if case.write {
                out.extend_from_slice(&payload);
            }
        };
        let reply = if case.write { 16 } else { 16 + block };
        let mut input = vec![0; reply.max(256 << 10)];
        let (mut have, mut in_flight, mut done) = (0_usize, 0_usize, 0_u64);
        let started = self.clock.now();
        let mut elapsed = 0.0;
        while in_flight > 0 || elapsed < seconds {
            while in_flight < case.depth && elapsed < seconds {
                request(&mut out);
                in_flight += 1;
            }
            self.stream.write_all(&out)?;
            out.clear();
            have += match self.stream.read(&mut input[have..])? {
                0 => bail!("the server hung up"),
                count => count,
            };
            let mut at = 0;
            while have - at >= reply {
                ensure!(input[at..at + 8] == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "a bad reply");
                at += reply;
                in_flight -= 1;
                done += 1;
            }
            input.copy_within(at..have, 0);
            have -= at;
            elapsed = (self.clock.now() - started) as f64 / 1e9;
        }
        Ok((done as f64, elapsed))
    }
}
