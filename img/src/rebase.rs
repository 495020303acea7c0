//! `rebase`: another image below.

use std::ops::Range;

use clap::Args;
use ferry_block::format::qcow2::Qcow2Driver;
use ferry_block::format::qcow2::amend::{AmendOptions, Backing, amend};
use ferry_block::{BlockNode, Edge, ExtentKind, IoBuf, WriteFlags};

use crate::failure::{Failure, Result};
use crate::naming::Reading;
use crate::progress::Progress;
use crate::qcow2::beside;
use crate::session::{Access, Cache, Image, Request, Session};

/// Bytes that are compared at once.
const PIECE: u64 = 1 << 20;

/// Arguments of `rebase`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    image: Reading,
    /// Cache mode of the image
    #[arg(short, default_value = "writeback")]
    target_cache: String,
    /// Cache mode of the images below
    #[arg(short = 'T', default_value = "writeback")]
    source_cache: String,
    /// The new image below; empty for none
    #[arg(short)]
    backing: Option<String>,
    /// Format of the new image below
    #[arg(short = 'F')]
    backing_format: Option<String>,
    /// Only write its name down: what is read may change
    #[arg(short = 'u')]
    unsafe_rebase: bool,
    /// Show a progress bar
    #[arg(short)]
    progress: bool,
    /// Say nothing
    #[arg(short)]
    quiet: bool,
    /// The image
    filename: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    if arguments.backing.is_none() && !arguments.unsafe_rebase {
        return Err(Failure::new("Must specify backing file (-b) or use simple rebase mode (-u)"));
    }
    let below = arguments.backing.as_deref().filter(|name| !name.is_empty());
    if below.is_some() && arguments.backing_format.is_none() {
        return Err(Failure::new("backing format must be specified"));
    }
    let format = arguments.backing_format.as_deref().filter(|_| below.is_some());
    Session::run(arguments.image.objects(), async |session| {
        let open = |access| arguments.image.request(&arguments.filename, Some(access));
        if arguments.unsafe_rebase {
            let request = open(Access::Resize);
            let (found, file) = session.open_container(&request).await?;
            check_format(&found)?;
            write_name(file.root.edge(), below, format).await?;
            return Ok(0);
        }
        let cache = Cache::parse(&arguments.target_cache)?;
        let request = Request { cache, ..open(Access::Write) };
        let image = session.open(&request).await?;
        check_format(image.node.format())?;
        let new = match below {
            Some(name) => {
                let name = beside(&arguments.filename, name);
                let cache = Cache::parse(&arguments.source_cache)?;
                let request = Request { cache, ..Request::read(&name, format) };
                Some(session.open(&request).await?)
            }
            None => None,
        };
        let progress = Progress::new(arguments.progress, image.len());
        keep_content(&image, new.as_ref(), &progress).await?;
        image.root.flush().await?;
        progress.finish();
        let Some(driver) = image.node.driver::<Qcow2Driver>() else { return Ok(0) };
        let (below, format) = (below.map(str::to_owned), format.map(str::to_owned));
        let change = |file: Edge| async move {
            write_name(&file, below.as_deref(), format.as_deref()).await
        };
        driver.offline(change).await?;
        Ok(0)
    })
}

fn check_format(format: &str) -> Result<()> {
    if format == "qcow2" {
        return Ok(());
    }
    Err(Failure::new(format!("images of format '{format}' have no image below them")))
}

/// Copies into the image what it shows of the old image below and would show otherwise of the new.
async fn keep_content(image: &Image, new: Option<&Image>, progress: &Progress) -> Result<()> {
    let len = image.len();
    let mut at = 0;
    while at < len {
        let extent = image.node.map(at..len).await?;
        let whole = at + extent.len;
        while at < whole {
            let mut end = whole;
            if extent.kind == ExtentKind::Absent {
                end = end.min(at + PIECE);
                let old = content(image.node.backing().as_ref(), at, end).await?;
                let other = content(new.map(|image| &image.node), at, end).await?;
                keep_differences(image, at, &old, &other).await?;
            }
            progress.add(end - at);
            at = end;
        }
    }
    Ok(())
}

/// What an image holds; zeroes past its end, and where there is none.
async fn content(node: Option<&BlockNode>, at: u64, end: u64) -> Result<IoBuf> {
    let buf = IoBuf::alloc(usize::try_from(end - at).unwrap_or(usize::MAX));
    if let Some(node) = node.filter(|node| at < node.len()) {
        let there = node.len().clamp(at, end) - at;
        let there = usize::try_from(there).unwrap_or(usize::MAX);
        node.read(at, buf.slice(0..there)).await?;
    }
    Ok(buf)
}

/// Writes the clusters of `old` that are different in `new`.
async fn keep_differences(image: &Image, at: u64, old: &IoBuf, new: &IoBuf) -> Result<()> {
    let unit = usize::try_from(image.node.limits().discard_granularity).unwrap_or(usize::MAX);
    let (before, after) = (old.to_vec(), new.to_vec());
    let mut start = 0;
    while start < before.len() {
        // Cut where clusters begin, wherever the piece does.
        let within = usize::try_from((at + start as u64) % unit as u64).unwrap_or(0);
        let end = (start + unit - within).min(before.len());
        if before[start..end] != after[start..end] {
            let place = at + start as u64;
            let part = old.slice(start..end);
            let range = place..at + end as u64;
            if !part.is_zero() || !is_written_down(image, range).await? {
                image.root.write(place, part, WriteFlags::NONE).await?;
            }
        }
        start = end;
    }
    Ok(())
}

/// Makes a range zero; whether the image itself says so now. One of version 2 cannot, and says nothing
/// where nothing is below that is to be hidden yet.
async fn is_written_down(image: &Image, range: Range<u64>) -> Result<bool> {
    image.root.write_zeroes(range.clone(), WriteFlags::NONE).await?;
    let extent = image.node.map(range.clone()).await?;
    Ok(extent.kind != ExtentKind::Absent && extent.len == range.end - range.start)
}

/// Writes the name of the image below into the header.
async fn write_name(
    file: &Edge,
    below: Option<&str>,
    format: Option<&str>,
) -> ferry_block::Result<()> {
    let backing =
        below.map(|file| Backing { file: file.to_owned(), format: format.map(str::to_owned) });
    amend(file, &AmendOptions { backing: Some(backing), ..AmendOptions::default() }).await?;
    file.flush().await
}
