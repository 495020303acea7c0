//! `ferry img` beside the tools it replaces: copying whole images from format to format, and opening large ones.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use ferry_tests::{binary, command, image, time};

use super::table::{Better, Pair, Table};
use super::{Bench, warm};

const BYTES: u64 = 2 << 30;
const ROUNDS: usize = 5;
const TEBIBYTE: &str = "1T";

/// One direction, with an image that is full or mostly holes.
#[derive(Clone, Copy)]
struct Case {
    from: &'static str,
    to: &'static str,
    full: bool,
}

impl Case {
    fn name(self) -> String {
        let content = if self.full { "full" } else { "sparse" };
        format!("convert {} to {}, {content}", self.from, self.to)
    }
}

const CASES: [Case; 4] = [
    Case { from: "raw", to: "qcow2", full: true },
    Case { from: "raw", to: "qcow2", full: false },
    Case { from: "qcow2", to: "raw", full: true },
    Case { from: "qcow2", to: "raw", full: false },
];

/// Measures on tmpfs.
pub(super) fn measure(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    let ferry = binary::ferry()?;
    let folder = tempfile::Builder::new().prefix("bench").tempdir_in("/dev/shm")?;
    for case in CASES.into_iter().filter(|case| bench.wanted.row(&case.name())) {
        let source = source(folder.path(), case)?;
        let target = folder.path().join("target");
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            warm::up(folder.path(), BYTES)?;
            let ours = timed(convert(&ferry, &["img"], case, &source, &target, &[]), &target)?;
            rounds.push((ours, peers(case, &source, &target)?));
        }
        std::fs::remove_file(&source)?;
        table.row(&case.name(), "ms", Better::Smaller, beside_fastest(&rounds), None);
    }
    open(bench, table, &ferry, folder.path())
}

fn source(folder: &Path, case: Case) -> Result<PathBuf> {
    let raw = folder.join("source.raw");
    if case.full {
        image::filled(&raw, BYTES)?;
    } else {
        // One megabyte of data in every sixteen.
        image::sparse(&raw, BYTES)?;
        let mut write = command::program("qemu-io", "qemu-utils")?;
        write.args(["-f", "raw"]);
        for at in (0..BYTES >> 20).step_by(16) {
            write.arg("-c").arg(format!("write -q -P 9 {at}M 1M"));
        }
        command::output(write.arg(&raw))?;
    }
    if case.from == "raw" {
        return Ok(raw);
    }
    let source = folder.join("source.qcow2");
    let mut make = command::program("qemu-img", "qemu-utils")?;
    command::output(make.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&source))?;
    std::fs::remove_file(raw)?;
    Ok(source)
}

/// `qemu-img convert`, or a program that takes the same words.
fn convert(
    program: &Path,
    before: &[&str],
    case: Case,
    source: &Path,
    target: &Path,
    extra: &[&str],
) -> Command {
    let mut command = Command::new(program);
    command.args(before).args(["convert", "-f", case.from, "-O", case.to]).args(extra);
    command.arg(source).arg(target);
    command
}

/// What each of the others takes: qemu-img as it is, qemu-img told to use all that it has, and nbdcopy.
fn peers(case: Case, source: &Path, target: &Path) -> Result<[f64; 3]> {
    let qemu = command::find("qemu-img").context("qemu-img is missing: install qemu-utils")?;
    let plain = timed(convert(&qemu, &[], case, source, target, &[]), target)?;
    let parallel = convert(&qemu, &[], case, source, target, &["-m", "16", "-W"]);
    let parallel = timed(parallel, target)?;
    Ok([plain, parallel, nbdcopy(case, source, target)?])
}

/// Each round beside the peer that is the fastest of them over all rounds: the fastest of each round would be
/// the luckiest of three beside one try of ours.
fn beside_fastest(rounds: &[(f64, [f64; 3])]) -> Vec<Pair> {
    let typical = |peer: usize| super::median(rounds.iter().map(|(_, all)| all[peer]).collect());
    let fastest =
        (1..3).fold(0, |best, peer| if typical(peer) < typical(best) { peer } else { best });
    rounds.iter().map(|(ours, all)| [*ours, all[fastest]]).collect()
}

/// nbdcopy, with a server of QEMU's on the side that is qcow2.
fn nbdcopy(case: Case, source: &Path, target: &Path) -> Result<f64> {
    let mut copy = command::program("nbdcopy", "libnbd-bin")?;
    copy.args(["--allocated", "--"]);
    if case.from == "qcow2" {
        copy.args(["[", "qemu-nbd", "-r", "-f", "qcow2"]).arg(source).arg("]").arg(target);
    } else {
        let mut create = command::program("qemu-img", "qemu-utils")?;
        create.args(["create", "-q", "-f", "qcow2"]).arg(target).arg(BYTES.to_string());
        command::output(&mut create)?;
        copy.arg(source).args(["[", "qemu-nbd", "-f", "qcow2", "--discard=unmap"]);
        copy.arg(target).arg("]");
    }
    timed(copy, target)
}

/// Milliseconds that a command takes; what it made is removed.
fn timed(mut command: Command, target: &Path) -> Result<f64> {
    let begin = time::now();
    command::output(&mut command)?;
    let ms = begin.elapsed().as_secs_f64() * 1000.0;
    std::fs::remove_file(target)?;
    Ok(ms)
}

/// How long it takes to say what a qcow2 image of a tebibyte is.
fn open(bench: &Bench<'_>, table: &mut Table, ferry: &Path, folder: &Path) -> Result<()> {
    let name = "open a qcow2 image of 1 TiB";
    if !bench.wanted.row(name) {
        return Ok(());
    }
    let path = folder.join("large.qcow2");
    let qemu = command::find("qemu-img").context("qemu-img is missing: install qemu-utils")?;
    let mut create = Command::new(&qemu);
    command::output(create.args(["create", "-q", "-f", "qcow2"]).arg(&path).arg(TEBIBYTE))?;
    let info = |program: &Path, before: &[&str]| -> Result<f64> {
        let begin = time::now();
        command::output(
            Command::new(program).args(before).args(["info", "-f", "qcow2"]).arg(&path),
        )?;
        Ok(begin.elapsed().as_secs_f64() * 1000.0)
    };
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push([info(ferry, &["img"])?, info(&qemu, &[])?]);
    }
    table.row(name, "ms", Better::Smaller, rounds, None);
    Ok(())
}
