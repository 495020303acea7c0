//! `create`: a new image.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use clap::Args;
use ferry_block::format::qcow2;
use ferry_block::format::qcow2::create::Preallocation as Allocated;
use ferry_block::protocol::file::{self, FileDriver};
use ferry_block::{BlockBackend, IoBuf, WriteFlags};
use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::keyval;
use crate::location::Location;
use crate::object::Objects;
use crate::option_help::{self, Use};
use crate::output::print;
use crate::qcow2::{NewQcow2, beside};
use crate::session::{Access, Image, Request, Session};
use crate::size;

/// Disks are whole sectors, bytes.
const SECTOR: u64 = 512;
/// Bytes that are written at once.
const PIECE: usize = 1 << 20;

/// Arguments of `create`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    objects: Objects,
    /// Format of the new image
    #[arg(short, default_value = "raw")]
    format: String,
    /// Options of the format, as key=value,...
    #[arg(short)]
    options: Vec<String>,
    /// The image below it
    #[arg(short)]
    backing: Option<String>,
    /// Format of the image below it
    #[arg(short = 'F')]
    backing_format: Option<String>,
    /// The image below it need not be there
    #[arg(short = 'u')]
    unsafe_backing: bool,
    /// Say nothing
    #[arg(short)]
    quiet: bool,
    /// The new image
    #[arg(required_unless_present = "options")]
    filename: Option<String>,
    /// Its length
    size: Option<String>,
}

/// How much is allocated at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// The tables of the format.
    Metadata,
    /// Everything, unwritten.
    Falloc,
    /// Everything, written with zeroes.
    Full,
}

impl Preallocation {
    /// The mode of that name; off without a name.
    pub(crate) fn parse(name: Option<&str>) -> Result<Preallocation> {
        match name {
            None | Some("off") => Ok(Preallocation::Off),
            Some("metadata") => Ok(Preallocation::Metadata),
            Some("falloc") => Ok(Preallocation::Falloc),
            Some("full") => Ok(Preallocation::Full),
            Some(other) => {
                Err(Failure::new(format!("Invalid parameter 'preallocation': '{other}'")))
            }
        }
    }
}

/// What a new image is to be.
pub(crate) struct New<'a> {
    pub(crate) name: &'a str,
    pub(crate) format: &'a str,
    /// The lists after `-o`.
    pub(crate) options: &'a [String],
    pub(crate) size: Option<u64>,
    pub(crate) backing: Option<&'a str>,
    pub(crate) backing_format: Option<&'a str>,
    /// The image below is not looked at.
    pub(crate) unsafe_backing: bool,
    pub(crate) quiet: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    if option_help::is_asked(&arguments.options) {
        return option_help::show(&arguments.format, Use::Create).map(|()| 0);
    }
    let name = arguments.filename.as_deref();
    let name = name.ok_or_else(|| Failure::new("Expecting image file name"))?;
    let size = arguments.size.as_deref().map(size::parse).transpose()?;
    let mut pairs = arguments.options.iter().flat_map(|list| keyval::pairs(list));
    if size.is_some() && pairs.any(|(key, _)| key == "size") {
        return Err(Failure::new("The image size must be specified only once").context(name));
    }
    Session::run(&arguments.objects, async |session| {
        let new = New {
            name,
            format: &arguments.format,
            options: &arguments.options,
            size,
            backing: arguments.backing.as_deref(),
            backing_format: arguments.backing_format.as_deref(),
            unsafe_backing: arguments.unsafe_backing,
            quiet: arguments.quiet,
        };
        create(session, &new).await?;
        Ok(0)
    })
}

/// Makes the image; whether it reads as zeroes by itself, with nothing below it. A device or an export keeps
/// what was there before.
pub(crate) async fn create(session: &Session, new: &New<'_>) -> Result<bool> {
    try_create(session, new).await.map_err(|failure| failure.context(new.name))
}

async fn try_create(session: &Session, new: &New<'_>) -> Result<bool> {
    match new.format {
        "raw" => create_raw(session, new).await,
        "qcow2" => create_qcow2(session, new).await,
        other => Err(Failure::new(format!("Unknown file format '{other}'"))),
    }
}

/// Options of a new raw image.
#[derive(Default)]
pub(crate) struct RawOptions {
    size: Option<u64>,
    preallocation: Preallocation,
    /// What the file system of the image's file is told.
    hint: Option<u32>,
}

impl RawOptions {
    /// Reads the lists after `-o`; the last word on a key counts.
    pub(crate) fn parse(lists: &[String]) -> Result<RawOptions> {
        let mut options = RawOptions::default();
        for (key, value) in lists.iter().flat_map(|list| keyval::pairs(list)) {
            match key.as_str() {
                "size" => options.size = Some(size::parse(&value)?),
                "preallocation" => options.preallocation = Preallocation::parse(Some(&value))?,
                "extent_size_hint" => options.hint = Some(extent_size(&value)?),
                _ => return Err(Failure::new(format!("Invalid parameter '{key}'"))),
            }
        }
        Ok(options)
    }
}

async fn create_raw(session: &Session, new: &New<'_>) -> Result<bool> {
    if new.backing.is_some() {
        return Err(Failure::new("Backing file not supported for file format 'raw'"));
    }
    let RawOptions { size, preallocation, hint } = RawOptions::parse(new.options)?;
    let size = new.size.or(size);
    let size = size.ok_or_else(|| Failure::new("Image creation needs a size parameter"))?;
    if !new.quiet {
        let hint = hint.map(|hint| format!(" extent_size_hint={hint}")).unwrap_or_default();
        print(format!("Formatting '{}', fmt=raw size={size}{hint}", new.name))?;
    }
    if preallocation == Preallocation::Metadata {
        return Err(Failure::new("Unsupported preallocation mode 'metadata'"));
    }
    let Place { image: file, is_empty } = place(session, new.name, hint).await?;
    let size = size.next_multiple_of(SECTOR);
    if is_empty || size > file.len() {
        file.root.resize(size).await?;
    } else {
        // Nobody shall find the header of an image that was there.
        file.root.write_zeroes(0..SECTOR.min(size), WriteFlags::NONE).await?;
    }
    take_space(&file.root, 0..size, preallocation).await?;
    session.forget(file);
    Ok(is_empty)
}

/// Takes the host's space for a range that reads as zeroes.
pub(crate) async fn take_space(
    root: &BlockBackend,
    range: Range<u64>,
    how: Preallocation,
) -> Result<()> {
    match how {
        Preallocation::Off | Preallocation::Metadata => {}
        Preallocation::Falloc | Preallocation::Full if range.is_empty() => {}
        // Zeroes that may not unmap are space taken.
        Preallocation::Falloc => root.write_zeroes(range, WriteFlags::NONE).await?,
        Preallocation::Full => {
            let zeroes = IoBuf::alloc(PIECE);
            let mut at = range.start;
            while at < range.end {
                let len = usize::try_from(range.end - at).unwrap_or(PIECE).min(PIECE);
                root.write(at, zeroes.slice(0..len), WriteFlags::NONE).await?;
                at += len as u64;
            }
        }
    }
    Ok(())
}

async fn create_qcow2(session: &Session, new: &New<'_>) -> Result<bool> {
    let mut qcow2 = NewQcow2::parse(new.options, new.size)?;
    let options = &mut qcow2.options;
    options.backing_file = new.backing.map(str::to_owned).or(options.backing_file.take());
    options.backing_format =
        new.backing_format.map(str::to_owned).or(options.backing_format.take());
    let below = match (&options.backing_file, &options.backing_format) {
        (Some(_), None) => {
            return Err(Failure::new("Backing file specified without backing format"));
        }
        (None, Some(_)) => {
            return Err(Failure::new("Backing format cannot be used without backing file"));
        }
        (Some(file), Some(format)) if !new.unsafe_backing => {
            Some(backing_len(session, &beside(new.name, file), format).await?)
        }
        _ => None,
    };
    if let Some(file) = &options.backing_file {
        let below = beside(new.name, file);
        for name in std::iter::once(new.name).chain(options.data_file.as_deref()) {
            if is_same_file(name, &below) {
                let text = "Trying to create an image with the same filename as the backing file";
                return Err(Failure::new(format!("Error: {text}")));
            }
        }
    }
    let size = qcow2.size.or(below);
    let size = size.ok_or_else(|| Failure::new("Image creation needs a size parameter"))?;
    qcow2.options.size = size.next_multiple_of(SECTOR);
    qcow2::create::check(&qcow2.options)?;
    if !new.quiet {
        print(format!("Formatting '{}', fmt=qcow2 {}", new.name, qcow2.summary(size)))?;
    }
    let file = place(session, new.name, qcow2.extent_size_hint).await?;
    let data = match &qcow2.options.data_file {
        Some(name) => Some(place(session, name, None).await?),
        None => None,
    };
    let edge = data.as_ref().map(|data| data.image.root.edge());
    qcow2::create::create(file.image.root.edge(), edge, &qcow2.options).await?;
    // What is allocated at once shows what was in its place.
    let shows_place = data.is_some() || qcow2.options.preallocation != Allocated::Off;
    let places = || std::iter::once(&file).chain(&data);
    let is_zero = !shows_place || places().all(|place| place.is_empty);
    for place in std::iter::once(file).chain(data) {
        session.forget(place.image);
    }
    Ok(is_zero)
}

/// Whether both names are those of one file of the host, however they are written: a new image in the place
/// of the one below it would be the end of that.
fn is_same_file(one: &str, other: &str) -> bool {
    let file = |name: &str| {
        let path = match Location::parse(name).ok()? {
            Location::File(path) => path,
            Location::Protocol(options) | Location::Image(options) => {
                bottom_file(&options)?.to_owned()
            }
        };
        std::fs::metadata(path).ok().map(|it| (it.dev(), it.ino()))
    };
    one == other || file(one).is_some_and(|found| file(other) == Some(found))
}

/// The file of the host below everything that is described.
fn bottom_file(options: &Value) -> Option<&str> {
    match &options["file"] {
        Value::Null => options["filename"].as_str(),
        below => bottom_file(below),
    }
}

/// Bytes of the disk in an image that is to lie below another. It may be in use: who takes a snapshot of
/// a running guest's disk makes the new image first.
async fn backing_len(session: &Session, name: &str, format: &str) -> Result<u64> {
    let request = Request { access: Access::Share, ..Request::read(name, Some(format)) };
    let (_, file) = session.open_container(&request).await?;
    let len = match format {
        "qcow2" => qcow2::header::Header::load(file.root.edge()).await?.size,
        _ => file.len(),
    };
    session.forget(file);
    Ok(len)
}

/// A value of `extent_size_hint`.
pub(crate) fn extent_size(value: &str) -> Result<u32> {
    let too_large = |_| Failure::new("Extent size hint is too large");
    u32::try_from(size::parse(value)?).map_err(too_large)
}

/// Where a new image goes.
struct Place {
    image: Image,
    /// It has no bytes, so that it reads as zeroes wherever nothing was written.
    is_empty: bool,
}

/// The place for a new image: a file of no bytes, which is made if there is none, or a device or an
/// export as it is. A file that another program uses is locked, and left as it is. `hint` is for its
/// file system.
async fn place(session: &Session, name: &str, hint: Option<u32>) -> Result<Place> {
    let location = Location::parse(name)?;
    let executor = session.graph.executor();
    if let Location::File(path) = &location {
        file::create(executor, path).await?;
    }
    let Some(protocol) = location.protocol() else {
        return Err(Failure::new("a new image is named by a path"));
    };
    let image = session.open_protocol(protocol, Access::Resize).await?;
    let is_empty = image.node.driver::<FileDriver>().is_some_and(|file| !file.is_device());
    if is_empty {
        image.root.resize(0).await?;
    }
    if let (Location::File(path), true) = (&location, is_empty) {
        let hint = hint.unwrap_or(file::DEFAULT_EXTENT_SIZE_HINT);
        file::hint_extent_size(executor, path, hint).await;
    }
    Ok(Place { image, is_empty })
}

/// An image that was just made, or one that is there.
pub(crate) async fn open_target(
    session: &Session,
    name: &str,
    format: &str,
    cache: crate::session::Cache,
    image_opts: bool,
) -> Result<Image> {
    let read = Request::read(name, Some(format));
    session.open(&Request { access: Access::Resize, cache, image_opts, ..read }).await
}
