//! `convert`: copies images, one after the other, into one.
//!
//! Here are the arguments and what surrounds the copy; [`copy`] moves the bytes.

mod bitmaps;
mod copy;

use clap::Args;
use ferry_block::{BlockNode, ChildRole, RingChoice};

use crate::create::{self, New};
use crate::failure::{Failure, Result};
use crate::keyval;
use crate::naming::Copying;
use crate::option_help::{self, Use};
use crate::progress::Progress;
use crate::session::{Cache, Image, Request, Session};
use crate::size;

pub(crate) use copy::{Copy, Source};

/// Requests at once, as in QEMU.
const DEFAULT_DEPTH: u16 = 8;
/// Shortest run of zeroes that is worth a hole, bytes.
const DEFAULT_SPARSE: u64 = 4096;
/// What other lengths of it must be multiples of, and no longer than, bytes.
const SECTOR: u64 = 512;
const MAX_SPARSE: u64 = 16 << 20;

/// Arguments of `convert`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    sources: Copying,
    /// Format of the target
    #[arg(short = 'O', default_value = "raw")]
    target_format: String,
    /// Options of the target's format, as key=value,...
    #[arg(short)]
    options: Vec<String>,
    /// The target's image below; what it holds is not copied
    #[arg(short = 'B')]
    backing: Option<String>,
    /// Format of the target's image below
    #[arg(short = 'F')]
    backing_format: Option<String>,
    /// Compress the target
    #[arg(short)]
    compress: bool,
    /// The target is there already
    #[arg(short = 'n')]
    no_create: bool,
    /// The target reads as zeroes
    #[arg(long)]
    target_is_zero: bool,
    /// Requests at once
    #[arg(short = 'm')]
    depth: Option<u16>,
    /// Write in any order
    #[arg(short = 'W')]
    any_order: bool,
    /// Shortest run of zeroes to leave out; 0 writes everything
    #[arg(short = 'S')]
    sparse: Option<String>,
    /// Let the kernel copy from file to file, where it can; zeroes are not looked for then
    #[arg(short = 'C')]
    offload: bool,
    /// Bytes a second at most
    #[arg(short)]
    rate: Option<String>,
    /// Cache mode of the target
    #[arg(short, default_value = "unsafe")]
    target_cache: String,
    /// Cache mode of the sources
    #[arg(short = 'T', default_value = "writeback")]
    source_cache: String,
    /// Go on after errors of the sources, with zeroes
    #[arg(long)]
    salvage: bool,
    /// Copy the source's bitmaps, too
    #[arg(long)]
    bitmaps: bool,
    /// Leave out bitmaps that cannot be relied on
    #[arg(long)]
    skip_broken_bitmaps: bool,
    /// Show a progress bar
    #[arg(short)]
    progress: bool,
    /// Say nothing
    #[arg(short)]
    quiet: bool,
    /// The target is named by options
    #[arg(long)]
    target_image_opts: bool,
    /// The sources, then the target
    #[arg(required_unless_present = "options")]
    filenames: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    if option_help::is_asked(&arguments.options) {
        return option_help::show(&arguments.target_format, Use::Create).map(|()| 0);
    }
    check(arguments)?;
    let caches = [&arguments.source_cache, &arguments.target_cache];
    let direct = caches.map(|name| Cache::parse(name)).into_iter().collect::<Result<Vec<_>>>()?;
    let ring = match direct.iter().any(|cache| cache.direct) {
        true => RingChoice::Auto,
        false => RingChoice::ThreadPool,
    };
    Session::run_on(ring, arguments.sources.objects(), async |session| {
        let (target, sources) = match arguments.filenames.split_last() {
            Some(split) if !split.1.is_empty() => split,
            _ => return Err(Failure::new("Must specify image file name")),
        };
        if arguments.sources.has_snapshot() && sources.len() > 1 {
            return Err(Failure::new("No support for concatenating multiple snapshots"));
        }
        let layered = has_backing(arguments);
        if layered && sources.len() > 1 {
            return Err(Failure::new(
                "Having a backing file for the target makes no sense when concatenating multiple \
                 input images",
            ));
        }
        let sources = open_sources(session, arguments, sources).await?;
        // What cannot be copied is said before there is a target.
        let bitmaps = if arguments.bitmaps {
            bitmaps::load(&sources, arguments.skip_broken_bitmaps).await?
        } else {
            Vec::new()
        };
        let len = sources.iter().map(Image::len).sum();
        let (target, is_zero) = open_target(session, arguments, target, len).await?;
        if target.len() < len {
            return Err(Failure::new(format!(
                "{}: output file is smaller than input file",
                target.name
            )));
        }
        bitmaps::check(&bitmaps, target.len())?;
        let base = sources.first().filter(|_| layered).and_then(|source| base(source, &target));
        let copy = Copy {
            sources: sources.iter().map(|image| Source::new(image, base.clone())).collect(),
            target: target.root.clone(),
            len,
            depth: arguments.depth.unwrap_or(DEFAULT_DEPTH),
            ordered: !arguments.any_order,
            compressed: arguments.compress,
            cluster: u64::from(target.node.limits().discard_granularity),
            sparse: arguments.sparse.as_deref().map_or(Ok(DEFAULT_SPARSE), sparse)?,
            offload: arguments.offload,
            // An empty image shows what lies below it.
            zero: is_zero && !layered,
            salvage: arguments.salvage,
            rate: arguments.rate.as_deref().map(size::parse).transpose()?,
        };
        let progress = Progress::new(arguments.progress, len);
        copy.run(session, &progress).await?;
        if !Cache::parse(&arguments.target_cache)?.no_flush {
            target.root.flush().await?;
        }
        progress.finish();
        if arguments.bitmaps {
            bitmaps::store(session, bitmaps, &target)?;
        }
        Ok(0)
    })
}

/// Refuses arguments that do not go together.
fn check(arguments: &Arguments) -> Result<()> {
    let refuse = |text: &str| Err(Failure::new(text));
    if arguments.target_is_zero && !arguments.no_create {
        return refuse("--target-is-zero requires use of -n flag");
    }
    if arguments.target_is_zero && has_backing(arguments) {
        return refuse("Cannot use --target-is-zero when the destination image has a backing file");
    }
    if arguments.target_image_opts && !arguments.no_create {
        return refuse("--target-image-opts requires use of -n flag");
    }
    if arguments.no_create && !arguments.options.is_empty() {
        return refuse("-o has no effect when skipping image creation");
    }
    let preallocates = option(arguments, "preallocation").is_some_and(|mode| mode != "off");
    if arguments.compress && preallocates {
        return refuse("Compression and preallocation not supported at the same time");
    }
    match (arguments.offload, arguments.compress, &arguments.sparse, arguments.salvage) {
        (true, true, ..) => return refuse("Cannot enable copy offloading when -c is used"),
        (true, _, Some(_), _) => return refuse("Cannot enable copy offloading when -S is used"),
        (true, _, _, true) => return refuse("Cannot use copy offloading in salvaging mode"),
        _ => {}
    }
    let has_format =
        arguments.backing_format.is_some() || option(arguments, "backing_fmt").is_some();
    if arguments.backing.is_some() && !has_format && !arguments.no_create {
        return refuse("Use of backing file requires explicit backing format");
    }
    if arguments.compress && arguments.target_format != "qcow2" {
        return refuse("Compression not supported for this file format");
    }
    if arguments.bitmaps && !arguments.no_create && arguments.target_format != "qcow2" {
        let format = &arguments.target_format;
        return refuse(&format!("Format driver '{format}' does not support bitmaps"));
    }
    if arguments.skip_broken_bitmaps && !arguments.bitmaps {
        return refuse("Use of --skip-broken-bitmaps requires --bitmaps");
    }
    match arguments.depth {
        Some(depth) if !(1..=16).contains(&depth) => {
            refuse("Invalid number of coroutines. Allowed number of coroutines is between 1 and 16")
        }
        _ => Ok(()),
    }
}

/// The shortest run of zeroes to leave out.
fn sparse(text: &str) -> Result<u64> {
    let bytes = size::parse(text)?;
    if bytes.is_multiple_of(SECTOR) && bytes <= MAX_SPARSE {
        return Ok(bytes);
    }
    Err(Failure::new(format!(
        "Invalid buffer size for sparse output specified. Valid sizes are multiples of {SECTOR} up \
         to {MAX_SPARSE}. Select 0 to disable sparse detection (fully allocates output)."
    )))
}

async fn open_sources(
    session: &Session,
    arguments: &Arguments,
    names: &[String],
) -> Result<Vec<Image>> {
    let cache = Cache::parse(&arguments.source_cache)?;
    let mut sources = Vec::new();
    for name in names {
        let request = Request { cache, ..arguments.sources.request(name) };
        sources.push(session.open(&request).await?);
    }
    Ok(sources)
}

/// The target, new unless it is there already, and whether it has zeroes everywhere.
async fn open_target(
    session: &Session,
    arguments: &Arguments,
    name: &str,
    len: u64,
) -> Result<(Image, bool)> {
    let mut is_zero = arguments.target_is_zero;
    if !arguments.no_create {
        let new = New {
            name,
            format: &arguments.target_format,
            options: &arguments.options,
            size: Some(len),
            backing: arguments.backing.as_deref(),
            backing_format: arguments.backing_format.as_deref(),
            unsafe_backing: false,
            quiet: true,
        };
        is_zero = create::create(session, &new).await?;
    }
    let cache = Cache::parse(&arguments.target_cache)?;
    let opts = arguments.target_image_opts;
    let format = &arguments.target_format;
    let target = create::open_target(session, name, format, cache, opts).await?;
    let has_data_file = || target.node.children().iter().any(|edge| edge.role() == ChildRole::Data);
    if arguments.compress && has_data_file() {
        return Err(Failure::new("Compression not supported with an external data file"));
    }
    Ok((target, is_zero))
}

/// Whether the target gets an image below it, by an argument or by an option of its format.
fn has_backing(arguments: &Arguments) -> bool {
    arguments.backing.is_some() || option(arguments, "backing_file").is_some()
}

/// What `-o` says of a key; the last word on it counts.
fn option(arguments: &Arguments, wanted: &str) -> Option<String> {
    let mut options = arguments.options.iter().flat_map(|list| keyval::pairs(list));
    options.rfind(|(key, _)| key == wanted).map(|(_, value)| value)
}

/// The image of the source's chain from which on nothing is copied: that which lies below the target,
/// too, or under another name the next one below the source.
fn base(source: &Image, target: &Image) -> Option<BlockNode> {
    let next = source.node.backing();
    let wanted = target.node.backing().and_then(|node| node.filename());
    let mut chain = std::iter::successors(next.clone(), BlockNode::backing);
    chain.find(|node| node.filename() == wanted).or(next)
}
