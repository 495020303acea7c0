//! The monitor as a process: how soon the guest runs, and what it costs beside the guest's memory.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use ferry_tests::image;
use ferry_tests::vm::{Disk, Monitor, Spec, Vm};

use super::Bench;
use super::table::{Better, Table};

const LIMIT: Duration = Duration::from_secs(20);
const ROUNDS: usize = 9;
const MEMORY_MIB: u64 = 512;

/// From starting the program to the guest's first byte, which it sends first thing in ring 3. QEMU runs its
/// machine for fast starts.
pub(super) fn start(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    let name = "exec to ring 3";
    if !bench.wanted.row(name) {
        return Ok(());
    }
    let spec = Spec::new(&bench.guest, "disk=none", 256);
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let [ferry, qemu] =
            [&bench.ferry, &Monitor::QemuMicro].map(|monitor| first_byte(monitor, &spec));
        rounds.push([ferry?, qemu?]);
    }
    table.row(name, "ms", Better::Smaller, rounds, None);
    Ok(())
}

/// Milliseconds from starting the program to the guest's first byte.
fn first_byte(monitor: &Monitor, spec: &Spec) -> Result<f64> {
    let vm = Vm::start(monitor, spec)?;
    vm.console.wait_word("RING3", LIMIT).with_context(|| vm.complaints())?;
    let first = vm.console.first_byte().context("no byte came")?;
    Ok((first - vm.started).as_secs_f64() * 1000.0)
}

/// Resident memory that is not the guest's, with a disk in use.
pub(super) fn memory(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    let name = "resident memory beside the guest's";
    if !bench.wanted.row(name) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let path = folder.path().join("disk.raw");
    image::filled(&path, 64 << 20)?;
    let spec = Spec::new(&bench.guest, "workload=verify disk_iops=5000", MEMORY_MIB);
    let mut figures = [0.0; 2];
    for (index, monitor) in bench.monitors().into_iter().enumerate() {
        let vm = Vm::start(monitor, &spec.clone().disk(Disk::new("d0", &path)))?;
        vm.console.wait_word("READY", LIMIT).with_context(|| vm.complaints())?;
        std::thread::sleep(Duration::from_secs(1));
        figures[index] = own_memory(vm.pid())? as f64 / f64::from(1 << 20);
    }
    table.row(name, "MiB", Better::Smaller, vec![figures], None);
    Ok(())
}

/// Sums the resident parts of all mappings that are too small to be the guest's memory.
fn own_memory(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut size, mut sum) = (0, 0);
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let field = words.next().unwrap_or_default();
        let kib: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        match field {
            "Size:" => size = kib * 1024,
            "Rss:" if size < (MEMORY_MIB << 20) / 2 => sum += kib * 1024,
            _ => {}
        }
    }
    Ok(sum)
}
