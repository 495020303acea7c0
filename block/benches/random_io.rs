//! What the block layer costs: random requests of 4 KiB and 1 MiB through root, raw and file nodes on one
//! executor, beside fio on the same file in the same run. On a busy machine look at the processor
//! time per request, beside that of a bare `pread` or `pwrite` loop.
//!
//! `cargo bench -p ferry-block --bench random_io [-- DIRECTORY [SECONDS]]`; the default directory
//! is `/dev/shm`.

#![expect(clippy::print_stdout, reason = "prints a table")]

use std::cell::Cell;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use ferry_block::{
    BackendKind, BlockBackend, BlockGraph, BlockdevOptions, CacheOptions, Clock, EdgePerms,
    Executor, IoBuf, RingChoice, WriteFlags,
};

const FILE_LEN: u64 = 1 << 30;

#[derive(Clone, Copy)]
struct Case {
    block: usize,
    write: bool,
    depth: u32,
    ring: RingChoice,
    direct: bool,
}

fn main() -> Result<()> {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let directory = arguments.first().map_or("/dev/shm", String::as_str);
    let seconds = arguments.get(1).map_or(Ok(2), |text| text.parse())?;
    let file = tempfile::Builder::new().prefix("ferry-bench").tempfile_in(directory)?;
    fill(file.path())?;
    println!(
        "{:<34}{:>12}{:>12}{:>8}{:>10}{:>10}",
        "random requests per second", "ferry", "fio", "ratio", "CPU ns", "bare ns"
    );
    for direct in [false, true] {
        for ring in [RingChoice::Auto, RingChoice::ThreadPool] {
            for (block, depth, write) in [
                (4096, 1, false),
                (4096, 32, false),
                (4096, 1, true),
                (4096, 32, true),
                (1 << 20, 8, false),
                (1 << 20, 8, true),
            ] {
                let case = Case { block, write, depth, ring, direct };
                let name = format!(
                    "{} KiB {} depth {depth:>2}{}{}",
                    block >> 10,
                    if write { "write" } else { "read" },
                    if direct { ", direct" } else { "" },
                    if ring == RingChoice::ThreadPool { ", threads" } else { "" },
                );
                let ours = match measure(file.path(), case, seconds) {
                    Ok(rate) => rate,
                    Err(error) => {
                        println!("{name:<34}{error:>12}");
                        continue;
                    }
                };
                let theirs = match ring {
                    RingChoice::Auto => fio(file.path(), case, seconds).unwrap_or(f64::NAN),
                    RingChoice::ThreadPool => f64::NAN,
                };
                let bare = bare(file.path(), case)?;
                let (rate, cpu) = ours;
                println!(
                    "{name:<34}{rate:>12.0}{theirs:>12.0}{:>8.2}{cpu:>10.0}{bare:>10.0}",
                    rate / theirs
                );
            }
        }
    }
    Ok(())
}

fn fill(path: &Path) -> Result<()> {
    let status = Command::new("dd")
        .args(["if=/dev/urandom", "bs=1M", "conv=fsync", "status=none"])
        .arg(format!("of={}", path.display()))
        .arg(format!("count={}", FILE_LEN >> 20))
        .status()?;
    if !status.success() {
        bail!("cannot fill {}", path.display());
    }
    Ok(())
}

/// Processor time of this thread so far, ns.
fn cpu_time() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split(' ').next().context("schedstat")?.parse()?)
}

/// Processor time of one system call on the bare file, ns.
fn bare(path: &Path, case: Case) -> Result<f64> {
    let count = if case.block == 4096 { 200_000 } else { 2_000 };
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let (mut buf, mut random) = (vec![1; case.block], 1);
    let started = cpu_time()?;
    for _ in 0..count {
        let at = next_offset(&mut random, case.block);
        if case.write {
            file.write_all_at(&buf, at)?;
        } else {
            file.read_exact_at(&mut buf, at)?;
        }
    }
    Ok((cpu_time()? - started) / f64::from(count))
}

fn next_offset(random: &mut u64, block: usize) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random % (FILE_LEN / block as u64) * block as u64
}

/// Requests per second through a device's root, and processor time of each, ns.
fn measure(path: &Path, case: Case, seconds: u64) -> Result<(f64, f64)> {
    let executor = Executor::new(Clock::real())?;
    executor.set_ring_choice(case.ring);
    let graph = BlockGraph::new(executor.clone());
    let mut options = BlockdevOptions::raw_file(path.to_str().context("path")?);
    options.cache = Some(CacheOptions { direct: Some(case.direct), no_flush: None });
    let node = executor.block_on(graph.open(&options))?;
    let root = graph.add_backend(BackendKind::Device, "d0", &node, EdgePerms::READ_WRITE)?;
    let done = Rc::new(Cell::new(0_u64));
    let (started, cpu) = (executor.clock().now(), cpu_time()?);
    let end = started + seconds * 1_000_000_000;
    let workers: Vec<_> = (0..case.depth)
        .map(|worker| {
            executor.spawn(work(executor.clone(), root.clone(), case, worker, done.clone(), end))
        })
        .collect();
    for worker in workers {
        executor.block_on(worker)?;
    }
    let elapsed = executor.clock().now() - started;
    let count = done.get() as f64;
    Ok((count * 1e9 / elapsed as f64, (cpu_time()? - cpu) / count))
}

async fn work(
    executor: Executor,
    root: BlockBackend,
    case: Case,
    worker: u32,
    done: Rc<Cell<u64>>,
    end: u64,
) -> ferry_block::Result<()> {
    let buf = IoBuf::alloc(case.block);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(worker) + 1);
    while executor.turn_time() < end {
        let at = next_offset(&mut random, case.block);
        // One task per request, as a virtqueue does it.
        let (root, buf) = (root.clone(), buf.clone());
        let request = executor.spawn(async move {
            if case.write {
                root.write(at, buf, WriteFlags::NONE).await
            } else {
                root.read(at, buf).await
            }
        });
        request.await?;
        done.set(done.get() + 1);
    }
    Ok(())
}

/// What fio reaches on the bare file with io_uring.
fn fio(path: &Path, case: Case, seconds: u64) -> Result<f64> {
    let output = Command::new("fio")
        .args(["--name=bare", "--ioengine=io_uring", "--norandommap", "--minimal"])
        .args(["--time_based", "--group_reporting", "--thread"])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--bs={}", case.block))
        .arg(format!("--rw={}", if case.write { "randwrite" } else { "randread" }))
        .arg(format!("--iodepth={}", case.depth))
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--size={FILE_LEN}"))
        .arg(format!("--direct={}", u8::from(case.direct)))
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let field = if case.write { 48 } else { 7 };
    let rate = text.lines().find_map(|line| line.split(';').nth(field)).context("fio's answer")?;
    Ok(rate.parse()?)
}
