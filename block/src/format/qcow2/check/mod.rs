//! Checking an image, and repairing it: what `qemu-img check` does.
//!
//! Works on the image file alone, while nobody changes it: a tool on an image that is not open
//! elsewhere, or the driver, with its caches written out, no request under way, and everything
//! read again afterwards if something was repaired.
//!
//! 1. `walk` counts the references to every cluster, in `counts`;
//! 2. `compare` holds the refcounts against that, and repairs them in place;
//! 3. `rebuild` makes the refcount structures anew when they are what is broken;
//! 4. `flags` looks at the entries that say that they are the only ones.
//!
//! Memory: a byte for each cluster in use, 1 GiB at most, and one table at a time.

mod compare;
mod counts;
mod flags;
mod rebuild;
mod report;
mod walk;

use super::container::write_at;
use super::header::{Header, Incompatible};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

use compare::{Fix, compare, load_blocks};
pub use report::CheckReport;
use walk::Walk;

/// What a check may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Clusters that nobody uses are freed; nothing that holds data changes.
    Leaks,
    /// Everything that can be put right.
    All,
}

/// Checks the image in `file`, repairing it first if asked to.
///
/// A repair is followed by a second check, whose findings are what is left.
///
/// # Errors
/// The header makes no sense, or a read or a write failed. What is wrong with the image beyond its
/// header is no error but in the report.
pub async fn check(file: &Edge, repair: Option<Repair>) -> Result<CheckReport> {
    let header = Header::load(file).await?;
    let Some(repair) = repair else {
        return Ok(examine(file, &header, Fix::Nothing).await?.0);
    };
    let found = mend(file, &header, repair).await?;
    let header = Header::load(file).await?;
    let mut left = examine(file, &header, Fix::Nothing).await?.0;
    if repair == Repair::All && left.corruptions == 0 && left.check_errors == 0 {
        mark_good(file, header).await?;
    }
    left.corruptions_fixed = found.corruptions.saturating_sub(left.corruptions);
    left.leaks_fixed = found.leaks.saturating_sub(left.leaks);
    Ok(left)
}

/// Makes the refcount structures anew with the width that `header` has, which is not yet in the
/// file; the header is written with them.
pub(super) async fn change_width(file: &Edge, header: &Header) -> Result<()> {
    let mut walk = Walk::new(file, header);
    walk.references().await?;
    if walk.report.corruptions != 0 || walk.report.check_errors != 0 {
        let context = "the image is damaged: repair it first";
        return Err(Error::new(ErrorKind::Corrupt, context));
    }
    rebuild::rebuild(&walk).await?;
    Ok(())
}

/// One look at everything; also says whether the refcount structures must be made anew.
async fn examine(file: &Edge, header: &Header, fix: Fix) -> Result<(CheckReport, bool)> {
    let mut walk = Walk::new(file, header);
    walk.references().await?;
    let mut blocks = load_blocks(&mut walk).await?;
    compare(&mut walk, &mut blocks, fix).await?;
    if fix == Fix::All {
        // The refcounts first: a flag may only say what is true already.
        file.flush().await?;
    }
    let trusted = fix == Fix::All && !blocks.must_rebuild;
    flags::copied_flags(&mut walk, trusted).await?;
    Ok((walk.report, blocks.must_rebuild))
}

/// Repairs, and says what was found before.
async fn mend(file: &Edge, header: &Header, repair: Repair) -> Result<CheckReport> {
    let (found, must_rebuild) = examine(file, header, Fix::Nothing).await?;
    match repair {
        // Nothing can be freed safely on the word of structures that are broken.
        Repair::Leaks if must_rebuild || found.check_errors != 0 => {}
        Repair::Leaks => drop(examine(file, header, Fix::Leaks).await?),
        Repair::All if found.check_errors != 0 => {}
        Repair::All => {
            if must_rebuild {
                let mut walk = Walk::new(file, header);
                walk.references().await?;
                let header = rebuild::rebuild(&walk).await?;
                examine(file, &header, Fix::All).await?;
            } else {
                examine(file, header, Fix::All).await?;
            }
        }
    }
    file.flush().await?;
    Ok(found)
}

/// The image is in order again: others may write to it.
async fn mark_good(file: &Edge, mut header: Header) -> Result<()> {
    let bad = Incompatible(Incompatible::DIRTY.0 | Incompatible::CORRUPT.0);
    if header.incompatible.0 & bad.0 != 0 {
        header.incompatible = header.incompatible.with(bad, false);
        write_at(file, 0, &header.serialise()?).await?;
        file.flush().await?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "../check_tests.rs"]
mod tests;
