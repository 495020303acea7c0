//! `snapshot`: the snapshots in an image.

use clap::Args;
use serde_json::{Map, Value};

use crate::failure::{Failure, Result};
use crate::output::print;
use crate::qcow2;
use crate::session::{Access, Request, Session};

/// Arguments of `snapshot`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// List them
    #[arg(short, required = true)]
    list: bool,
    /// Say nothing
    #[arg(short)]
    quiet: bool,
    /// Also while another program writes to the image
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image is named by options
    #[arg(long)]
    image_opts: bool,
    /// The image
    filename: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    Session::run(async |session| {
        let access = if arguments.force_share { Access::Share } else { Access::Read };
        let read = Request::read(&arguments.filename, None);
        let request = Request { image_opts: arguments.image_opts, access, ..read };
        let (format, file) = session.open_container(&request).await?;
        if format != "qcow2" {
            return Err(Failure::new(format!("images of format '{format}' have no snapshots")));
        }
        let mut info = Map::new();
        qcow2::describe(&mut info, file.root.edge(), &arguments.filename).await?;
        if let Some(snapshots) = info.get("snapshots").and_then(Value::as_array) {
            print(format!("Snapshot list:\n{}", qcow2::snapshot_rows(snapshots).join("\n")))?;
        }
        Ok(0)
    })
}
