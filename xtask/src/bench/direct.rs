//! The block layer past the page cache, in one process: `ferry img bench` beside `qemu-img bench`, and fio with
//! io_uring on the bare file as the limit.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use ferry_tests::{binary, command, image};

use super::disk::bare_file;
use super::nbd::{Content, FILE_BYTES, make};
use super::table::{Better, Table};
use super::{Bench, median};

const ROUNDS: usize = 5;
const BLOCK: u64 = 4096;
const DEPTH: u64 = 32;
/// From request to request, bytes: a prime number of blocks, so that all of the disk has its turn and no
/// request is near the one before.
const STRIDE: u64 = 7919 * BLOCK;
/// Requests that stand for a second of measuring: a fast disk does about as many in one.
const PER_SECOND: u64 = 100_000;

/// Measures in a folder on a disk.
pub(super) fn measure(bench: &Bench<'_>, table: &mut Table, folder: &Path) -> Result<()> {
    for content in [Content::Raw, Content::Allocated] {
        for load in ["randread", "randwrite"] {
            let name = format!("img bench disk {} {load} 4 KiB, depth {DEPTH}", content.name());
            if bench.wanted.row(&name) {
                row(bench, table, &name, content, load, folder)?;
            }
        }
    }
    Ok(())
}

fn row(
    bench: &Bench<'_>,
    table: &mut Table,
    name: &str,
    content: Content,
    load: &str,
    folder: &Path,
) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("bench").tempdir_in(folder)?;
    let (path, bare) = (folder.path().join("image"), folder.path().join("bare"));
    make(&path, content)?;
    image::filled(&bare, FILE_BYTES)?;
    let count = PER_SECOND * bench.wanted.seconds;
    let (mut rounds, mut limits) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let limit = bare_file(bench, (load, BLOCK, DEPTH), &bare, true)?;
        let mut ferry = Command::new(binary::ferry()?);
        ferry.arg("img");
        let qemu = command::program("qemu-img", "qemu-utils")?;
        let [ferry, qemu] = [ferry, qemu].map(|program| rate(program, &path, content, load, count));
        rounds.push([ferry?, qemu?]);
        limits.push(limit);
    }
    table.row(name, "IOPS", Better::Larger, rounds, Some(median(limits)));
    Ok(())
}

/// Requests a second of `bench` in a program that takes qemu-img's words.
fn rate(
    mut program: Command,
    path: &Path,
    content: Content,
    load: &str,
    count: u64,
) -> Result<f64> {
    program.args(["bench", "-t", "none", "-i", "io_uring", "-f", content.format()]);
    program.args([format!("-d{DEPTH}"), format!("-s{BLOCK}"), format!("-S{STRIDE}")]);
    program.arg(format!("-c{count}")).args((load == "randwrite").then_some("-w")).arg(path);
    let said = command::output(&mut program)?;
    let (_, seconds) = said.split_once("Run completed in ").context("no time was told")?;
    let (seconds, _) = seconds.split_once(' ').context("no unit after the time")?;
    Ok(count as f64 / seconds.parse::<f64>()?)
}
