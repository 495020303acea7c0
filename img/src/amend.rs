//! `amend`: other options of an image that is there.

use clap::Args;
use ferry_block::format::qcow2::amend::{AmendOptions, amend};
use ferry_block::format::qcow2::header::{Header, Version};

use crate::failure::{Failure, Result};
use crate::keyval::{self, boolean};
use crate::naming::Naming;
use crate::option_help::{self, Use};
use crate::session::{Access, Request, Session};
use crate::size;

/// Options that only a new image can have.
const CREATION_ONLY: [&str; 6] = [
    "cluster_size",
    "extended_l2",
    "compression_type",
    "preallocation",
    "encryption",
    "encrypt.format",
];

/// Arguments of `amend`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    image: Naming,
    /// Options of the format, as key=value,...
    #[arg(short, required = true)]
    options: Vec<String>,
    /// Accepted: nothing here needs force
    #[arg(long)]
    force: bool,
    /// Accepted: there is no copy to show the progress of
    #[arg(short)]
    progress: bool,
    /// Say nothing
    #[arg(short)]
    quiet: bool,
    /// Accepted: the tables are always written through
    #[arg(short)]
    t: Option<String>,
    /// The image
    #[arg(required_unless_present = "options")]
    filename: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    if option_help::is_asked(&arguments.options) {
        let format = arguments.image.format().unwrap_or("qcow2");
        return option_help::show(format, Use::Amend).map(|()| 0);
    }
    let name = arguments.filename.as_deref();
    let name = name.ok_or_else(|| Failure::new("Expecting one image file name"))?;
    Session::run(&arguments.image.objects, async |session| {
        let request = arguments.image.request(name, Access::Resize);
        let (format, image) = session.open_container(&request).await?;
        if format != "qcow2" {
            let text = format!("Format driver '{format}' does not support option amendment");
            return Err(Failure::new(text));
        }
        let file = image.root.edge();
        let header = Header::load(file).await?;
        let (options, size) = parse(&arguments.options)?;
        let failed = |error| Failure::from(error).context("Error while amending options");
        amend(file, &options).await.map_err(failed)?;
        file.flush().await?;
        // As for QEMU, no bytes at all are no wish.
        if let Some(size) = size.filter(|size| *size != 0 && *size != header.size) {
            session.forget(image);
            let request = Request { format: Some("qcow2"), ..request };
            session.open(&request).await?.root.resize(size).await?;
        }
        Ok(0)
    })
}

/// What is to change, and the new length.
fn parse(lists: &[String]) -> Result<(AmendOptions, Option<u64>)> {
    let mut options = AmendOptions::default();
    let mut size = None;
    for (key, value) in lists.iter().flat_map(|list| keyval::pairs(list)) {
        let bad = || Failure::new(format!("Invalid parameter '{value}' for '{key}'"));
        match key.as_str() {
            "compat" => {
                options.version = Some(match value.as_str() {
                    "0.10" | "v2" => Version::V2,
                    "1.1" | "v3" => Version::V3,
                    _ => return Err(bad()),
                });
            }
            "lazy_refcounts" => options.lazy_refcounts = Some(boolean(&key, &value)?),
            "refcount_bits" => {
                options.refcount_bits = Some(value.parse().ok().ok_or_else(bad)?);
            }
            "backing_file" | "backing_fmt" => {
                let text = "Cannot amend the backing file\nYou can use 'ferry img rebase' instead.";
                return Err(Failure::new(text));
            }
            "data_file" => options.data_file = Some(value),
            "data_file_raw" => options.data_file_raw = Some(boolean(&key, &value)?),
            "size" => size = Some(size::parse(&value)?),
            known if CREATION_ONLY.contains(&known) => {
                let text = format!(
                    "Invalid parameter '{known}'\nThis option is only supported for image creation"
                );
                return Err(Failure::new(text));
            }
            _ => return Err(Failure::new(format!("Invalid parameter '{key}'"))),
        }
    }
    Ok((options, size))
}
