//! `ferry mirror`: opens the target, starts the job, shows how it goes, and finishes it.

mod target;

use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::json;

use self::target::Target;
use super::{
    CliError, Console, Finish, MirrorArgs, Outcome, POLL, Result, connect,
    console::{byte_bar, bytes, eta, millis, rate, rate_of},
};
use crate::{
    client::{
        QmpClient,
        clock::{Deadline, Stopwatch},
    },
    command::{
        BlockInfo, BlockJobCancel, BlockJobDevice, BlockJobInfo, BlockdevMirror, IoStatus,
        JobStatus, MirrorSyncMode,
    },
    event::Event,
    schema::Empty,
};

/// How long the job may take to end once it was told to.
const END_TIMEOUT: Duration = Duration::from_secs(600);

/// How long it may take after its end until it has let go of everything.
const GONE_TIMEOUT: Duration = Duration::from_secs(10);

/// How the job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// As it should. The job is over, or with [`Finish::Manual`] it is READY.
    Well,
    Failed(String),
    Cancelled,
}

pub(super) fn run(args: &MirrorArgs, console: &mut Console<'_>) -> Result<Outcome> {
    let mut client = connect(&args.connection)?;
    let disk = find_disk(&mut client, &args.device)?;
    let old_file = disk.inserted.as_ref().map_or("-".to_owned(), |node| node.file.clone());
    let target = Target::open(args, &disk, &mut client)?;
    let job = format!("mirror-{}", args.device);
    let watch = Stopwatch::start();
    let result = copy(args, &job, &target, &mut client, console);
    let end = result?;
    let elapsed = watch.elapsed();
    match (&end, args.finish) {
        (End::Well, Finish::Manual) => {}
        (End::Well, Finish::Pivot) => wait_gone(&job, &mut client)?,
        (End::Well, Finish::Keep) => {
            wait_gone(&job, &mut client)?;
            target.close(&mut client);
        }
        (End::Failed(_) | End::Cancelled, _) => {
            wait_gone(&job, &mut client)?;
            target.abandon(&mut client);
        }
    }
    let done = report(args, &job, &target, &old_file, end, elapsed);
    let (outcome, text) = done?;
    console.say(format_args!("{text}"))?;
    Ok(outcome)
}

/// Starts the job and sees it to its end. Whatever fails, the job does not stay behind.
fn copy(
    args: &MirrorArgs,
    job: &str,
    target: &Target,
    client: &mut QmpClient,
    console: &mut Console<'_>,
) -> Result<End> {
    if let Err(error) = client.call::<_, Empty>("blockdev-mirror", &request(args, job, target)) {
        target.abandon(client);
        return Err(error.into());
    }
    let bar = byte_bar(&format!("mirroring {}", args.device));
    let end = watch(args, job, client, console, &bar);
    bar.finish_and_clear();
    end
}

fn request(args: &MirrorArgs, job: &str, target: &Target) -> BlockdevMirror {
    BlockdevMirror {
        job_id: Some(job.to_owned()),
        device: args.device.clone(),
        target: target.node().to_owned(),
        replaces: None,
        sync: MirrorSyncMode::Full,
        speed: Some(i64::try_from(args.speed).unwrap_or(i64::MAX)),
        granularity: None,
        buf_size: None,
        on_source_error: None,
        on_target_error: None,
        filter_node_name: None,
        copy_mode: Some(args.copy_mode.into()),
        auto_finalize: None,
        auto_dismiss: None,
    }
}

/// The disk of that name, or a message that names those there are.
fn find_disk(client: &mut QmpClient, name: &str) -> Result<BlockInfo> {
    let disks: Vec<BlockInfo> = client.call("query-block", &Empty {})?;
    let called = |disk: &BlockInfo| {
        let node = disk.inserted.as_ref().and_then(|node| node.node_name.as_deref());
        disk.device == name || node == Some(name)
    };
    let names: Vec<_> = disks.iter().map(|disk| disk.device.clone()).collect();
    disks.into_iter().find(called).ok_or_else(|| {
        CliError::Failed(format!("the guest has no disk '{name}'; it has: {}", names.join(", ")))
    })
}

fn watch(
    args: &MirrorArgs,
    job: &str,
    client: &mut QmpClient,
    console: &mut Console<'_>,
    bar: &ProgressBar,
) -> Result<End> {
    let started = Stopwatch::start();
    let mut told = false;
    loop {
        while let Some(event) = client.next_event(POLL)? {
            if event.data.get("device") != Some(&json!(job)) {
                continue;
            }
            if let Some(end) = ended(&event) {
                return Ok(end);
            }
            if event.name == "BLOCK_JOB_READY" && !told {
                if args.finish == Finish::Manual {
                    return Ok(End::Well);
                }
                told = true;
                finish(args.finish, job, client)?;
                bar.set_message("finishing");
            }
        }
        if console.interrupts() > 0 {
            let text = format_args!("cancelling; Ctrl-C again to leave now");
            bar.suspend(|| console.say(text))?;
            return cancel(job, client, console);
        }
        let jobs: Vec<BlockJobInfo> = client.call("query-block-jobs", &Empty {})?;
        if let Some(info) = jobs.iter().find(|info| info.device == job).filter(|_| !told) {
            show(info, started.elapsed(), bar);
        }
    }
}

/// What an event says about the end of the job.
fn ended(event: &Event) -> Option<End> {
    match event.name.as_str() {
        "BLOCK_JOB_CANCELLED" => Some(End::Cancelled),
        "BLOCK_JOB_COMPLETED" => Some(match event.data.get("error").and_then(|e| e.as_str()) {
            None => End::Well,
            Some(error) => End::Failed(error.to_owned()),
        }),
        _ => None,
    }
}

fn finish(how: Finish, job: &str, client: &mut QmpClient) -> Result<()> {
    let device = job.to_owned();
    match how {
        Finish::Pivot => {
            client.call::<_, Empty>("block-job-complete", &BlockJobDevice { device })?;
        }
        // After READY a cancel that is not forced leaves a consistent copy.
        Finish::Keep => {
            let cancel = BlockJobCancel { device, force: None };
            client.call::<_, Empty>("block-job-cancel", &cancel)?;
        }
        Finish::Manual => {}
    }
    Ok(())
}

fn cancel(job: &str, client: &mut QmpClient, console: &Console<'_>) -> Result<End> {
    let cancel = BlockJobCancel { device: job.to_owned(), force: Some(true) };
    let deadline = Deadline::after(END_TIMEOUT);
    // It may have ended by itself a moment ago; then the event is on its way.
    let refused = client.call::<_, Empty>("block-job-cancel", &cancel).err();
    let device = json!(job);
    let mine = |e: &Event| e.data.get("device") == Some(&device) && ended(e).is_some();
    while deadline.remaining().is_some() && console.interrupts() < 2 {
        if let Some(event) = client.wait_event(POLL, mine)? {
            return Ok(ended(&event).unwrap_or(End::Cancelled));
        }
    }
    Err(refused.map_or_else(
        || CliError::Failed(format!("left before job {job} ended; see `ferry jobs`")),
        CliError::from,
    ))
}

/// Waits until the job holds its nodes no longer.
fn wait_gone(job: &str, client: &mut QmpClient) -> Result<()> {
    let (id, null) = (json!(job), json!(JobStatus::Null));
    let gone = |e: &Event| {
        let data = |name| e.data.get(name);
        e.name == "JOB_STATUS_CHANGE" && data("id") == Some(&id) && data("status") == Some(&null)
    };
    client.wait_event(GONE_TIMEOUT, gone)?;
    Ok(())
}

fn show(info: &BlockJobInfo, elapsed: Duration, bar: &ProgressBar) {
    bar.set_length(u64::try_from(info.len).unwrap_or(0));
    let offset = u64::try_from(info.offset).unwrap_or(0);
    bar.set_position(offset);
    if info.paused && info.io_status != IoStatus::Ok {
        let why = if info.io_status == IoStatus::NoSpace { "no space left" } else { "I/O error" };
        bar.set_message(format!("paused: {why}; mend it, then block-job-resume {}", info.device));
        return;
    }
    let average = rate_of(offset, elapsed);
    let left = info.len.saturating_sub(info.offset);
    bar.set_message(format!("{}  {} left ({})", rate(average), bytes(left), eta(left, average)));
}

/// What to tell about the end.
fn report(
    args: &MirrorArgs,
    job: &str,
    target: &Target,
    old_file: &str,
    end: End,
    elapsed: Duration,
) -> Result<(Outcome, String)> {
    let (device, path) = (&args.device, target.path().display());
    let time = millis(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX));
    let text = match (end, args.finish) {
        (End::Failed(error), _) => {
            return Err(CliError::Failed(format!(
                "mirroring {device} to {path} failed: {error}; the guest goes on with {old_file}"
            )));
        }
        (End::Cancelled, _) => {
            let text = format!("cancelled: {device} stays on {old_file}; {path} is no copy of it");
            return Ok((Outcome::Cancelled, text));
        }
        (End::Well, Finish::Pivot) => {
            let node = target.node();
            format!(
                "done in {time}: {device} is on {path} now (node {node}), no longer on {old_file}"
            )
        }
        (End::Well, Finish::Keep) => {
            format!("done in {time}: {path} is a consistent copy of {device}")
        }
        (End::Well, Finish::Manual) => {
            let qmp = format!("ferry qmp --qmp {}", args.connection.qmp.display());
            let with = format!("'{{\"device\":\"{job}\"}}'");
            format!(
                "READY after {time}: {device} and {path} are kept equal by job {job}\n  \
                 go on with the copy:       {qmp} block-job-complete {with}\n  \
                 keep a copy of that moment: {qmp} block-job-cancel {with}"
            )
        }
    };
    Ok((Outcome::Done, text))
}
