//! What a `blockdev-reopen` means: the nodes that it names and, below them, those that were opened with them,
//! which take over what their parents get. All that can be refused by looking is refused here, in QEMU's words.

use crate::edge::ChildRole;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{BackingRef, Qcow2Driver};
use crate::graph::BlockGraph;
use crate::graph::ownership::children_first;
use crate::node::BlockNode;
use crate::open::{BlockdevOptions, BlockdevRef, DriverOptions};

/// A node to open again.
pub(super) struct Wanted {
    pub(super) node: BlockNode,
    /// As the user, or its parent's options, have it.
    pub(super) given: BlockdevOptions,
    /// With what it takes over from its parent. Nodes below that are there already are named.
    pub(super) options: BlockdevOptions,
}

/// What `options` mean, each node before those above it.
pub(super) fn plan(graph: &BlockGraph, options: &[BlockdevOptions]) -> Result<Vec<Wanted>> {
    let mut all = Vec::new();
    for options in options {
        let Some(name) = &options.node_name else {
            return refuse("node-name not specified".to_owned());
        };
        let Some(node) = graph.node(name) else {
            let text = format!("Failed to find node with node-name='{name}'");
            return Err(Error::new(ErrorKind::NotFound, text));
        };
        let options = unfold(&node, options.clone(), &mut all)?;
        all.push(options);
    }
    for (place, wanted) in all.iter().enumerate() {
        if all[..place].iter().any(|other| other.node.is_same(&wanted.node)) {
            return refuse(format!("Node {} is to be reopened twice", wanted.node.name()));
        }
    }
    let order = children_first(&graph.nodes());
    all.sort_by_key(|wanted| order.iter().position(|node| node.is_same(&wanted.node)));
    Ok(all)
}

/// Puts those of the nodes below `node` into `all` that `options` mean to be opened again as well. `node`'s own
/// options, which are returned, only name them.
fn unfold(node: &BlockNode, given: BlockdevOptions, all: &mut Vec<Wanted>) -> Result<Wanted> {
    check(node, &given)?;
    let mut options = given.clone();
    for (child, role) in options.driver.children() {
        let Some(below) = child_of(node, role) else { continue };
        let given_below = match child {
            BlockdevRef::Name(name) if below.name() == *name && below.came_with(node) => {
                let Some(origin) = below.origin() else { continue };
                named_children(&below, origin.given.clone())
            }
            BlockdevRef::Name(_) => continue,
            BlockdevRef::Nested(_) if !below.came_with(node) => {
                return cannot_change(&format!("{}.driver", option_name(node, role)));
            }
            BlockdevRef::Nested(own) => {
                if own.node_name.as_deref().is_some_and(|name| name != below.name()) {
                    return cannot_change("node-name");
                }
                BlockdevOptions::clone(own)
            }
        };
        *child = BlockdevRef::Name(below.name().to_owned());
        let name = Some(below.name().to_owned());
        let effective =
            BlockdevOptions { node_name: name, ..given_below.inherited_as(role, &given) };
        let wanted = Wanted { given: given_below, ..unfold(&below, effective, all)? };
        if changes(&wanted) {
            all.push(wanted);
        }
    }
    Ok(Wanted { node: node.clone(), given, options })
}

fn check(node: &BlockNode, options: &BlockdevOptions) -> Result<()> {
    if node.format() != options.driver.name() {
        return cannot_change("driver");
    }
    if let Some(option) = other_storage(node, options) {
        return cannot_change(option);
    }
    // What the image names need not be what is below the node now.
    if has_backing(node) && leaves_backing_out(options) {
        return refuse(format!("backing is missing for '{}'", node.name()));
    }
    Ok(())
}

/// Whether a node that came with its parent gets other options than it has.
fn changes(wanted: &Wanted) -> bool {
    let Wanted { node, options, .. } = wanted;
    let comparable = |options: &BlockdevOptions| BlockdevOptions {
        node_name: None,
        active: None,
        ..named_children(node, options.clone())
    };
    let before = node.origin().map(|origin| comparable(&origin.effective));
    // A snapshot makes nodes read-only that were opened to be written.
    before != Some(comparable(options)) || node.is_read_only() != options.read_only.unwrap_or(false)
}

/// `options` with the names of the nodes that are below `node` now.
fn named_children(node: &BlockNode, mut options: BlockdevOptions) -> BlockdevOptions {
    let name = |role| child_of(node, role).map(|below| BlockdevRef::Name(below.name().to_owned()));
    if let DriverOptions::Qcow2(own) = &mut options.driver {
        own.backing = name(ChildRole::Backing).map_or(BackingRef::None, BackingRef::Node);
        own.data_file = name(ChildRole::Data);
    }
    for (child, role) in options.driver.children() {
        if let Some(name) = name(role) {
            *child = name;
        }
    }
    options
}

fn child_of(node: &BlockNode, role: ChildRole) -> Option<BlockNode> {
    node.children().into_iter().find(|edge| edge.role() == role).map(|edge| edge.node())
}

/// The option that has the child in that role.
fn option_name(node: &BlockNode, role: ChildRole) -> &'static str {
    match role {
        ChildRole::Filtered if node.format() == "blkdebug" => "image",
        ChildRole::Filtered => "file",
        _ => role.name(),
    }
}

/// The option that would put other storage in a node's place. Whoever is above goes on with what it knows of
/// the old one: an image would write its tables into the wrong file.
fn other_storage(node: &BlockNode, options: &BlockdevOptions) -> Option<&'static str> {
    let (option, name) = match &options.driver {
        DriverOptions::File(own) => ("filename", own.filename.clone()),
        DriverOptions::Nbd(own) => ("server", own.filename()),
        _ => return None,
    };
    (node.filename().as_deref() != Some(name.as_str())).then_some(option)
}

/// Whether something is below an image, or the image says so.
fn has_backing(node: &BlockNode) -> bool {
    child_of(node, ChildRole::Backing).is_some()
        || node.driver::<Qcow2Driver>().is_some_and(|image| image.full_backing_file().is_some())
}

fn leaves_backing_out(options: &BlockdevOptions) -> bool {
    matches!(&options.driver, DriverOptions::Qcow2(own) if own.backing == BackingRef::FromImage)
}

fn cannot_change<T>(option: &str) -> Result<T> {
    refuse(format!("Cannot change the option '{option}'"))
}

fn refuse<T>(text: String) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidArgument, text))
}
