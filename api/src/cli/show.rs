//! `ferry jobs` and `ferry status`: what there is, in a few lines.

use std::collections::BTreeMap;

use super::{
    CommandArgs, Console, Outcome, Result, connect,
    console::{bytes, millis, rate},
};
use crate::{
    command::{BlockInfo, BlockJobInfo, JobInfo, MigrationInfo, StatusInfo},
    schema::Empty,
};

pub(super) fn jobs(args: &CommandArgs, console: &mut Console<'_>) -> Result<Outcome> {
    let mut client = connect(&args.connection)?;
    let jobs: Vec<JobInfo> = client.call("query-jobs", &Empty {})?;
    let block_jobs: Vec<BlockJobInfo> = client.call("query-block-jobs", &Empty {})?;
    let details: BTreeMap<_, _> = block_jobs.iter().map(|job| (job.device.as_str(), job)).collect();
    if jobs.is_empty() {
        console.say(format_args!("no jobs"))?;
        return Ok(Outcome::Done);
    }
    let row = |job: &JobInfo| {
        let detail = details.get(job.id.as_str());
        [
            job.id.clone(),
            job.kind.to_string(),
            job.status.to_string(),
            format!("{} of {}", bytes(job.current_progress), bytes(job.total_progress)),
            detail.map_or("-".to_owned(), |d| rate(u64::try_from(d.speed).unwrap_or(0))),
            detail.map_or("-".to_owned(), |d| d.io_status.to_string()),
            job.error.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    console.table(["JOB", "TYPE", "STATUS", "DONE", "LIMIT", "I/O", "ERROR"], &rows)?;
    Ok(Outcome::Done)
}

pub(super) fn status(args: &CommandArgs, console: &mut Console<'_>) -> Result<Outcome> {
    let mut client = connect(&args.connection)?;
    let guest: StatusInfo = client.call("query-status", &Empty {})?;
    let disks: Vec<BlockInfo> = client.call("query-block", &Empty {})?;
    let jobs: Vec<JobInfo> = client.call("query-jobs", &Empty {})?;
    let migration: MigrationInfo = client.call("query-migrate", &Empty {})?;
    let package = &client.greeting().version.package;
    console.say(format_args!("guest at {}: {}", args.connection.qmp.display(), guest.status))?;
    console.facts(&[
        ("run by", package.trim().to_owned()),
        ("jobs", jobs.len().to_string()),
        ("migration", describe_migration(&migration)),
    ])?;
    if disks.is_empty() {
        return Ok(Outcome::Done);
    }
    let rows: Vec<_> = disks.iter().map(disk_row).collect();
    console.table(["DISK", "SIZE", "MODE", "I/O", "FILE"], &rows)?;
    Ok(Outcome::Done)
}

fn describe_migration(info: &MigrationInfo) -> String {
    let Some(status) = info.status else { return "none".to_owned() };
    let mut text = status.to_string();
    if let Some(ms) = info.downtime {
        text += &format!(", downtime {}", millis(ms));
    }
    if let Some(error) = &info.error_desc {
        text += &format!(": {error}");
    }
    text
}

fn disk_row(disk: &BlockInfo) -> [String; 5] {
    let node = disk.inserted.as_ref();
    [
        disk.device.clone(),
        node.map_or("-".to_owned(), |n| bytes(n.image.virtual_size)),
        node.map_or("-", |n| if n.ro { "read-only" } else { "read-write" }).to_owned(),
        disk.io_status.map_or("-".to_owned(), |s| s.to_string()),
        node.map_or("-".to_owned(), |n| n.file.clone()),
    ]
}
