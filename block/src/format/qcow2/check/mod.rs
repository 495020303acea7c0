//! Checking an image, and repairing it: what `qemu-img check` does.
//!
//! Works on the image file alone, while nobody changes it: a tool on an image that is not open
//! elsewhere, or the driver, with its caches written out, no request under way, and everything
//! read again afterwards if something was repaired.
//!
//! 1. `walk` counts the references to every cluster, in `counts`;
//! 2. `compare` holds the refcounts against that, and repairs them in place;
//! 3. `rebuild` makes the refcount structures anew when they are what is broken;
//! 4. `flags` looks at the entries that say that they are the only ones;
//! 5. `misplaced` empties entries of clusters without data that cannot be where they are said to be;
//! 6. `snapshots` adds what version 3 demands to be said of each, and takes off what is too much.
//!
//! Memory: a byte for each cluster in use, 1 GiB at most, and one table at a time.

mod compare;
mod counts;
mod flags;
mod misplaced;
mod rebuild;
mod report;
mod snapshots;
mod walk;

use super::container::name_of;
use super::header::{Autoclear, Header, Incompatible};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

use compare::{Fix, compare, load_blocks};
pub use report::{CheckReport, Message};
use walk::Walk;

/// What a check may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Clusters that nobody uses are freed; nothing that holds data changes. If nothing else is wrong,
    /// clusters that are left with one user say so.
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
        return examine(file, &header, Fix::Nothing).await;
    };
    let done = mend(file, &header, repair).await?;
    let header = Header::load(file).await?;
    let mut left = examine(file, &header, Fix::Nothing).await?;
    if repair == Repair::All && left.corruptions == 0 && left.check_errors == 0 {
        mark_good(file, header).await?;
    }
    left.corruptions_fixed = done.corruptions_fixed;
    left.leaks_fixed = done.leaks_fixed;
    left.messages.splice(0..0, done.messages);
    Ok(left)
}

/// Puts an image in order that was not closed, as its dirty bit says: refcounts are counted anew, and
/// what else was left half done is mended with them.
///
/// # Errors
/// `Corrupt` when something is left that cannot be put right.
pub(super) async fn recount(file: &Edge) -> Result<()> {
    let name = name_of(file);
    tracing::info!("{name} was not closed: its refcounts are being repaired");
    let report = check(file, Some(Repair::All)).await?;
    if report.corruptions != 0 || report.check_errors != 0 {
        let text = format!("{name} cannot be repaired: check it first");
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    Ok(())
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
    let header = rebuild::rebuild(&walk).await?;
    // Clusters that had leaked references have only one now, which their entries do not say yet.
    examine(file, &header, Fix::All).await?;
    Ok(())
}

/// Counts all references, and holds the refcounts against them.
async fn refcounts<'a>(
    file: &'a Edge,
    header: &'a Header,
    fix: Fix,
) -> Result<(Walk<'a>, compare::Blocks)> {
    let mut walk = Walk::new(file, header);
    walk.references().await?;
    let mut blocks = load_blocks(&mut walk).await?;
    compare(&mut walk, &mut blocks, fix).await?;
    Ok((walk, blocks))
}

/// One look at everything.
async fn examine(file: &Edge, header: &Header, fix: Fix) -> Result<CheckReport> {
    let (mut walk, mut blocks) = refcounts(file, header, fix).await?;
    if fix != Fix::Nothing {
        // The refcounts first: a flag may only say what is true already.
        file.flush().await?;
    }
    let is_sound = walk.report.corruptions == 0 && walk.report.check_errors == 0;
    let trusted = match fix {
        Fix::Nothing => false,
        // Clusters that were shared with something that is gone have only lost that.
        Fix::Leaks => is_sound && !blocks.must_rebuild,
        Fix::All => !blocks.must_rebuild,
    };
    flags::copied_flags(&mut walk, &mut blocks, trusted).await?;
    Ok(walk.report)
}

/// Repairs, and says what was found and what was done. Flags are looked at when the refcounts are in
/// order, because that is what they are about.
async fn mend(file: &Edge, header: &Header, repair: Repair) -> Result<CheckReport> {
    let (mut walk, blocks) = refcounts(file, header, Fix::Nothing).await?;
    let must_rebuild = blocks.must_rebuild;
    if repair == Repair::All && walk.report.check_errors == 0 {
        misplaced::empty_entries(&mut walk).await?;
    }
    let faults = std::mem::take(&mut walk.snapshot_faults);
    let mut found = walk.report;
    let mut done = match repair {
        _ if found.check_errors != 0 => return Ok(found),
        // Nothing can be freed safely on the word of structures that are broken.
        Repair::Leaks if must_rebuild => return Ok(found),
        Repair::Leaks => examine(file, header, Fix::Leaks).await?,
        Repair::All if must_rebuild => {
            let mut walk = Walk::new(file, header);
            walk.references().await?;
            let header = rebuild::rebuild(&walk).await?;
            let mut done = examine(file, &header, Fix::All).await?;
            done.corruptions_fixed += found.corruptions.saturating_sub(done.corruptions);
            done.leaks_fixed += found.leaks.saturating_sub(done.leaks);
            found.messages.push(Message::Repair("Rebuilding refcount structure".to_owned()));
            done
        }
        Repair::All => {
            let mut done = examine(file, header, Fix::All).await?;
            done.corruptions_fixed += found.corruptions_fixed;
            done
        }
    };
    file.flush().await?;
    if repair == Repair::All && done.check_errors == 0 && !faults.is_empty() {
        snapshots::complete(file, &faults, &mut done).await?;
    }
    done.messages.retain(|message| matches!(message, Message::Repair(_)));
    done.messages.splice(0..0, found.messages);
    Ok(done)
}

/// The image is in order again: others may write to it.
async fn mark_good(file: &Edge, mut header: Header) -> Result<()> {
    let bad = Incompatible(Incompatible::DIRTY.0 | Incompatible::CORRUPT.0);
    // Whoever writes must take back what others promise that he knows nothing of.
    let known = Autoclear(header.autoclear.0 & Autoclear::KNOWN.0);
    if header.incompatible.0 & bad.0 != 0 || header.autoclear != known {
        header.incompatible = header.incompatible.with(bad, false);
        header.autoclear = known;
        header.store(file).await?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "../check_tests.rs"]
mod tests;
