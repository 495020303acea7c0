//! Whatever happens to a migration before its commit, the source goes on as if nothing had happened.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_tests::lab::{self, LIMIT, Lab};
use ferry_tests::need::{self, Need};
use ferry_tests::qmp::Qmp;
use ferry_tests::time;
use ferry_tests::vm::{Spec, Vm};
use serde_json::json;

const KVM: &[Need] = &[Need::Kvm];
const WORDS: &str = "workload=verify,dirty init=zero mem_mib=64 dirty_mib_s=50 disk_iops=1000";
/// Moments of a migration, as bytes on the wire and as time.
const BYTES: [u64; 5] = [0, 100, 5000, 1 << 20, 20 << 20];
/// Places before the first page's content, which alone no checksum of ours covers.
const HEAD: [u64; 5] = [0, 7, 16, 30, 60];
const DELAYS: [u64; 5] = [0, 5, 50, 200, 600];

/// A running source, slow enough that every moment of its migration can be hit.
struct Source {
    lab: Lab,
    spec: Spec,
    vm: Vm,
    qmp: Qmp,
    disk: PathBuf,
    migrations: usize,
}

impl Source {
    fn new() -> Result<Source> {
        let lab = Lab::new()?;
        let (spec, disk) = lab.with_disk(WORDS, 8)?;
        let vm = lab.run(&spec)?;
        let mut qmp = vm.qmp()?;
        qmp.call("migrate-set-parameters", json!({ "max-bandwidth": 80 << 20 }))?;
        Ok(Source { lab, spec, vm, qmp, disk, migrations: 0 })
    }

    fn destination(&mut self) -> Result<(Vm, PathBuf)> {
        self.migrations += 1;
        let name = format!("m{}.sock", self.migrations);
        let (vm, _) = self.lab.destination(&self.spec, &name)?;
        Ok((vm, self.lab.path(&name)))
    }

    fn migrate(&mut self, to: &Path) -> Result<()> {
        self.qmp.call("migrate", json!({ "uri": format!("unix:{}", to.display()) })).map(drop)
    }

    /// The migration has failed or was cancelled, and the guest is as it was.
    fn unharmed(&mut self, expected: &str) -> Result<()> {
        let answer = lab::migrated(&mut self.qmp)?;
        ensure!(answer["status"] == expected, "not {expected}: {answer}");
        if expected == "failed" {
            let why = answer["error-desc"].as_str().unwrap_or_default();
            ensure!(!why.is_empty(), "it does not say why: {answer}");
        }
        ensure!(lab::state(&mut self.qmp)? == "running", "{}", self.vm.complaints());
        self.vm.console.wait_dot(LIMIT)
    }

    /// After everything that went wrong one migration succeeds, and nothing was lost.
    fn finish(mut self) -> Result<()> {
        self.qmp.call("migrate-set-parameters", json!({ "max-bandwidth": 10_u64 << 30 }))?;
        let (target, socket) = self.destination()?;
        self.migrate(&socket)?;
        let answer = lab::migrated(&mut self.qmp)?;
        ensure!(answer["status"] == "completed", "{answer}; {}", target.complaints());
        target.console.wait_dot(LIMIT)?;
        lab::finish(&target)?;
        let verdict = lab::verdict(&target)?;
        drop((self.vm, target));
        lab::holds(&self.disk, verdict, 4096)
    }
}

/// What a meddling connection does with what it has passed on.
#[derive(Clone, Copy)]
enum Meddle {
    /// Breaks the connection.
    Cut,
    /// Changes one byte and goes on.
    Flip,
    /// Loses one byte and goes on.
    Lose,
    /// Takes nothing more, and keeps the connection.
    Stall,
}

/// Listens at a new socket and passes everything on to `to`, until `after` bytes went by.
fn meddler(listen: &Path, to: &Path, after: u64, how: Meddle) -> Result<()> {
    let listener = UnixListener::bind(listen)?;
    let to = to.to_owned();
    time::spawn("meddler", move || {
        let Ok((near, _)) = listener.accept() else { return };
        let Ok(far) = UnixStream::connect(to) else { return };
        let (Ok(near_answers), Ok(far_answers)) = (near.try_clone(), far.try_clone()) else {
            return;
        };
        time::spawn("answers", move || pass(far_answers, near_answers, u64::MAX, Meddle::Cut));
        pass(near, far, after, how);
    });
    Ok(())
}

fn pass(mut from: UnixStream, mut to: UnixStream, after: u64, how: Meddle) {
    let mut buffer = [0; 16384];
    let mut passed = 0_u64;
    let mut meddled = false;
    while let Ok(len) = from.read(&mut buffer) {
        if len == 0 {
            break;
        }
        let mut kept = len;
        if !meddled && passed + len as u64 > after {
            meddled = true;
            let at = usize::try_from(after - passed).unwrap_or(0);
            match how {
                Meddle::Cut => break,
                Meddle::Flip => buffer[at] ^= 0x10,
                Meddle::Lose => {
                    buffer.copy_within(at + 1..len, at);
                    kept -= 1;
                }
                Meddle::Stall => std::thread::sleep(Duration::from_secs(3600)),
            }
        }
        passed += len as u64;
        if to.write_all(&buffer[..kept]).is_err() {
            break;
        }
    }
    // The other side sees the end as soon as we do.
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}

/// One migration through a meddler for each moment.
fn meddled(how: Meddle, moments: [u64; 5]) -> Result<()> {
    let mut source = Source::new()?;
    for after in moments {
        let (target, socket) = source.destination()?;
        let proxy = source.lab.path(&format!("p{}.sock", source.migrations));
        meddler(&proxy, &socket, after, how)?;
        source.migrate(&proxy)?;
        if matches!(how, Meddle::Stall) {
            std::thread::sleep(Duration::from_millis(500));
            source.qmp.call("migrate_cancel", json!({}))?;
        }
        let expected = if matches!(how, Meddle::Stall) { "cancelled" } else { "failed" };
        source.unharmed(expected).with_context(|| format!("after {after} bytes"))?;
        ensure!(target.console.dots().is_empty(), "the guest runs twice");
    }
    source.finish()
}

#[test]
fn a_broken_connection() {
    need::test(KVM, || meddled(Meddle::Cut, BYTES));
}

#[test]
fn a_corrupt_stream() {
    need::test(KVM, || meddled(Meddle::Flip, HEAD));
}

#[test]
fn a_stream_that_lost_a_byte() {
    need::test(KVM, || meddled(Meddle::Lose, BYTES));
}

#[test]
fn a_full_pipe_can_be_cancelled() {
    need::test(KVM, || meddled(Meddle::Stall, BYTES));
}

#[test]
fn a_killed_destination() {
    need::test(KVM, || {
        let mut source = Source::new()?;
        for delay in DELAYS {
            let (mut target, socket) = source.destination()?;
            source.migrate(&socket)?;
            std::thread::sleep(Duration::from_millis(delay));
            target.kill()?;
            source.unharmed("failed").with_context(|| format!("after {delay} ms"))?;
        }
        source.finish()
    });
}

#[test]
fn a_cancel_at_any_moment() {
    need::test(KVM, || {
        let mut source = Source::new()?;
        for delay in DELAYS {
            let (mut target, socket) = source.destination()?;
            source.migrate(&socket)?;
            std::thread::sleep(Duration::from_millis(delay));
            source.qmp.call("migrate_cancel", json!({}))?;
            source.unharmed("cancelled").with_context(|| format!("after {delay} ms"))?;
            let status = target.wait(LIMIT)?;
            ensure!(!status.success(), "the destination ended with {status}");
        }
        source.finish()
    });
}

#[test]
fn nobody_listens() {
    need::test(KVM, || {
        let mut source = Source::new()?;
        let nowhere = source.lab.path("nowhere.sock");
        source.migrate(&nowhere)?;
        source.unharmed("failed")?;
        source.finish()
    });
}

#[test]
fn a_destination_that_is_another_machine_refuses() {
    need::test(KVM, || {
        let mut source = Source::new()?;
        let mut other = source.spec.clone();
        other.memory_mib += 16;
        let (target, _) = source.lab.destination(&other, "other.sock")?;
        let socket = source.lab.path("other.sock");
        source.migrate(&socket)?;
        source.unharmed("failed")?;
        ensure!(target.console.dots().is_empty(), "the guest runs twice");
        source.finish()
    });
}

#[test]
fn a_killed_source_leaves_no_half_guest() {
    need::test(KVM, || {
        for delay in [0, 100] {
            let mut source = Source::new()?;
            let (mut target, socket) = source.destination()?;
            source.migrate(&socket)?;
            source.qmp.poll("query-migrate", LIMIT, |answer| {
                Ok(answer["ram"]["transferred"].as_u64().filter(|sent| *sent > 0))
            })?;
            std::thread::sleep(Duration::from_millis(delay));
            source.vm.kill()?;
            let status = target.wait(LIMIT)?;
            ensure!(!status.success(), "the destination ended with {status}");
            ensure!(target.console.dots().is_empty(), "half a guest ran");
        }
        Ok(())
    });
}
