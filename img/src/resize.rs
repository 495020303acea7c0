//! `resize`: another length.

use std::ops::Range;

use clap::Args;
use ferry_block::format::qcow2::Qcow2Driver;

use crate::create::{Preallocation, take_space};
use crate::failure::{Failure, Result};
use crate::naming::Naming;
use crate::output::print;
use crate::session::{Access, Image, Session};
use crate::size;

/// Arguments of `resize`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    image: Naming,
    /// What to allocate of the new part: off, metadata, falloc or full
    #[arg(long)]
    preallocation: Option<String>,
    /// Allow that data at the end is lost
    #[arg(long)]
    shrink: bool,
    /// Say nothing
    #[arg(short)]
    quiet: bool,
    /// The image
    filename: String,
    /// The new length; with + or - before it, the change
    #[arg(allow_hyphen_values = true)]
    size: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    let preallocation = Preallocation::parse(arguments.preallocation.as_deref())?;
    Session::run(&arguments.image.objects, async |session| {
        let request = arguments.image.request(&arguments.filename, Access::Resize);
        let image = session.open(&request).await?;
        let old = image.len();
        let new = target(&arguments.size, old)?;
        if new < old && !arguments.shrink {
            crate::say(
                &"warning: Shrinking an image will delete all data beyond the shrunken image's \
                  end. Before performing such an operation, make sure there is no important data \
                  there.",
            );
            let text = "Use the --shrink option to perform a shrink operation.";
            return Err(Failure::new(text));
        }
        if new <= old && preallocation != Preallocation::Off {
            return Err(Failure::new("Preallocation can only be used for growing images"));
        }
        if preallocation == Preallocation::Metadata && image.node.format() != "qcow2" {
            return Err(Failure::new("Unsupported preallocation mode: metadata"));
        }
        image.root.resize(new).await?;
        if new > old {
            preallocate(&image, old..new, preallocation).await?;
        }
        if !arguments.quiet {
            print("Image resized.")?;
        }
        Ok(0)
    })
}

/// Allocates what the image has grown by.
async fn preallocate(image: &Image, grown: Range<u64>, mode: Preallocation) -> Result<()> {
    let qcow2 = image.node.driver::<Qcow2Driver>();
    match (mode, qcow2) {
        (Preallocation::Metadata, Some(driver)) => driver.preallocate(grown, false).await?,
        (Preallocation::Falloc, Some(driver)) => driver.preallocate(grown, true).await?,
        (mode, _) => take_space(&image.root, grown, mode).await?,
    }
    Ok(())
}

/// The new length.
fn target(text: &str, old: u64) -> Result<u64> {
    let len = match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(more), _) => old.checked_add(size::parse(more)?),
        (_, Some(less)) => old.checked_sub(size::parse(less)?),
        _ => Some(size::parse(text)?),
    };
    len.filter(|len| *len > 0).ok_or_else(|| Failure::new("New image size must be positive"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_absolute_or_relative() {
        assert_eq!(target("1k", 5).unwrap(), 1024);
        assert_eq!(target("+1k", 5).unwrap(), 1029);
        assert_eq!(target("-1k", 4096).unwrap(), 3072);
        for text in ["-1k", "-2k", "0", "+", "+18E"] {
            assert!(target(text, 1024).is_err(), "{text}");
        }
    }
}
