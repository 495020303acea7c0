//! The disk path: the same requests by the same guest, and by fio on the bare file as the limit.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_tests::console::number;
use ferry_tests::vm::{Disk, Monitor, Spec, Vm};
use ferry_tests::{command, image};
use serde_json::Value;

use super::table::{Better, Table};
use super::{Bench, median};

const FILE_BYTES: u64 = 1 << 30;
const ROUNDS: usize = 5;

struct Cell {
    kind: &'static str,
    bytes: u64,
    depth: u64,
}

const CELLS: [Cell; 6] = [
    Cell { kind: "randread", bytes: 4096, depth: 1 },
    Cell { kind: "randread", bytes: 4096, depth: 32 },
    Cell { kind: "randwrite", bytes: 4096, depth: 1 },
    Cell { kind: "randwrite", bytes: 4096, depth: 32 },
    Cell { kind: "seqread", bytes: 1 << 20, depth: 8 },
    Cell { kind: "seqwrite", bytes: 1 << 20, depth: 8 },
];

/// Measures every cell on a file in a folder.
pub(super) fn measure(
    bench: &Bench<'_>,
    table: &mut Table,
    medium: &str,
    folder: &Path,
    direct: bool,
) -> Result<()> {
    let cells = || CELLS.iter().filter(|cell| bench.wanted.row(&name(medium, cell)));
    if cells().next().is_none() {
        return Ok(());
    }
    let folder = tempfile::Builder::new().prefix("bench").tempdir_in(folder)?;
    let path = folder.path().join("disk.raw");
    image::filled(&path, FILE_BYTES)?;
    for cell in cells() {
        let (mut rounds, mut limits) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let measure = |monitor| guest(bench, monitor, cell, &path, direct);
            let [ferry, qemu] = bench.monitors().map(measure);
            rounds.push([ferry?, qemu?]);
            limits.push(fio(bench, cell, &path, direct)?);
        }
        let unit = if cell.bytes < 1 << 20 { "IOPS" } else { "MiB/s" };
        table.row(&name(medium, cell), unit, Better::Larger, rounds, Some(median(limits)));
    }
    Ok(())
}

fn name(medium: &str, cell: &Cell) -> String {
    format!("{medium} {} {} KiB, depth {}", cell.kind, cell.bytes >> 10, cell.depth)
}

fn guest(
    bench: &Bench<'_>,
    monitor: &Monitor,
    cell: &Cell,
    path: &Path,
    direct: bool,
) -> Result<f64> {
    let Cell { kind, bytes, depth } = cell;
    let seconds = bench.wanted.seconds;
    let cmdline = format!(
        "bench={kind}/{bytes}/{depth} max_bs={bytes} max_depth={depth} seconds={seconds} end=stay"
    );
    let mut disk = Disk::new("d0", path);
    disk.direct = direct;
    let vm = Vm::start(monitor, &Spec::new(&bench.guest, &cmdline, 256).disk(disk))?;
    let limit = Duration::from_secs(20 + seconds);
    let line = vm.console.wait_word("IOPS", limit).with_context(|| vm.complaints())?;
    ensure!(number(&line.text, "failed")? == 0, "{}", line.text);
    let iops = number(&line.text, "iops")?;
    Ok((if *bytes < 1 << 20 { iops } else { (iops * bytes) >> 20 }) as f64)
}

fn fio(bench: &Bench<'_>, cell: &Cell, path: &Path, direct: bool) -> Result<f64> {
    let rw = match cell.kind {
        "seqread" => "read",
        "seqwrite" => "write",
        kind => kind,
    };
    bare_file(bench, (rw, cell.bytes, cell.depth), path, direct)
}

/// What fio reaches with io_uring on the bare file: requests of that kind, length and number at once.
pub(super) fn bare_file(
    bench: &Bench<'_>,
    (rw, bytes, depth): (&str, u64, u64),
    path: &Path,
    direct: bool,
) -> Result<f64> {
    let side = if rw.contains("write") { "write" } else { "read" };
    let mut fio = command::program("fio", "fio")?;
    // A guest's memory is in huge pages. In small ones, the pieces of 1 MiB are more than a disk takes
    // in one request, and fio would be slower than what it is the limit of.
    fio.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    fio.args(["--name=limit", "--ioengine=io_uring", "--time_based", "--output-format=json"]);
    fio.arg(format!("--filename={}", path.display())).arg(format!("--rw={rw}"));
    fio.arg(format!("--bs={bytes}")).arg(format!("--iodepth={depth}"));
    fio.arg(format!("--runtime={}", bench.wanted.seconds));
    fio.arg(format!("--direct={}", u8::from(direct))).arg(format!("--size={FILE_BYTES}"));
    let report: Value = serde_json::from_str(&command::output(&mut fio)?)?;
    let field = if bytes < 1 << 20 { "iops" } else { "bw_bytes" };
    let value = report["jobs"][0][side][field].as_f64().context("fio reported nothing")?;
    Ok(if field == "iops" { value } else { value / f64::from(1 << 20) })
}
