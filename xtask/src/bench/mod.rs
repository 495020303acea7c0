//! `cargo xtask bench`: ferry beside QEMU and other peers, with the same guest or client, in the same run, row by row.

mod convert;
mod direct;
mod disk;
mod migration;
mod nbd;
mod process;
mod table;
mod warm;

use std::path::PathBuf;

use anyhow::{Result, bail};
use ferry_tests::vm::Monitor;
use ferry_tests::{artifact, guest, host};

use crate::packages;
use table::Table;

/// What to measure.
pub(crate) struct Wanted {
    /// Only rows whose name contains this.
    pub(crate) only: Option<String>,
    /// Seconds for each disk measurement.
    pub(crate) seconds: u64,
    /// A folder on a disk.
    pub(crate) disk: Option<PathBuf>,
}

impl Wanted {
    fn row(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }
}

/// The monitors under comparison and the guest that both run.
struct Bench<'a> {
    wanted: &'a Wanted,
    ferry: Monitor,
    guest: PathBuf,
}

impl Bench<'_> {
    /// ferry and QEMU, in this order.
    fn monitors(&self) -> [&Monitor; 2] {
        [&self.ferry, &Monitor::Qemu]
    }
}

/// Measures and prints.
///
/// # Errors
///
/// When a guest or a peer fails.
pub(crate) fn run(wanted: &Wanted) -> Result<()> {
    packages::ensure(&packages::MEASURE)?;
    packages::ensure(&packages::LINUX[..1])?;
    if host::kind() == host::Kind::None {
        bail!("there is no usable /dev/kvm on this host: nothing to measure");
    }
    let bench = Bench { wanted, ferry: Monitor::ferry()?, guest: guest::bare_metal()? };
    let mut table = Table::new();
    process::start(&bench, &mut table)?;
    process::memory(&bench, &mut table)?;
    let disk_folder = wanted.disk.clone().unwrap_or_else(|| artifact::target().join("artifacts"));
    std::fs::create_dir_all(&disk_folder)?;
    disk::measure(&bench, &mut table, "tmpfs", &PathBuf::from("/dev/shm"), false)?;
    disk::measure(&bench, &mut table, "disk", &disk_folder, true)?;
    migration::measure(&bench, &mut table)?;
    direct::measure(&bench, &mut table, &disk_folder)?;
    nbd::measure(&bench, &mut table, &disk_folder)?;
    convert::measure(&bench, &mut table)?;
    println!("\nhost: {:?}; each figure is the median of its rounds", host::kind());
    table.print();
    Ok(())
}

/// The middle one of some figures.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
