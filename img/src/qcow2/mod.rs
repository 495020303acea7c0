//! What is special about qcow2: the options of a new image, and what an image says of itself. Both
//! work on the image file, without the driver.

mod info;
mod options;
mod place;
mod size;

pub(crate) use info::{beside, describe, human, snapshot_rows};
pub(crate) use options::NewQcow2;
pub(crate) use place::Places;
pub(crate) use size::{Needs, bitmap_needs, needs};
