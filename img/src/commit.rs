//! `commit`: what an image holds goes into one below it.

use clap::Args;
use ferry_block::BlockNode;
use ferry_block::format::qcow2::Qcow2Driver;

use crate::convert::{Copy, Source};
use crate::failure::{Failure, Result};
use crate::naming::Naming;
use crate::output::print;
use crate::progress::Progress;
use crate::session::{Access, Cache, Image, Request, Session};
use crate::size;

/// Requests at once.
const DEPTH: u16 = 8;

/// Arguments of `commit`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    image: Naming,
    /// Cache mode of the image that is written
    #[arg(short, default_value = "writeback")]
    target_cache: String,
    /// The image below that takes everything (default: the next one)
    #[arg(short)]
    base: Option<String>,
    /// Leave the image as it is, instead of emptying it
    #[arg(short = 'd')]
    keep: bool,
    /// Bytes a second at most
    #[arg(short)]
    rate: Option<String>,
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
    Session::run(&arguments.image.objects, async |session| {
        // The image is locked here; the chain, the lowest of which will be written, is not.
        let request = arguments.image.request(&arguments.filename, Access::Resize);
        let top = session.open(&Request { alone: true, ..request }).await?;
        let image = session.open(&Request { access: Access::Share, ..request }).await?;
        let (base, by_default) = base(&image, arguments.base.as_deref())?;
        let target = open_base(session, arguments, &image, &base).await?;
        if target.len() < image.len() {
            target.root.resize(image.len()).await?;
        }
        let progress = Progress::new(arguments.progress, image.len());
        copy(arguments, &image, base, &target)?.run(session, &progress).await?;
        target.root.flush().await?;
        progress.finish();
        if by_default && !arguments.keep {
            empty(&top).await?;
        }
        if !arguments.quiet {
            print("Image committed.")?;
        }
        Ok(0)
    })
}

/// The image below that takes everything, and whether the user left that to us: only then is what was
/// committed given up.
fn base(image: &Image, name: Option<&str>) -> Result<(BlockNode, bool)> {
    // Of others nothing could be given up.
    let is_qcow2 = image.node.skip_filters().driver::<Qcow2Driver>().is_some();
    let next = image.node.backing().filter(|_| is_qcow2);
    let next = next.ok_or_else(|| Failure::new("Image does not have a backing file"))?;
    let Some(name) = name else { return Ok((next, true)) };
    let mut chain = std::iter::successors(Some(next.clone()), BlockNode::backing);
    let named = |node: &BlockNode| {
        let known = node.filename();
        let known = known.as_deref();
        known == Some(name) || known.is_some_and(|known| known.ends_with(&format!("/{name}")))
    };
    let found = chain.find(named).ok_or_else(|| {
        Failure::new(format!("Did not find '{name}' in the backing chain of '{}'", image.name))
    })?;
    Ok((found, false))
}

/// Opens the image below to be written, as the image above it names it: a name may hold options. What the
/// user put below instead has a file name only.
async fn open_base(
    session: &Session,
    arguments: &Arguments,
    image: &Image,
    base: &BlockNode,
) -> Result<Image> {
    let mut chain = std::iter::successors(Some(image.node.clone()), BlockNode::backing);
    let above = chain.find(|node| node.backing().is_some_and(|below| below.is_same(base)));
    let named = above.and_then(|node| {
        let node = node.skip_filters();
        node.driver::<Qcow2Driver>().filter(|image| image.names_backing())?.full_backing_file()
    });
    let base = base.skip_filters();
    let name = named.or_else(|| base.filename());
    let name = name.ok_or_else(|| Failure::new("the image below has no file"))?;
    let cache = Cache::parse(&arguments.target_cache)?;
    let read = Request::read(&name, Some(base.format()));
    session.open(&Request { access: Access::Resize, cache, ..read }).await
}

fn copy(arguments: &Arguments, image: &Image, base: BlockNode, target: &Image) -> Result<Copy> {
    Ok(Copy {
        sources: vec![Source::new(image, Some(base))],
        target: target.root.clone(),
        len: image.len(),
        depth: DEPTH,
        ordered: true,
        compressed: false,
        cluster: 1,
        // What is zero in the image must become so below, but its data is data.
        sparse: u64::from(target.node.limits().discard_granularity.max(4096)),
        zero: false,
        offload: false,
        salvage: false,
        rate: arguments.rate.as_deref().map(size::parse).transpose()?,
    })
}

/// Takes everything out of an image that is below it now.
async fn empty(top: &Image) -> Result<()> {
    let node = top.node.skip_filters();
    let driver = node.driver::<Qcow2Driver>();
    let driver = driver.ok_or_else(|| Failure::new("only qcow2 images can be emptied"))?;
    Ok(driver.make_empty().await?)
}
