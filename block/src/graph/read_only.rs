//! Nodes that are no longer written to, while others read from them: what a snapshot makes of the disk
//! below it.

use super::ownership::{give_up, take_back};
use super::{BlockGraph, perms};
use crate::edge::{ChildRole, Edge, PermRule};
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{Qcow2Driver, file_perms};
use crate::node::BlockNode;

impl BlockGraph {
    /// Lets nobody write to `node`, nor to what was opened with it, after its image was left at rest
    /// and durable, bitmaps included; or allows it again if it was opened to be written.
    ///
    /// # Errors
    /// `PermissionConflict` if somebody writes, `ReadOnly` if the node was never writable, and those
    /// of storing the image. The node stays as it was then.
    pub async fn set_read_only(&self, node: &BlockNode, read_only: bool) -> Result<()> {
        if node.is_read_only() == read_only {
            return Ok(());
        }
        if node.0.options.read_only {
            let context = format!("Block node '{}' is read-only", node.name());
            return Err(Error::new(ErrorKind::ReadOnly, context));
        }
        let going = self.goes_with(node);
        let to_switch = |node: &&BlockNode| !node.0.options.read_only;
        let going: Vec<BlockNode> = going.iter().filter(to_switch).cloned().collect();
        let is_image = |node: &&BlockNode| node.driver::<Qcow2Driver>().is_some();
        let images: Vec<BlockNode> = going.iter().filter(is_image).cloned().collect();
        let given_up = give_up(&images).await?;
        let switched = switch(&going, &images, read_only);
        let taken_back = take_back(&given_up).await;
        switched.and(taken_back)
    }
}

fn switch(going: &[BlockNode], images: &[BlockNode], read_only: bool) -> Result<()> {
    let mark = |read_only| going.iter().for_each(|node| node.0.read_only.set(read_only));
    // What is read-only may not be held for writing, so it is so last and no more so first.
    if !read_only {
        mark(false);
    }
    for (done, node) in images.iter().enumerate() {
        if let Err(error) = set_file_perms(node, read_only) {
            for node in images[..done].iter().rev() {
                if let Err(error) = set_file_perms(node, !read_only) {
                    tracing::error!(
                        "node '{}' has other permissions than it had: {error}",
                        node.name()
                    );
                }
            }
            mark(!read_only);
            return Err(error);
        }
    }
    if read_only {
        mark(true);
    }
    Ok(())
}

/// What a format does to its own files: filters and `raw` do what is done to them.
fn set_file_perms(node: &BlockNode, read_only: bool) -> Result<()> {
    let Some(driver) = node.driver::<Qcow2Driver>() else { return Ok(()) };
    let perms = file_perms(read_only);
    let own: Vec<Edge> =
        node.children().into_iter().filter(|edge| edge.role() != ChildRole::Backing).collect();
    perms::grant(own.iter().map(|edge| (edge.clone(), perms)).collect())?;
    for edge in &own {
        edge.0.rule.set(PermRule::Fixed(perms));
    }
    driver.set_read_only(read_only);
    Ok(())
}
