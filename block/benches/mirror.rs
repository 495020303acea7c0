//! How fast a mirror copies a file, beside `cp` and QEMU's mirror (where it is installed) on the same files.
//!
//! On a busy machine look at the processor time.
//!
//! `cargo bench -p ferry-block --bench mirror [-- DIRECTORY [GIB]]`; the default is 2 GiB in `/dev/shm`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_block::job::JobRegistry;
use ferry_block::job::mirror::{self, MirrorOptions, SyncMode};
use ferry_block::{
    BackendKind, BlockGraph, BlockdevOptions, Clock, EdgePerms, IoThread, IoThreadOptions,
};

fn main() -> Result<()> {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let directory = arguments.first().map_or("/dev/shm", String::as_str);
    let gib: u64 = arguments.get(1).map_or(Ok(2), |text| text.parse())?;
    let folder = tempfile::Builder::new().prefix("ferry-bench").tempdir_in(directory)?;
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    run(Command::new("dd")
        .args(["if=/dev/urandom", "bs=1M", "conv=fsync", "status=none"])
        .args([format!("of={}", from.display()), format!("count={}", gib << 10)]))?;
    println!("mirror of {gib} GiB in {directory}: MB/s and (processor seconds)");
    for round in 0..3 {
        let dd = timed(&to, gib, || {
            run(Command::new("dd")
                .args(["bs=1M", "conv=fsync,notrunc", "status=none"])
                .args([format!("if={}", from.display()), format!("of={}", to.display())]))
        })?;
        let ours = timed(&to, gib, || ferry(&from, &to))?;
        run(Command::new("cmp").args([&from, &to]))?;
        let qemu = timed(&to, gib, || qemu(folder.path(), &from, &to));
        let qemu = qemu.unwrap_or_else(|error| format!("none: {error}"));
        println!("{round}: dd {dd}  ferry {ours}  QEMU {qemu}");
    }
    Ok(())
}

/// What `copy` achieves with a fresh, sparse target, and the processor time that it takes.
fn timed(to: &Path, gib: u64, copy: impl FnOnce() -> Result<()>) -> Result<String> {
    if to.exists() {
        std::fs::remove_file(to)?;
    }
    std::fs::File::create(to)?.set_len(gib << 30)?;
    let (clock, used) = (Clock::real(), processor_seconds()?);
    let start = clock.now();
    copy()?;
    let seconds = (clock.now() - start) as f64 / 1e9;
    let rate = (gib << 30) as f64 / 1e6 / seconds;
    Ok(format!("{rate:.0} ({:.2})", processor_seconds()? - used))
}

/// Processor time of this process and of the children it has waited for: proc(5), stat fields 14 to 17.
fn processor_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').context("stat of this process")?.1.split_whitespace();
    let ticks: f64 = fields.skip(11).take(4).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}

fn run(command: &mut Command) -> Result<()> {
    ensure!(command.status()?.success(), "{command:?} failed");
    Ok(())
}

fn ferry(from: &Path, to: &Path) -> Result<()> {
    let thread = IoThread::spawn("mirror", IoThreadOptions::default())?;
    let paths = [from, to].map(|path| path.display().to_string());
    thread.handle().call_blocking(move |graph| copy(graph, paths))??;
    thread.stop()?;
    Ok(())
}

async fn copy(graph: BlockGraph, paths: [String; 2]) -> Result<()> {
    for (name, path) in ["from", "to"].into_iter().zip(paths) {
        let options =
            BlockdevOptions { node_name: Some(name.into()), ..BlockdevOptions::raw_file(path) };
        graph.open(&options).await?;
    }
    let node = graph.node("from").context("the source")?;
    let device = graph.add_backend(BackendKind::Device, "d0", &node, EdgePerms::READ_WRITE)?;
    let id = mirror::start(&graph, MirrorOptions::new("d0", "to", SyncMode::Full)).await?;
    let job = JobRegistry::of(&graph).find(&id)?;
    while !job.info().ready {
        graph.executor().sleep(Duration::from_millis(1)).await;
    }
    job.complete()?;
    job.concluded().await;
    ensure!(device.node().name() == "to", "no pivot: {:?}", job.info());
    Ok(())
}

/// The same with QEMU, without a guest.
fn qemu(folder: &Path, from: &Path, to: &Path) -> Result<()> {
    let socket = folder.join("qmp");
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-machine", "none", "-nodefaults", "-display", "none", "-S"])
        .args(["-object", "iothread,id=t"])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
        .args(["-blockdev", &blockdev("from", from)])
        .args(["-blockdev", &blockdev("to", to)])
        .stdout(Stdio::null())
        .spawn()?;
    let outcome = talk(&socket);
    child.kill()?;
    child.wait()?;
    std::fs::remove_file(&socket)?;
    outcome
}

fn blockdev(name: &str, path: &Path) -> String {
    let file = format!("file.driver=file,file.aio=io_uring,file.filename={}", path.display());
    format!("driver=raw,node-name={name},{file}")
}

fn talk(socket: &Path) -> Result<()> {
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mirror = r#"{"execute":"blockdev-mirror","arguments":{"job-id":"m","device":"from","target":"to","sync":"full"}}"#;
    stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
    stream.write_all(mirror.as_bytes())?;
    wait(&mut lines, "BLOCK_JOB_READY")?;
    stream.write_all(b"{\"execute\":\"job-complete\",\"arguments\":{\"id\":\"m\"}}\n")?;
    wait(&mut lines, "BLOCK_JOB_COMPLETED")
}

fn wait(lines: &mut impl Iterator<Item = std::io::Result<String>>, event: &str) -> Result<()> {
    for line in lines {
        let line = line?;
        ensure!(!line.contains("\"error\""), "QEMU: {line}");
        if line.contains(event) {
            return Ok(());
        }
    }
    anyhow::bail!("QEMU hung up")
}
