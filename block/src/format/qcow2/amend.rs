//! Changing what an image is: what `qemu-img amend` and `qemu-img rebase -u` do.

use super::at_rest::AtRest;
use super::check::change_width;
use super::expand::expand_zeroes;
use super::geometry::Geometry;
use super::header::{Autoclear, Compatible, Compression, Header, Incompatible, Version};
use super::snapshot::{Snapshot, complete_snapshots, load_snapshots};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

/// What is to change; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AmendOptions {
    /// The version of the format.
    pub version: Option<Version>,
    /// Refcounts may be written late.
    pub lazy_refcounts: Option<bool>,
    /// The width of refcounts, in bits. All of them are written anew.
    pub refcount_bits: Option<u32>,
    /// The backing file's name and format; `Some(None)` for no backing file. What the image reads
    /// from it is the caller's to care for.
    pub backing: Option<Option<Backing>>,
    /// The external data file's name.
    pub data_file: Option<String>,
    /// The external data file can be read as a raw image; may only be taken back.
    pub data_file_raw: Option<bool>,
}

/// A backing file as an image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name, as it is to be stored.
    pub file: String,
    /// Its format.
    pub format: Option<String>,
}

/// Changes the image in `file`. Each step leaves it whole.
///
/// # Errors
/// `InvalidArgument` or `Unsupported` for what does not go together with the image, which is
/// unchanged then.
pub async fn amend(file: &Edge, options: &AmendOptions) -> Result<()> {
    let mut image = AtRest::open(file).await?;
    let version = options.version.unwrap_or(image.geometry().version());
    let mut header = image.header.clone();
    let order = match options.refcount_bits {
        Some(bits) if !bits.is_power_of_two() || bits > 64 => {
            return refuse("Refcount width must be a power of two and may not exceed 64 bits");
        }
        Some(bits) => bits.trailing_zeros(),
        None => header.geometry.refcount_order(),
    };
    change_fields(&mut header, options, version)?;
    if version == Version::V2 {
        check_downgrade(&header, order)?;
        if image.geometry().version() != Version::V2 {
            check_snapshots(&load_snapshots(file, &image.header).await?.snapshots, header.size)?;
        }
        expand_zeroes(&mut image).await?;
    } else {
        // Version 3 wants to know of each snapshot how long the disk was.
        let table = load_snapshots(file, &image.header).await?;
        complete_snapshots(&mut image, table).await?;
    }
    // The tables may have moved.
    header = image.header.clone();
    change_fields(&mut header, options, version)?;
    if version == Version::V2 {
        header.compatible = Compatible::NONE;
        header.autoclear = Autoclear::NONE;
    }
    let bits = header.geometry.cluster_bits();
    let widened = order != header.geometry.refcount_order();
    header.geometry = Geometry::new(version, bits, order, header.incompatible)?;
    // What the parser would refuse must not be written.
    Header::parse(&header.serialise()?)?;
    if widened {
        return change_width(file, &header).await;
    }
    image.header = header;
    image.write_header().await
}

fn change_fields(header: &mut Header, options: &AmendOptions, version: Version) -> Result<()> {
    if let Some(lazy) = options.lazy_refcounts {
        if lazy && version == Version::V2 {
            let text = "Lazy refcounts only supported with compatibility level 1.1 and above (use \
                        version=v3 or greater)";
            return refuse(text);
        }
        header.compatible = header.compatible.with(Compatible::LAZY_REFCOUNTS, lazy);
    }
    if let Some(backing) = &options.backing {
        if backing.is_some() && header.is_data_file_raw() {
            return refuse("Cannot set backing file: the data file is raw and has no gaps");
        }
        header.backing_file = backing.as_ref().map(|backing| backing.file.clone());
        header.extensions.backing_format =
            backing.as_ref().and_then(|backing| backing.format.clone());
    }
    if let Some(name) = &options.data_file {
        if !header.geometry.has_external_data() {
            return refuse("data-file can only be set for images that use an external data file");
        }
        header.extensions.data_file = Some(name.clone());
    }
    match options.data_file_raw {
        Some(true) if !header.is_data_file_raw() => {
            return refuse("data-file-raw cannot be set on existing images");
        }
        Some(raw) => {
            let bit = Autoclear::RAW_EXTERNAL_DATA;
            header.autoclear = header.autoclear.with(bit, raw && header.is_data_file_raw());
        }
        None => {}
    }
    Ok(())
}

/// Whether version 2 can say everything that the image says.
fn check_downgrade(header: &Header, order: u32) -> Result<()> {
    let refusals = [
        (order != 4, "compat=0.10 requires refcount_bits=16"),
        (header.incompatible != Incompatible::NONE, "the image uses features of compat=1.1"),
        (header.compression != Compression::Zlib, "compat=0.10 only has zlib"),
        (header.bitmaps().is_some(), "the image has persistent bitmaps: remove them first"),
    ];
    if let Some((_, text)) = refusals.iter().find(|(refused, _)| *refused) {
        return Err(Error::new(ErrorKind::Unsupported, format!("Cannot downgrade: {text}")));
    }
    Ok(())
}

/// Whether version 2 can say of every snapshot what the image says: those who read version 2 need not
/// know that the disk once had another length, and would go by the present one.
fn check_snapshots(snapshots: &[Snapshot], size: u64) -> Result<()> {
    let fits = |snapshot: &Snapshot| {
        let same_size = snapshot.disk_size.is_none_or(|other| other == size);
        same_size && u32::try_from(snapshot.vm_state_size).is_ok()
    };
    match snapshots.iter().find(|snapshot| !fits(snapshot)) {
        None => Ok(()),
        Some(snapshot) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("Cannot downgrade: compat=0.10 cannot describe snapshot '{}'", snapshot.name),
        )),
    }
}

fn refuse<T>(text: &str) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidArgument, text))
}

#[cfg(test)]
#[path = "amend_tests.rs"]
mod tests;
