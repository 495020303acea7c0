//! `measure`: how long an image would get.

use clap::Args;
use ferry_block::ExtentKind;
use ferry_block::format::qcow2::create::Preallocation;
use serde_json::json;

use crate::failure::{Failure, Result};
use crate::object::Objects;
use crate::output::{Output, print, print_json};
use crate::qcow2::{Needs, NewQcow2, needs};
use crate::session::{Access, Image, Request, Session};
use crate::size;

/// Arguments of `measure`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    objects: Objects,
    /// Format of the source
    #[arg(short)]
    format: Option<String>,
    /// Format of the image to measure
    #[arg(short = 'O', default_value = "raw")]
    target_format: String,
    /// Options of that format, as key=value,...
    #[arg(short)]
    options: Vec<String>,
    /// Bytes of the disk, instead of a source
    #[arg(long)]
    size: Option<String>,
    /// For people or for programs
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// Also while another program writes to the source
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The source is named by options
    #[arg(long)]
    image_opts: bool,
    /// The source
    filename: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    let size = arguments.size.as_deref().map(size::parse).transpose()?;
    let needs = Session::run(async |session| {
        arguments.objects.load(session).await?;
        match (&arguments.filename, size) {
            (Some(name), None) => {
                let access = if arguments.force_share { Access::Share } else { Access::Read };
                let read = Request::read(name, arguments.format.as_deref());
                let request = Request { image_opts: arguments.image_opts, access, ..read };
                let image = session.open(&request).await?;
                measure(arguments, image.len(), Some(&image)).await
            }
            (None, Some(size)) => measure(arguments, size, None).await,
            (Some(_), Some(_)) => {
                Err(Failure::new("--size N cannot be used together with a filename."))
            }
            (None, None) => Err(Failure::new("Either --size N or one filename must be specified.")),
        }
    })?;
    let Needs { required, fully_allocated } = needs;
    match arguments.output {
        Output::Json => {
            print_json(&json!({"required": required, "fully-allocated": fully_allocated}))?;
        }
        Output::Human => {
            print(format!("required size: {required}\nfully allocated size: {fully_allocated}"))?;
        }
    }
    Ok(0)
}

async fn measure(arguments: &Arguments, size: u64, source: Option<&Image>) -> Result<Needs> {
    match arguments.target_format.as_str() {
        "raw" => Ok(Needs { required: size, fully_allocated: size }),
        "qcow2" => {
            let new = NewQcow2::parse(&arguments.options, None)?;
            let cluster = new.options.geometry()?.cluster_size();
            let full =
                matches!(new.options.preallocation(), Preallocation::Falloc | Preallocation::Full);
            let data = match source {
                _ if full => u64::MAX,
                // Nobody knows how much of it will lie below, too.
                Some(_) if new.options.backing_file.is_some() => u64::MAX,
                Some(source) => data_in_clusters(source, cluster).await?,
                None => 0,
            };
            needs(&new.options, size, data)
        }
        other => Err(Failure::new(format!("Unknown file format '{other}'"))),
    }
}

/// Bytes of the clusters that hold data.
async fn data_in_clusters(image: &Image, cluster: u64) -> Result<u64> {
    let (mut at, mut data) = (0, 0);
    while at < image.len() {
        let extent = image.node.map_above(None, at..image.len()).await?;
        let mut end = at + extent.len;
        if extent.kind == ExtentKind::Data {
            end = end.next_multiple_of(cluster);
            data += end - at / cluster * cluster;
        }
        at = end;
    }
    Ok(data)
}
