//! `compare`: whether two images hold the same.

use std::ops::Range;

use clap::Args;
use ferry_block::{BlockNode, ExtentKind, IoBuf};

use crate::failure::{Failure, Result};
use crate::naming::Reading;
use crate::output::print;
use crate::progress::Progress;
use crate::session::{Cache, Image, Request, Session};

/// Bytes that are compared at once.
const PIECE: u64 = 2 << 20;
/// Bytes about which is asked what they are.
const WINDOW: u64 = 64 << 20;
/// Differences are told in units of this many bytes.
const SECTOR: usize = 512;

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    images: Reading,
    /// Format of the second image
    #[arg(short = 'F')]
    second_format: Option<String>,
    /// Cache mode of both
    #[arg(short = 'T', default_value = "writeback")]
    cache: String,
    /// Lengths and allocation must be the same, too
    #[arg(short)]
    strict: bool,
    /// Say nothing
    #[arg(short)]
    quiet: bool,
    /// Show a progress bar
    #[arg(short)]
    progress: bool,
    /// The first image
    first: String,
    /// The second image
    second: String,
}

/// How a comparison ends.
enum Verdict {
    Same,
    Different(String),
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    // Statuses above 1 are errors: 1 says that the images differ.
    let cache = Cache::parse(&arguments.cache).map_err(|failure| failure.with_status(2))?;
    Session::run(arguments.images.objects(), async |session| {
        let open = async |request: Request<'_>| {
            let request = Request { cache, ..request };
            session.open(&request).await.map_err(|failure| failure.with_status(2))
        };
        let first = open(arguments.images.request(&arguments.first, None)).await?;
        let second = arguments.images.request(&arguments.second, None);
        let format = arguments.second_format.as_deref();
        let second = open(Request { format, ..second }).await?;
        let (text, status) = match compare(arguments, &first, &second).await? {
            Verdict::Same => ("Images are identical.".to_owned(), 0),
            Verdict::Different(text) => (text, 1),
        };
        if !arguments.quiet {
            print(text)?;
        }
        Ok(status)
    })
}

async fn compare(arguments: &Arguments, first: &Image, second: &Image) -> Result<Verdict> {
    let (short, long) = (first.len().min(second.len()), first.len().max(second.len()));
    if arguments.strict && short != long {
        return Ok(Verdict::Different("Strict mode: Image size mismatch!".into()));
    }
    let progress = Progress::new(arguments.progress, long);
    let mut at = 0;
    while at < short {
        let (kind, len) = status(first, at..short.min(at + WINDOW)).await?;
        let (other, len) = status(second, at..at + len).await?;
        let alike = (kind == ExtentKind::Absent) == (other == ExtentKind::Absent);
        if arguments.strict && !(alike && is_zero(kind) == is_zero(other)) {
            let text = format!("Strict mode: Offset {at} block status mismatch!");
            return Ok(Verdict::Different(text));
        }
        let end = at + len.min(PIECE);
        let difference = match (is_zero(kind), is_zero(other)) {
            (true, true) => None,
            (true, false) => data_in(second, at..end).await?,
            (false, true) => data_in(first, at..end).await?,
            (false, false) => difference(first, second, at..end).await?,
        };
        if let Some(place) = difference {
            return Ok(mismatch(place));
        }
        progress.add(end - at);
        at = end;
    }
    if short != long && !arguments.quiet {
        print("Warning: Image size mismatch!")?;
    }
    let longer = if first.len() == long { first } else { second };
    while at < long {
        let (kind, len) = status(longer, at..long.min(at + WINDOW)).await?;
        let end = at + len.min(PIECE);
        if !is_zero(kind)
            && let Some(place) = data_in(longer, at..end).await?
        {
            return Ok(mismatch(place));
        }
        progress.add(end - at);
        at = end;
    }
    progress.finish();
    Ok(Verdict::Same)
}

fn mismatch(place: u64) -> Verdict {
    Verdict::Different(format!("Content mismatch at offset {place}!"))
}

fn is_zero(kind: ExtentKind) -> bool {
    kind != ExtentKind::Data
}

async fn status(image: &Image, range: Range<u64>) -> Result<(ExtentKind, u64)> {
    let node: &BlockNode = &image.node;
    let extent = node.map_above(None, range).await;
    let extent = extent.map_err(|error| Failure::from(error).with_status(3))?;
    Ok((extent.kind, extent.len))
}

async fn read(image: &Image, range: &Range<u64>) -> Result<IoBuf> {
    let buf = IoBuf::alloc(usize::try_from(range.end - range.start).unwrap_or(usize::MAX));
    let result = image.root.read(range.start, buf.clone()).await;
    result.map_err(|error| Failure::from(error).with_status(4))?;
    Ok(buf)
}

/// The first sector that is not zero.
async fn data_in(image: &Image, range: Range<u64>) -> Result<Option<u64>> {
    let buf = read(image, &range).await?;
    if buf.is_zero() {
        return Ok(None);
    }
    let sectors = (0..buf.len()).step_by(SECTOR);
    let mut data = sectors.filter(|at| !buf.slice(*at..(at + SECTOR).min(buf.len())).is_zero());
    Ok(data.next().map(|at| range.start + at as u64))
}

/// The first sector that differs.
async fn difference(first: &Image, second: &Image, range: Range<u64>) -> Result<Option<u64>> {
    let (one, two) = (read(first, &range).await?.to_vec(), read(second, &range).await?.to_vec());
    if one == two {
        return Ok(None);
    }
    let mut pairs = one.chunks(SECTOR).zip(two.chunks(SECTOR));
    Ok(pairs.position(|(one, two)| one != two).map(|at| range.start + (at * SECTOR) as u64))
}
