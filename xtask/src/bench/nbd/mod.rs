//! Images over NBD, with no guest: the same requests by fio to `ferry storage`, to QEMU's storage daemon and to nbdkit;
//! and to a bare loop over a raw file as the limit.

mod bare;
mod batching;
mod cost;
mod server;

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use ferry_tests::{binary, command, image};
use serde_json::Value;

use super::table::{Better, Pair, Table};
use super::{Bench, median, warm};

use bare::Bare;
use server::{Image, Program, Server};

pub(super) const FILE_BYTES: u64 = 1 << 30;
/// So large that random writes hardly meet: each allocates.
const FRESH_BYTES: u64 = 64 << 30;
/// What a fresh image may grow by in a second, bytes.
const FRESH_RATE: u64 = 2 << 30;
const ROUNDS: usize = 3;

/// What is asked of a server.
#[derive(Clone, Copy)]
struct Load {
    rw: &'static str,
    bytes: u64,
    depth: u64,
    client: Client,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    Fio,
    /// A client that holds no server up.
    Batching,
}

/// What is asked for on tmpfs: the pattern, bytes of a request, requests under way.
const LOADS: [Load; 8] = [
    Load { rw: "randread", bytes: 4096, depth: 1, client: Client::Fio },
    Load { rw: "randread", bytes: 4096, depth: 32, client: Client::Fio },
    Load { rw: "randread", bytes: 4096, depth: 32, client: Client::Batching },
    Load { rw: "randwrite", bytes: 4096, depth: 1, client: Client::Fio },
    Load { rw: "randwrite", bytes: 4096, depth: 32, client: Client::Fio },
    Load { rw: "randwrite", bytes: 4096, depth: 32, client: Client::Batching },
    Load { rw: "read", bytes: 1 << 20, depth: 8, client: Client::Fio },
    Load { rw: "write", bytes: 1 << 20, depth: 8, client: Client::Fio },
];

/// What the disk under the servers holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Raw,
    /// A qcow2 image whose clusters are all there.
    Allocated,
    /// An empty qcow2 image, made anew for every round.
    Fresh,
}

impl Content {
    pub(super) fn name(self) -> &'static str {
        match self {
            Content::Raw => "raw",
            Content::Allocated => "qcow2",
            Content::Fresh => "fresh qcow2",
        }
    }

    pub(super) fn format(self) -> &'static str {
        if self == Content::Raw { "raw" } else { "qcow2" }
    }
}

/// Rates of one server under one load.
struct Figures {
    rate: f64,
    cpu_us: f64,
}

/// Measures on tmpfs, against both peers; in `disk`, a folder on a disk, against the bare file.
pub(super) fn measure(bench: &Bench<'_>, table: &mut Table, disk: &Path) -> Result<()> {
    let ferry = Program::Ferry(binary::ferry()?);
    let folder = tempfile::Builder::new().prefix("bench").tempdir_in("/dev/shm")?;
    for peer in [Program::Qemu, Program::Nbdkit] {
        for content in [Content::Raw, Content::Allocated, Content::Fresh] {
            let served = peer != Program::Nbdkit || content == Content::Raw;
            let fitting = |load: &Load| content != Content::Fresh || load.rw.contains("write");
            for load in LOADS.into_iter().filter(fitting).filter(|_| served) {
                let row = format!("nbd {} {} to {}", content.name(), load.name(), peer.name());
                if bench.wanted.row(&row) {
                    let programs = [&ferry, &peer];
                    compare(bench, table, &row, programs, content, load, folder.path())?;
                }
            }
        }
    }
    cost::bitmaps(bench, table, folder.path())?;
    cost::direct(bench, table, disk)
}

impl Load {
    fn name(self) -> String {
        let client = if self.client == Client::Batching { ", batched" } else { "" };
        format!("{} {} KiB, depth {}{client}", self.rw, self.bytes >> 10, self.depth)
    }

    /// What a client gets: requests or MiB a second, and how many requests in all.
    fn ask(self, socket: &Path, seconds: u64) -> Result<(f64, f64)> {
        match self.client {
            Client::Fio => fio(socket, self, seconds),
            Client::Batching => batching::run(socket, self, seconds),
        }
    }
}

fn compare(
    bench: &Bench<'_>,
    table: &mut Table,
    row: &str,
    programs: [&Program; 2],
    content: Content,
    load: Load,
    folder: &Path,
) -> Result<()> {
    let (path, raw) = (folder.join("image"), folder.join("raw"));
    if content != Content::Fresh {
        make(&path, content)?;
        image::filled(&raw, FILE_BYTES)?;
    }
    let (mut rounds, mut limits) = (Vec::<[Figures; 2]>::new(), Vec::<Figures>::new());
    for _ in 0..ROUNDS {
        let [ferry, peer] = programs.map(|program| {
            if content == Content::Fresh {
                warm::up(folder, FRESH_RATE * bench.wanted.seconds)?;
                make(&path, content)?;
            }
            let image = Image { path: &path, format: content.format(), direct: false };
            run(&Server::start(program, image)?, load, bench.wanted.seconds)
        });
        rounds.push([ferry?, peer?]);
        if content == Content::Fresh {
            std::fs::remove_file(&path)?;
            warm::up(folder, FRESH_RATE * bench.wanted.seconds)?;
            File::create(&raw)?.set_len(FRESH_BYTES)?;
        }
        limits.push(limit(&raw, load, bench.wanted.seconds)?);
    }
    std::fs::remove_file(&raw)?;
    if content != Content::Fresh {
        std::fs::remove_file(&path)?;
    }
    let pairs = |of: fn(&Figures) -> f64| -> Vec<Pair> {
        rounds.iter().map(|round| round.each_ref().map(of)).collect()
    };
    let unit = if load.bytes < 1 << 20 { "IOPS" } else { "MiB/s" };
    let bare = |of: fn(&Figures) -> f64| Some(median(limits.iter().map(of).collect()));
    let rates = pairs(|figures| figures.rate);
    table.row(row, unit, Better::Larger, rates, bare(|figures| figures.rate));
    let cpu = pairs(|figures| figures.cpu_us);
    let middle = median(cpu.iter().map(|[ferry, _]| *ferry).collect());
    if middle > 0.0 {
        let name = format!("{row}: CPU");
        table.row(&name, "us/op", Better::Smaller, cpu, bare(|figures| figures.cpu_us));
    }
    Ok(())
}

pub(super) fn make(path: &Path, content: Content) -> Result<()> {
    if content == Content::Raw {
        return image::filled(path, FILE_BYTES);
    }
    let bytes = if content == Content::Fresh { FRESH_BYTES } else { FILE_BYTES };
    let mut create = command::program("qemu-img", "qemu-utils")?;
    create.args(["create", "-q", "-f", "qcow2"]).arg(path).arg(bytes.to_string());
    command::output(&mut create)?;
    if content == Content::Allocated {
        let mut write = command::program("qemu-io", "qemu-utils")?;
        let whole = format!("write -P 7 0 {FILE_BYTES}");
        command::output(write.args(["-f", "qcow2", "-c", &whole]).arg(path))?;
    }
    Ok(())
}

fn run(server: &Server, load: Load, seconds: u64) -> Result<Figures> {
    let before = server.cpu()?;
    let (rate, done) = load
        .ask(&server.socket(), seconds)
        .with_context(|| format!("{} as the server", server.name()))?;
    let cpu = server.cpu()? - before;
    Ok(Figures { rate, cpu_us: cpu * 1e6 / done })
}

/// A bare loop over a raw file.
fn limit(path: &Path, load: Load, seconds: u64) -> Result<Figures> {
    let server = Bare::start(path)?;
    let (rate, done) =
        load.ask(&server.socket(), seconds).context("the bare loop as the server")?;
    Ok(Figures { rate, cpu_us: server.end()? * 1e6 / done })
}

fn fio(socket: &Path, load: Load, seconds: u64) -> Result<(f64, f64)> {
    let mut fio = command::program("fio", "fio")?;
    fio.args(["--name=load", "--ioengine=nbd", "--time_based", "--output-format=json"]);
    fio.args(["--norandommap", "--randrepeat=0"]);
    fio.arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
    fio.arg(format!("--rw={}", load.rw)).arg(format!("--bs={}", load.bytes));
    fio.arg(format!("--iodepth={}", load.depth)).arg(format!("--runtime={seconds}"));
    let said = command::output(&mut fio)?;
    // It greets the server before it reports.
    let report = said.find('{').and_then(|start| said.get(start..)).context("fio tells nothing")?;
    let report: Value = serde_json::from_str(report)?;
    let side = if load.rw.contains("read") { "read" } else { "write" };
    let field = |name: &str| report["jobs"][0][side][name].as_f64().context("fio tells nothing");
    let (iops, bytes, done) = (field("iops")?, field("bw_bytes")?, field("total_ios")?);
    Ok((if load.bytes < 1 << 20 { iops } else { bytes / f64::from(1 << 20) }, done))
}
