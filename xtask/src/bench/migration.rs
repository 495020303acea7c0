//! Live migration between two processes of the same monitor over loopback.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_tests::console::longest_gap;
use ferry_tests::vm::{Monitor, Spec, Vm};
use serde_json::json;

use super::Bench;
use super::table::{Better, Table};

const LIMIT: Duration = Duration::from_secs(60);
const ROUNDS: usize = 5;
const MEMORY_MIB: u64 = 1024;
const UNLIMITED: u64 = 100 << 30;

/// Total time, downtime as reported, and the longest pause between the guest's heartbeats.
struct Figures {
    total_ms: f64,
    downtime_ms: f64,
    seen_ms: f64,
}

/// An idle guest, and one that keeps dirtying memory.
pub(super) fn measure(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    let idle = "disk=none hb_us=500".to_owned();
    let busy = "disk=none hb_us=500 workload=dirty mem_mib=256 dirty_mib_s=200".to_owned();
    for (name, cmdline) in
        [("migration, 1 GiB idle", idle), ("migration, 1 GiB at 200 MiB/s", busy)]
    {
        if !bench.wanted.row(name) {
            continue;
        }
        let spec = Spec::new(&bench.guest, &cmdline, MEMORY_MIB);
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let [ferry, qemu] = bench.monitors().map(|monitor| migrate(monitor, &spec));
            rounds.push([ferry?, qemu?]);
        }
        let mut row = |what: &str, of: fn(&Figures) -> f64| {
            let rounds = rounds.iter().map(|round| round.each_ref().map(of)).collect();
            table.row(&format!("{name}: {what}"), "ms", Better::Smaller, rounds, None);
        };
        row("total", |figures| figures.total_ms);
        row("downtime", |figures| figures.downtime_ms);
        row("seen", |figures| figures.seen_ms);
    }
    Ok(())
}

fn migrate(monitor: &Monitor, spec: &Spec) -> Result<Figures> {
    let source = Vm::start(monitor, spec)?;
    source.console.wait_word("READY", LIMIT).with_context(|| source.complaints())?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let uri = format!("tcp:127.0.0.1:{port}");
    let target = Vm::start(monitor, &spec.incoming(&uri))?;
    let mut waiting = target.qmp()?;
    waiting.poll("query-status", LIMIT, |status| {
        Ok((status["status"] == "inmigrate").then_some(()))
    })?;
    let mut qmp = source.qmp()?;
    qmp.call("migrate-set-parameters", json!({ "max-bandwidth": UNLIMITED }))?;
    std::thread::sleep(Duration::from_millis(200));
    let before = source.console.dots().len();
    qmp.call("migrate", json!({ "uri": uri }))?;
    let status = qmp.poll("query-migrate", LIMIT, |status| {
        ensure!(status["status"] != "failed", "{status}");
        Ok((status["status"] == "completed").then(|| status.clone()))
    })?;
    target.console.wait_dot(LIMIT).with_context(|| target.complaints())?;
    let dots = source.console.dots().into_iter().skip(before).chain(target.console.dots());
    let seen_ms = longest_gap(dots).as_secs_f64() * 1000.0;
    target.console.send(b"q")?;
    let done = target.console.wait_word("DONE", LIMIT)?;
    ensure!(done.text == "DONE status=0", "{}", target.console.text());
    let field = |name: &str| status[name].as_f64().with_context(|| format!("no {name}: {status}"));
    Ok(Figures { total_ms: field("total-time")?, downtime_ms: field("downtime")?, seen_ms })
}
