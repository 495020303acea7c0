//! What qcow2 costs over raw: random and sequential requests at depth 32 through root, format and
//! file on one executor, on a raw file, on an allocated image and on a fresh one, by turns in one run.
//!
//! `cargo bench -p ferry-block --bench qcow2_io [-- DIRECTORY]`; the default is `/dev/shm`.
//! Look at the processor time per request, and at the ratios.

#![expect(clippy::print_stdout, reason = "prints a table")]

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use ferry_block::format::qcow2::Qcow2Options;
use ferry_block::{
    BackendKind, BlockBackend, BlockGraph, BlockdevOptions, BlockdevRef, Clock, DriverOptions,
    EdgePerms, Executor, IoBuf, WriteFlags,
};

const LEN: u64 = 1 << 30;
const DEPTH: u64 = 32;
const ROUNDS: usize = 3;

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    block: usize,
    write: bool,
    random: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Image {
    Raw,
    Allocated,
    Fresh,
}

fn main() -> Result<()> {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let directory = arguments.first().map_or("/dev/shm", String::as_str);
    let folder = tempfile::Builder::new().prefix("ferry-bench").tempdir_in(directory)?;
    let cases = [
        Case { name: "4 KiB random read", block: 4096, write: false, random: true },
        Case { name: "4 KiB random write", block: 4096, write: true, random: true },
        Case { name: "64 KiB random write", block: 65536, write: true, random: true },
        Case { name: "4 KiB sequential write", block: 4096, write: true, random: false },
        Case { name: "1 MiB sequential write", block: 1 << 20, write: true, random: false },
    ];
    println!(
        "{:<26}{:>12}{:>12}{:>12}{:>10}{:>10}",
        "CPU ns per request", "raw", "allocated", "fresh", "alloc/raw", "fresh/all"
    );
    for case in cases {
        let mut best = [f64::INFINITY; 3];
        for _ in 0..ROUNDS {
            for (place, image) in [Image::Raw, Image::Allocated, Image::Fresh].iter().enumerate() {
                best[place] = best[place].min(measure(folder.path(), case, *image)?);
            }
        }
        let [raw, allocated, fresh] = best;
        println!(
            "{:<26}{raw:>12.0}{allocated:>12.0}{fresh:>12.0}{:>10.2}{:>10.2}",
            case.name,
            allocated / raw,
            fresh / allocated
        );
    }
    Ok(())
}

/// Processor time of this thread so far, ns.
fn cpu_time() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split(' ').next().context("schedstat")?.parse()?)
}

fn options(folder: &Path, image: Image) -> Result<BlockdevOptions> {
    let path = folder.join("image");
    let path = path.to_str().context("path")?;
    let (format, preallocation) = match image {
        Image::Raw => ("raw", "full"),
        Image::Allocated => ("qcow2", "full"),
        Image::Fresh => ("qcow2", "off"),
    };
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", format, "-o", &format!("preallocation={preallocation}"), path])
        .arg(LEN.to_string())
        .status()?;
    if !status.success() {
        bail!("qemu-img cannot create {path}");
    }
    let file = BlockdevRef::nested(BlockdevOptions::file(path));
    Ok(match image {
        Image::Raw => BlockdevOptions::raw(file),
        _ => BlockdevOptions::new(DriverOptions::Qcow2(Box::new(Qcow2Options::new(file)))),
    })
}

fn measure(folder: &Path, case: Case, image: Image) -> Result<f64> {
    let executor = Executor::new(Clock::real())?;
    let graph = BlockGraph::new(executor.clone());
    let node = executor.block_on(graph.open(&options(folder, image)?))?;
    let root = graph.add_backend(BackendKind::Device, "d0", &node, EdgePerms::READ_WRITE)?;
    let blocks = LEN / case.block as u64;
    let count = blocks.min(60_000);
    let started = cpu_time()?;
    let workers: Vec<_> = (0..DEPTH)
        .map(|worker| executor.spawn(work(executor.clone(), root.clone(), case, worker, count)))
        .collect();
    for worker in workers {
        executor.block_on(worker)?;
    }
    let spent = cpu_time()? - started;
    executor.block_on(graph.inactivate_all())?;
    Ok(spent / count as f64)
}

async fn work(
    executor: Executor,
    root: BlockBackend,
    case: Case,
    worker: u64,
    count: u64,
) -> ferry_block::Result<()> {
    let buf = IoBuf::from_vec(&vec![7; case.block]);
    let blocks = LEN / case.block as u64;
    let mut number = worker;
    while number < count {
        // A multiplication by an odd number goes through all blocks once, in no order.
        let block = if case.random { number.wrapping_mul(0x9e37_79b1) % blocks } else { number };
        let at = block * case.block as u64;
        let (root, buf) = (root.clone(), buf.clone());
        let request = executor.spawn(async move {
            if case.write {
                root.write(at, buf, WriteFlags::NONE).await
            } else {
                root.read(at, buf).await
            }
        });
        request.await?;
        number += DEPTH;
    }
    Ok(())
}
