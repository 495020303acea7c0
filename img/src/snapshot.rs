//! `snapshot`: the snapshots in an image.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use ferry_block::Edge;
use ferry_block::format::qcow2::snapshot::{
    Moment, SnapshotRef, apply_snapshot, create_snapshot, delete_snapshot,
};
use serde_json::{Map, Value};

use crate::failure::{Failure, Result};
use crate::naming::Reading;
use crate::output::print;
use crate::qcow2;
use crate::session::{Access, Session};

/// Arguments of `snapshot`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    image: Reading,
    #[command(flatten)]
    verb: Verb,
    /// Say nothing
    #[arg(short)]
    quiet: bool,
    /// The image
    filename: String,
}

/// What to do.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Verb {
    /// List the snapshots
    #[arg(short)]
    list: bool,
    /// Take one of this name
    #[arg(short)]
    create: Option<String>,
    /// Make the disk what it was in the one with this id or name
    #[arg(short)]
    apply: Option<String>,
    /// Delete the one of this name
    #[arg(short)]
    delete: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    let verb = &arguments.verb;
    Session::run(arguments.image.objects(), async |session| {
        let changes = verb.create.is_some() || verb.apply.is_some() || verb.delete.is_some();
        let access = changes.then_some(Access::Resize);
        let request = arguments.image.request(&arguments.filename, access);
        let (format, image) = session.open_container(&request).await?;
        if format != "qcow2" {
            return Err(Failure::new(format!("images of format '{format}' have no snapshots")));
        }
        let file = image.root.edge();
        let (what, name, result) = if let Some(name) = &verb.create {
            ("create", name, create_snapshot(file, name, now()).await.map(drop))
        } else if let Some(name) = &verb.apply {
            ("apply", name, apply_snapshot(file, name).await)
        } else if let Some(name) = &verb.delete {
            // By its name only, as in QEMU: another snapshot may have that for its id.
            let which = SnapshotRef::Exact { id: None, name: Some(name.clone()) };
            ("delete", name, delete_snapshot(file, &which).await)
        } else {
            return list(file, &arguments.filename).await;
        };
        result.map_err(|error| {
            Failure::from(error).context(format!("Could not {what} snapshot '{name}'"))
        })?;
        file.flush().await?;
        Ok(0)
    })
}

async fn list(file: &Edge, name: &str) -> Result<u8> {
    let mut info = Map::new();
    qcow2::describe(&mut info, file, name).await?;
    if let Some(snapshots) = info.get("snapshots").and_then(Value::as_array) {
        print(format!("Snapshot list:\n{}", qcow2::snapshot_rows(snapshots).join("\n")))?;
    }
    Ok(0)
}

/// The time of day.
fn now() -> Moment {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment {
        seconds: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        nanoseconds: now.subsec_nanos(),
        vm_clock_nsec: 0,
    }
}
