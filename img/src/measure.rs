//! `measure`: how long an image would get.

use clap::Args;
use ferry_block::format::qcow2::Qcow2Driver;
use ferry_block::format::qcow2::bitmap::load_directory;
use ferry_block::format::qcow2::create::Preallocation;
use ferry_block::format::qcow2::header::{Header, Version};
use serde_json::json;

use crate::create::RawOptions;
use crate::failure::{Failure, Result};
use crate::map::{Known, entry};
use crate::naming::Copying;
use crate::output::{Output, print, print_json};
use crate::qcow2::{Needs, NewQcow2, bitmap_needs, needs};
use crate::session::{Image, Session};
use crate::size;

/// Arguments of `measure`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Copying,
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
    /// The source
    filename: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    let size = arguments.size.as_deref().map(size::parse).transpose()?;
    if arguments.filename.is_none() && arguments.source.describes_source() {
        return Err(Failure::new("--image-opts, -f, and -l require a filename argument."));
    }
    let needs = Session::run(arguments.source.objects(), async |session| {
        match (&arguments.filename, size) {
            (Some(name), None) => {
                let image = session.open(&arguments.source.request(name)).await?;
                measure(arguments, image.len(), Some(&image)).await
            }
            (None, Some(size)) => measure(arguments, size, None).await,
            (Some(_), Some(_)) => {
                Err(Failure::new("--size N cannot be used together with a filename."))
            }
            (None, None) => Err(Failure::new("Either --size N or one filename must be specified.")),
        }
    })?;
    let Needs { required, fully_allocated, bitmaps } = needs;
    match arguments.output {
        Output::Json => {
            let mut json = json!({"required": required, "fully-allocated": fully_allocated});
            if let Some(bytes) = bitmaps {
                json["bitmaps"] = bytes.into();
            }
            print_json(&json)?;
        }
        Output::Human => {
            print(format!("required size: {required}\nfully allocated size: {fully_allocated}"))?;
            if let Some(bytes) = bitmaps {
                print(format!("bitmaps size: {bytes}"))?;
            }
        }
    }
    Ok(0)
}

async fn measure(arguments: &Arguments, size: u64, source: Option<&Image>) -> Result<Needs> {
    match arguments.target_format.as_str() {
        "raw" => {
            RawOptions::parse(&arguments.options)?;
            // Disks are whole sectors.
            let size = size.next_multiple_of(512);
            Ok(Needs { required: size, fully_allocated: size, bitmaps: None })
        }
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
            let mut needs = needs(&new.options, size, data)?;
            if let Some(source) = source.filter(|_| new.options.version >= Version::V3) {
                needs.bitmaps = bitmaps_of(source, cluster).await?;
            }
            Ok(needs)
        }
        other => Err(Failure::new(format!("Unknown file format '{other}'"))),
    }
}

/// Bytes of the clusters that hold data. Holes in a file that has many are none.
async fn data_in_clusters(image: &Image, cluster: u64) -> Result<u64> {
    let (mut at, mut data, mut known) = (0, 0, Known::default());
    while at < image.len() {
        let found = entry(&image.node, &mut known, at, image.len()).await?;
        let mut end = at + found.len;
        if found.data && !found.zero {
            end = end.next_multiple_of(cluster);
            data += end - at / cluster * cluster;
        }
        at = end;
    }
    Ok(data)
}

/// What the bitmaps in an image take in another; `None` if its format can have none.
async fn bitmaps_of(image: &Image, cluster: u64) -> Result<Option<u64>> {
    let Some(driver) = image.node.driver::<Qcow2Driver>() else { return Ok(None) };
    // Of the image, also when one of its snapshots is shown, which has none.
    let header = Header::load(&driver.file()).await?;
    if header.geometry.version() < Version::V3 {
        return Ok(None);
    }
    let bitmaps = match header.bitmaps() {
        Some(extension) => load_directory(&driver.file(), extension, header.geometry).await?,
        None => Vec::new(),
    };
    let sizes =
        bitmaps.iter().map(|bitmap| (bitmap.name.len() as u64, 1 << bitmap.granularity_bits));
    Ok(Some(bitmap_needs(sizes, image.len(), cluster)))
}
