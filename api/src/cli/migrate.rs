//! `ferry migrate`: starts a migration, shows how it goes, and says how it ended.

use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::json;

use super::{
    CliError, Console, MigrateArgs, Outcome, POLL, Result, connect,
    console::{byte_bar, bytes, eta, millis, rate, rate_of},
};
use crate::{
    client::{QmpClient, clock::Stopwatch},
    command::{
        Migrate, MigrationInfo, MigrationParameters, MigrationStats, MigrationStatus, StatusInfo,
    },
    schema::Empty,
};

pub(super) fn run(args: &MigrateArgs, console: &mut Console<'_>) -> Result<Outcome> {
    let mut client = connect(&args.connection)?;
    set_parameters(args, &mut client)?;
    let migrate = Migrate { uri: args.uri.clone(), detach: None };
    client.call::<_, Empty>("migrate", &migrate)?;
    let bar = byte_bar("migrating");
    let watched = watch(args, &mut client, console, &bar);
    bar.finish_and_clear();
    let info = watched?;
    match info.status {
        Some(MigrationStatus::Completed) => completed(args, &info, console),
        Some(MigrationStatus::Cancelled) => cancelled(args, &mut client, console),
        _ => Err(failed(args, &mut client, &info)),
    }
}

fn set_parameters(args: &MigrateArgs, client: &mut QmpClient) -> Result<()> {
    let parameters = MigrationParameters {
        max_bandwidth: args.max_bandwidth,
        downtime_limit: args.downtime_limit,
    };
    if parameters != MigrationParameters::default() {
        client.call::<_, Empty>("migrate-set-parameters", &parameters)?;
    }
    Ok(())
}

/// Looks at the migration until it is over, one way or the other.
fn watch(
    args: &MigrateArgs,
    client: &mut QmpClient,
    console: &mut Console<'_>,
    bar: &ProgressBar,
) -> Result<MigrationInfo> {
    let mut cancelling = false;
    let mut speed = Speed::start();
    loop {
        let info: MigrationInfo = client.call("query-migrate", &Empty {})?;
        let status = info.status.unwrap_or(MigrationStatus::None);
        use MigrationStatus::{Cancelled, Completed, Failed, None as NotStarted};
        if matches!(status, Completed | Cancelled | Failed | NotStarted) {
            return Ok(info);
        }
        show(&info, status, &mut speed, bar);
        match console.interrupts() {
            0 => {}
            1 if !cancelling => {
                cancelling = true;
                bar.suspend(|| console.say(format_args!("cancelling; Ctrl-C again to leave now")))?;
                client.execute("migrate_cancel", json!({}))?;
            }
            1 => {}
            _ => {
                return Err(CliError::Failed(format!(
                    "left while the migration to {} was being cancelled; see `ferry status --qmp {}`",
                    args.uri,
                    args.connection.qmp.display()
                )));
            }
        }
        client.wait_event(POLL, |event| event.name == "MIGRATION")?;
    }
}

/// The rate of the last while, for servers that do not tell one.
struct Speed {
    since: Stopwatch,
    last: (Duration, i64),
    rate: u64,
}

impl Speed {
    fn start() -> Self {
        Speed { since: Stopwatch::start(), last: (Duration::ZERO, 0), rate: 0 }
    }

    fn update(&mut self, transferred: i64) -> u64 {
        let now = self.since.elapsed();
        let time = now.saturating_sub(self.last.0);
        if time >= Duration::from_millis(500) {
            let count = u64::try_from(transferred.saturating_sub(self.last.1)).unwrap_or(0);
            self.rate = rate_of(count, time);
            self.last = (now, transferred);
        }
        self.rate
    }
}

/// Memory and disks together.
fn sum(info: &MigrationInfo, part: impl Fn(&MigrationStats) -> i64) -> i64 {
    [&info.ram, &info.disk].into_iter().flatten().map(part).fold(0, i64::saturating_add)
}

fn show(info: &MigrationInfo, status: MigrationStatus, speed: &mut Speed, bar: &ProgressBar) {
    let total = sum(info, |s| s.total);
    let remaining = sum(info, |s| s.remaining);
    let measured = speed.update(sum(info, |s| s.transferred));
    bar.set_length(u64::try_from(total).unwrap_or(0));
    bar.set_position(u64::try_from(total.saturating_sub(remaining)).unwrap_or(0));
    let mut message = vec![rate(measured)];
    if status == MigrationStatus::Active {
        message.push(format!("{} left ({})", bytes(remaining), eta(remaining, measured)));
        let round = info.ram.as_ref().map_or(0, |ram| ram.dirty_sync_count);
        message.push(format!("round {round}"));
        if let Some(ms) = info.expected_downtime {
            message.push(format!("predicted downtime {}", millis(ms)));
        }
    } else {
        message.push(status.to_string());
    }
    bar.set_message(message.join("  "));
}

fn completed(
    args: &MigrateArgs,
    info: &MigrationInfo,
    console: &mut Console<'_>,
) -> Result<Outcome> {
    let total = info.total_time.unwrap_or(0);
    let sent = sum(info, |s| s.transferred);
    let average = rate_of(
        u64::try_from(sent).unwrap_or(0),
        Duration::from_millis(u64::try_from(total).unwrap_or(0)),
    );
    console.say(format_args!("migrated: the guest runs at {}", args.uri))?;
    let mut facts = vec![
        ("total time", millis(total)),
        ("downtime", info.downtime.map_or("-".to_owned(), millis)),
        ("sent", bytes(sent)),
        ("average rate", rate(average)),
    ];
    if let Some(ram) = &info.ram {
        facts.push(("guest memory", bytes(ram.total)));
        facts.push(("rounds", ram.dirty_sync_count.to_string()));
        facts.push(("zero pages", ram.duplicate.to_string()));
    }
    if let Some(disk) = &info.disk {
        facts.push(("disks", bytes(disk.total)));
    }
    console.facts(&facts)?;
    let socket = args.connection.qmp.display();
    console.say(format_args!("end the process it left with: ferry quit --qmp {socket}"))?;
    Ok(Outcome::Done)
}

fn cancelled(
    args: &MigrateArgs,
    client: &mut QmpClient,
    console: &mut Console<'_>,
) -> Result<Outcome> {
    let state = guest_state(client);
    console.say(format_args!("cancelled: the migration to {} is off; {state}", args.uri))?;
    Ok(Outcome::Cancelled)
}

fn failed(args: &MigrateArgs, client: &mut QmpClient, info: &MigrationInfo) -> CliError {
    let reason = info.error_desc.as_deref().unwrap_or("no reason given");
    let state = guest_state(client);
    CliError::Failed(format!(
        "the migration to {} failed: {reason}; {state}; check that a ferry started with \
         `--incoming {}` and the same machine options listens there",
        args.uri, args.uri
    ))
}

/// What became of the guest here, in words.
fn guest_state(client: &mut QmpClient) -> String {
    match client.call::<_, StatusInfo>("query-status", &Empty {}) {
        Ok(status) if status.running => "the guest goes on running here".to_owned(),
        Ok(status) => format!("the guest is here and {}", status.status),
        Err(error) => format!("what the guest does is not known: {error}"),
    }
}
