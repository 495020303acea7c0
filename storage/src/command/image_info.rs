//! QMP's `ImageInfo` of a node, with the images below it.

use ferry_api::command::{
    ImageInfo, ImageInfoSpecific, ImageInfoSpecificKind, ImageInfoSpecificQcow2,
    ImageInfoSpecificQcow2Data, Qcow2BitmapInfo, Qcow2BitmapInfoFlags, Qcow2CompressionType,
};
use ferry_block::format::qcow2::Qcow2Driver;
use ferry_block::format::qcow2::bitmap::BitmapEntry;
use ferry_block::format::qcow2::header::{Compatible, Compression, Header, Incompatible, Version};
use ferry_block::{BlockNode, ChildRole};

use super::query::file_of;
use super::snapshot::snapshot_info;
use crate::events::signed;

/// Whether the images below an image are described with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// The image alone; QEMU then does not count those below it either.
    Flat,
    /// All of them.
    Chain,
}

impl Depth {
    pub(super) fn from_flat(flat: bool) -> Depth {
        if flat { Depth::Flat } else { Depth::Chain }
    }

    /// How many nodes are described below `node`.
    pub(super) fn count(self, node: &BlockNode) -> i64 {
        let below = |node: &BlockNode| self.next(node);
        signed(std::iter::successors(below(node), below).count() as u64)
    }

    fn next(self, node: &BlockNode) -> Option<BlockNode> {
        match self {
            Depth::Flat => None,
            Depth::Chain => {
                child(node, ChildRole::Backing).or_else(|| child(node, ChildRole::Filtered))
            }
        }
    }
}

/// The image below an image.
pub(super) fn backing_of(node: &BlockNode) -> Option<BlockNode> {
    child(node, ChildRole::Backing)
}

fn child(node: &BlockNode, role: ChildRole) -> Option<BlockNode> {
    node.children().iter().find(|edge| edge.role() == role).map(|edge| edge.node())
}

/// What is known of `node`, and of those below it.
pub(super) async fn image_info(node: &BlockNode, depth: Depth) -> ImageInfo {
    let mut chain = vec![describe(node).await];
    let mut below = depth.next(node);
    while let Some(node) = below {
        chain.push(describe(&node).await);
        below = depth.next(&node);
    }
    let over = |below: Option<ImageInfo>, image: ImageInfo| {
        Some(ImageInfo { backing_image: below.map(Box::new), ..image })
    };
    chain.into_iter().rev().fold(None, over).unwrap_or_default()
}

async fn describe(node: &BlockNode) -> ImageInfo {
    let plain = ImageInfo {
        filename: file_of(node),
        format: node.format().to_owned(),
        dirty_flag: Some(false),
        actual_size: node.allocated().await.map(signed),
        virtual_size: signed(node.len()),
        ..ImageInfo::default()
    };
    let Some(driver) = node.driver::<Qcow2Driver>() else { return plain };
    let header = driver.header();
    let told = |error| tracing::warn!("node '{}' tells less: {error}", node.name());
    let snapshots = driver.snapshots().await.map_err(told).unwrap_or_default();
    let bitmaps = driver.bitmap_entries().await.map_err(told).unwrap_or_default();
    ImageInfo {
        dirty_flag: Some(header.incompatible.contains(Incompatible::DIRTY)),
        snapshots: some(snapshots.iter().map(snapshot_info).collect()),
        cluster_size: Some(signed(header.geometry.cluster_size())),
        full_backing_filename: driver.full_backing_file(),
        format_specific: Some(qcow2(driver, &header, &bitmaps)),
        backing_filename: header.backing_file,
        backing_filename_format: header.extensions.backing_format,
        ..plain
    }
}

/// A list that is left out when it is empty.
fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

fn qcow2(driver: &Qcow2Driver, header: &Header, bitmaps: &[BitmapEntry]) -> ImageInfoSpecific {
    let is_v3 = header.geometry.version() != Version::V2;
    let in_v3 = |value: bool| is_v3.then_some(value);
    let has_data_file = header.geometry.has_external_data();
    let data = ImageInfoSpecificQcow2 {
        compat: if is_v3 { "1.1" } else { "0.10" }.to_owned(),
        data_file: header.extensions.data_file.clone().filter(|_| has_data_file),
        data_file_raw: has_data_file.then(|| header.is_data_file_raw()),
        extended_l2: in_v3(header.geometry.has_extended_l2()),
        lazy_refcounts: in_v3(header.compatible.contains(Compatible::LAZY_REFCOUNTS)),
        corrupt: in_v3(driver.is_corrupt() || header.incompatible.contains(Incompatible::CORRUPT)),
        refcount_bits: i64::from(header.geometry.refcount_bits()),
        bitmaps: some(bitmaps.iter().map(bitmap_info).collect()),
        compression_type: match header.compression {
            Compression::Zlib => Qcow2CompressionType::Zlib,
            Compression::Zstd => Qcow2CompressionType::Zstd,
        },
    };
    ImageInfoSpecific { kind: ImageInfoSpecificKind::Qcow2(ImageInfoSpecificQcow2Data { data }) }
}

fn bitmap_info(from: &BitmapEntry) -> Qcow2BitmapInfo {
    let flags =
        [(from.in_use, Qcow2BitmapInfoFlags::InUse), (from.auto, Qcow2BitmapInfoFlags::Auto)];
    Qcow2BitmapInfo {
        name: from.name.clone(),
        granularity: 1 << from.granularity_bits,
        flags: flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect(),
    }
}
