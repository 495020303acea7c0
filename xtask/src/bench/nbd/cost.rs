//! What ferry's own layers cost: beside the bare file on a disk, and with dirty bitmaps beside without.

use std::path::Path;

use anyhow::Result;
use ferry_tests::{binary, command, image};

use super::server::{Image, Program, Server};
use super::{Client, Content, FILE_BYTES, Load, ROUNDS, make, run};
use crate::bench::disk::bare_file;
use crate::bench::table::{Better, Pair, Table};
use crate::bench::{Bench, median};

const BITMAPS: usize = 8;
const LOADS: [Load; 4] = [
    Load { rw: "randread", bytes: 4096, depth: 32, client: Client::Fio },
    Load { rw: "randread", bytes: 4096, depth: 32, client: Client::Batching },
    Load { rw: "randwrite", bytes: 4096, depth: 32, client: Client::Fio },
    Load { rw: "randwrite", bytes: 4096, depth: 32, client: Client::Batching },
];

/// Past the page cache on a disk, against fio with io_uring on a bare file there.
pub(super) fn direct(bench: &Bench<'_>, table: &mut Table, folder: &Path) -> Result<()> {
    let ferry = Program::Ferry(binary::ferry()?);
    for content in [Content::Raw, Content::Allocated] {
        for load in LOADS {
            let row = format!("nbd disk {} {} to bare file", content.name(), load.name());
            if !bench.wanted.row(&row) {
                continue;
            }
            let folder = tempfile::Builder::new().prefix("bench").tempdir_in(folder)?;
            let (path, bare) = (folder.path().join("image"), folder.path().join("bare"));
            make(&path, content)?;
            image::filled(&bare, FILE_BYTES)?;
            let mut rounds: Vec<Pair> = Vec::new();
            for _ in 0..ROUNDS {
                let image = Image { path: &path, format: content.format(), direct: true };
                let ours = run(&Server::start(&ferry, image)?, load, bench.wanted.seconds)?;
                let limit = bare_file(bench, (load.rw, load.bytes, load.depth), &bare, true)?;
                rounds.push([ours.rate, limit]);
            }
            let limit = median(rounds.iter().map(|[_, limit]| *limit).collect());
            table.row(&row, "IOPS", Better::Larger, rounds, Some(limit));
        }
    }
    Ok(())
}

/// Writes to an image with eight bitmaps that record, against the same image without.
pub(super) fn bitmaps(bench: &Bench<'_>, table: &mut Table, folder: &Path) -> Result<()> {
    let load = Load { rw: "randwrite", bytes: 4096, depth: 32, client: Client::Batching };
    let row = format!("nbd qcow2 {} with {BITMAPS} bitmaps to none", load.name());
    if !bench.wanted.row(&row) {
        return Ok(());
    }
    let ferry = Program::Ferry(binary::ferry()?);
    let (with, without) = (folder.join("with"), folder.join("without"));
    for path in [&with, &without] {
        make(path, Content::Allocated)?;
    }
    for number in 0..BITMAPS {
        let mut add = command::program("qemu-img", "qemu-utils")?;
        command::output(add.args(["bitmap", "--add"]).arg(&with).arg(format!("b{number}")))?;
    }
    let (mut rates, mut costs): (Vec<Pair>, Vec<Pair>) = Default::default();
    for _ in 0..ROUNDS {
        let [with, without] = [&with, &without].map(|path| {
            let image = Image { path, format: "qcow2", direct: false };
            run(&Server::start(&ferry, image)?, load, bench.wanted.seconds)
        });
        let (with, without) = (with?, without?);
        rates.push([with.rate, without.rate]);
        costs.push([with.cpu_us, without.cpu_us]);
    }
    for path in [with, without] {
        std::fs::remove_file(path)?;
    }
    table.row(&row, "IOPS", Better::Larger, rates, None);
    table.row(&format!("{row}: CPU"), "us/op", Better::Smaller, costs, None);
    Ok(())
}
