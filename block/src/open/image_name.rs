//! The name by which an image can be opened again.

use serde_json::{Value, json};

use super::protocol_name;
use crate::format::qcow2::Qcow2Driver;
use crate::format::raw::RawDriver;
use crate::node::BlockNode;

impl BlockNode {
    /// The name that stands for what this node reads: its file's, or `json:` and options where the file
    /// holds more than that. `None` if no name does.
    pub fn image_name(&self) -> Option<String> {
        match layers(self).any(|node| window(&node).is_some()) {
            true => options(self).map(|options| format!("json:{options}")),
            false => self.filename(),
        }
    }
}

/// The node, and below it what is in the same file.
fn layers(node: &BlockNode) -> impl Iterator<Item = BlockNode> {
    std::iter::successors(Some(node.clone()), below)
}

fn below(node: &BlockNode) -> Option<BlockNode> {
    let container = || node.driver::<Qcow2Driver>().map(|image| image.file().node());
    container().or_else(|| node.filtered())
}

fn window(node: &BlockNode) -> Option<(u64, Option<u64>)> {
    node.driver::<RawDriver>().and_then(RawDriver::window)
}

/// Options that open what the node reads; filters change nothing of it.
fn options(node: &BlockNode) -> Option<Value> {
    let Some(below) = below(node) else {
        let name = node.filename()?;
        let file = || Some(json!({"driver": node.format(), "filename": name}));
        return protocol_name(&name).map_or_else(file, |options| options.ok());
    };
    let file = options(&below)?;
    if node.driver::<Qcow2Driver>().is_some() {
        return Some(json!({"driver": "qcow2", "file": file}));
    }
    let Some((offset, size)) = window(node) else { return Some(file) };
    let mut options = json!({"driver": "raw", "offset": offset, "file": file});
    if let Some(size) = size {
        options["size"] = size.into();
    }
    Some(options)
}
