//! What is changed in the image of a node while it is in use: its internal snapshots, and the name of
//! the image below. What is refused is refused in QEMU's words.

use super::BlockGraph;
use super::drain::reaches;
use crate::backend::BackendKind;
use crate::edge::{Edge, Parent};
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::Qcow2Driver;
use crate::format::qcow2::amend::{AmendOptions, Backing, amend};
use crate::format::qcow2::snapshot::{
    Moment, Snapshot, SnapshotRef, create_snapshot, delete_snapshot,
};
use crate::node::BlockNode;

impl BlockGraph {
    /// Takes a snapshot inside the image of `node`. Requests wait meanwhile. `device` is what the
    /// user called the node.
    ///
    /// # Errors
    /// `InvalidArgument`, `Busy`, `ReadOnly` or `Unsupported` for what cannot have this snapshot, and
    /// those of writing the image.
    pub async fn take_internal_snapshot(
        &self,
        device: &str,
        node: &BlockNode,
        name: &str,
        when: Moment,
    ) -> Result<Snapshot> {
        self.check_snapshot(node)?;
        check_written(device, node)?;
        let Some(driver) = node.driver::<Qcow2Driver>() else {
            let text = format!(
                "Block format '{}' used by device '{device}' does not support internal snapshots",
                node.format()
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        };
        let refuse = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
        if name.is_empty() {
            return refuse("Name is empty".to_owned());
        }
        if driver.snapshots().await?.iter().any(|other| other.name == name) {
            let text = format!("Snapshot with name '{name}' already exists on device '{device}'");
            return refuse(text);
        }
        let wanted = name.to_owned();
        let taken =
            driver.offline(move |file| async move { create_snapshot(&file, &wanted, when).await });
        let failed = format!("Failed to create snapshot '{name}' on device '{device}'");
        taken.await.map_err(|error| error.context(failed))
    }

    /// Deletes the snapshot inside the image of `node` that has this id, this name, or both.
    ///
    /// # Errors
    /// As [`take_internal_snapshot`](Self::take_internal_snapshot), and `NotFound`.
    pub async fn delete_internal_snapshot(
        &self,
        device: &str,
        node: &BlockNode,
        id: Option<&str>,
        name: Option<&str>,
    ) -> Result<Snapshot> {
        self.check_snapshot(node)?;
        if id.is_none() && name.is_none() {
            let text = "Name or id must be provided";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        let Some(driver) = node.driver::<Qcow2Driver>() else {
            let context = "Failed to get a snapshot list";
            return Err(Error::from_errno(libc::EOPNOTSUPP, context));
        };
        let is_meant = |one: &Snapshot| {
            id.is_none_or(|id| one.id == id) && name.is_none_or(|name| one.name == name)
        };
        let Some(found) = driver.snapshots().await?.into_iter().find(is_meant) else {
            let (id, name) = (id.unwrap_or("null"), name.unwrap_or("null"));
            let text = format!(
                "Snapshot with id '{id}' and name '{name}' does not exist on device '{device}'"
            );
            return Err(Error::new(ErrorKind::NotFound, text));
        };
        check_written(device, node)?;
        let which = SnapshotRef::Exact { id: Some(found.id.clone()), name: None };
        driver.offline(|file| async move { delete_snapshot(&file, &which).await }).await?;
        Ok(found)
    }

    /// Changes the name that `image` gives of the image below it, which belongs to the chain of `top`;
    /// an empty one takes it away. What is below it now stays.
    ///
    /// # Errors
    /// `InvalidArgument` if `top` has other users than devices and exports, or the image does not belong there or has
    /// nothing below it; and those of writing it.
    pub async fn change_backing_file(
        &self,
        top: &BlockNode,
        image: &BlockNode,
        name: &str,
    ) -> Result<()> {
        let refuse = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
        if !is_root_node(self, top) {
            return refuse("Need a root block node".to_owned());
        }
        let (Some(below), Some(driver)) = (image.backing(), image.driver::<Qcow2Driver>()) else {
            let text = "not allowing backing file change on an image without a backing file";
            return refuse(text.to_owned());
        };
        if !reaches(top, image) {
            return refuse(format!("'{}' and image file are not in the same chain", top.name()));
        }
        let was_read_only = image.is_read_only();
        self.set_read_only(image, false).await?;
        let format = Some(below.skip_filters().format().to_owned());
        let backing = (!name.is_empty()).then(|| Backing { file: name.to_owned(), format });
        let options = AmendOptions { backing: Some(backing), ..AmendOptions::default() };
        let changed = driver.offline(|file| async move { amend(&file, &options).await }).await;
        let sealed = self.set_read_only(image, was_read_only).await;
        changed.and(sealed)
    }
}

/// Whether only devices and exports use `node`: others have taken its chain over as it is, and a job may be
/// about to put something else there.
fn is_root_node(graph: &BlockGraph, node: &BlockNode) -> bool {
    let is_user = |edge: &Edge| match &*edge.0.parent.borrow() {
        Parent::Backend(root) => root.upgrade().is_none_or(|root| root.kind != BackendKind::Job),
        Parent::Node(_) | Parent::None => false,
    };
    node.0.live_parents().iter().all(is_user) && graph.check_no_job(node).is_ok()
}

/// The image of a node that this process may not write must stay as it is.
fn check_written(device: &str, node: &BlockNode) -> Result<()> {
    if node.is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, format!("Device '{device}' is read only")));
    }
    if !node.is_active() {
        let text = format!("Device '{device}' is inactive, another process may own it");
        return Err(Error::new(ErrorKind::Inactive, text));
    }
    Ok(())
}

#[cfg(test)]
#[path = "internal_tests.rs"]
mod tests;
