//! An image in use on a simulated disk, and what of it survives when the power fails.

use super::super::check::{Repair, check};
use super::super::create::{CreateOptions, create};
use super::super::{BackingRef, Qcow2Driver, Qcow2Options};
use super::rig::blockdev;
use crate::clock::Clock;
use crate::edge::{ChildRole, Edge, EdgePerms, Perms};
use crate::executor::Executor;
use crate::graph::BlockGraph;
use crate::node::{BlockNode, NodeOptions};
use crate::open::BlockdevRef;
use crate::testing::{SimDisk, SimOptions};
use crate::{BackendKind, BlockBackend};

pub(super) const SECTOR: u64 = 512;
pub(super) const DISK: u64 = 1 << 20;

/// What image is put to the test, and how.
#[derive(Clone)]
pub(super) struct Shape {
    pub(super) create: CreateOptions,
    /// Bytes of a device that cannot grow; 0 for a file. Then a data file is on a device, too.
    pub(super) device: u64,
    /// Bytes of each cache.
    pub(super) cache: Option<u64>,
    /// There is another image below, with [`below`] in every sector.
    pub(super) backed: bool,
}

impl Shape {
    pub(super) fn new(create: CreateOptions) -> Shape {
        Shape { create, device: 0, cache: None, backed: false }
    }

    /// What a sector reads as that nobody has written to.
    pub(super) fn below(&self, sector: u64) -> u64 {
        if self.backed { sector << 8 | 0xbb } else { 0 }
    }
}

/// What is on the disks: the image file, and the external data file if there is one.
pub(super) struct Media {
    pub(super) image: Vec<u8>,
    data: Option<Vec<u8>>,
}

/// An image in use on a simulated disk.
pub(super) struct Simulated {
    pub(super) executor: Executor,
    pub(super) graph: BlockGraph,
    pub(super) disk: SimDisk,
    /// Where guest data is, if that is not in the image file.
    pub(super) data: Option<SimDisk>,
    pub(super) node: BlockNode,
    _root: BlockBackend,
}

/// Whether the header says that refcounts have to be counted anew: bit 0 of the incompatible features.
fn is_unsettled(image: &[u8]) -> bool {
    image[79] & 1 != 0
}

/// A simulated disk that holds `content`, or `len` zeroes.
fn disk(executor: &Executor, seed: u64, len: u64, content: Option<&[u8]>) -> SimDisk {
    let len = content.map_or(len, |content| content.len() as u64);
    let disk = SimDisk::new(executor, SimOptions { resizable: true, ..SimOptions::new(len, seed) });
    if let Some(content) = content {
        disk.fill(0, content);
    }
    disk
}

async fn edge(graph: &BlockGraph, name: &str, disk: &SimDisk) -> Edge {
    let node = graph.add(Some(name), disk.clone(), NodeOptions::default()).await.unwrap();
    let needs = Perms::CONSISTENT_READ | Perms::WRITE | Perms::RESIZE;
    graph.edge(&node, ChildRole::File, EdgePerms { needs, shares: Perms::ALL }).unwrap()
}

/// Makes the image, or looks whether the one that is there is sound.
async fn prepare(shape: &Shape, image: &Edge, data: Option<&Edge>, media: Option<&Media>) {
    match media {
        None => create(image, data, &shape.create).await.unwrap(),
        Some(media) if !is_unsettled(&media.image) => {
            let report = check(image, None).await.unwrap();
            let found = (report.corruptions, report.check_errors);
            assert_eq!(found, (0, 0), "{:?}", report.messages);
            check(image, Some(Repair::Leaks)).await.unwrap();
        }
        // Whoever opens it counts anew.
        Some(_) => {}
    }
    image.flush().await.unwrap();
}

impl Simulated {
    /// An image on simulated disks that hold what `media` says, or a new one.
    pub(super) fn start(seed: u64, shape: &Shape, media: Option<&Media>) -> Simulated {
        let executor = Executor::new(Clock::simulated()).unwrap();
        let graph = BlockGraph::new(executor.clone());
        let content = media.map(|media| media.image.as_slice());
        let sim = match shape.device {
            0 => disk(&executor, seed, 0, content),
            len => {
                let device = SimDisk::new(&executor, SimOptions::new(len, seed));
                device.fill(0, content.unwrap_or_default());
                device
            }
        };
        let content = media.and_then(|media| media.data.as_deref());
        let data = shape.create.data_file.as_ref().map(|_| match shape.device {
            0 => disk(&executor, seed + 1, 0, content),
            _ => SimDisk::new(&executor, SimOptions::new(DISK, seed + 1)),
        });
        let sectors: Vec<u8> =
            (0..DISK / SECTOR).flat_map(|at| shape.below(at).to_le_bytes().repeat(64)).collect();
        let base = shape.backed.then(|| disk(&executor, seed + 2, 0, Some(&sectors)));
        let (node, root) = executor.block_on(async {
            let image = edge(&graph, "sim", &sim).await;
            let data_edge = match &data {
                Some(data) => Some(edge(&graph, "data", data).await),
                None => None,
            };
            if let Some(base) = &base {
                graph.add(Some("base"), base.clone(), NodeOptions::default()).await.unwrap();
            }
            prepare(shape, &image, data_edge.as_ref(), media).await;
            drop((image, data_edge));
            let options = Qcow2Options {
                backing: match base {
                    Some(_) => BackingRef::Node(BlockdevRef::Name("base".into())),
                    None => BackingRef::None,
                },
                data_file: data.is_some().then(|| BlockdevRef::Name("data".into())),
                l2_cache_size: shape.cache,
                refcount_cache_size: shape.cache,
                l2_cache_entry_size: shape.cache.map(|_| 512),
                pass_discard_other: Some(seed.is_multiple_of(2)),
                ..Qcow2Options::new(BlockdevRef::Name("sim".into()))
            };
            let node = graph.open(&blockdev(options)).await.unwrap();
            let root = graph.add_backend(BackendKind::Device, "d0", &node, EdgePerms::READ_WRITE);
            (node, root.unwrap())
        });
        Simulated { executor, graph, disk: sim, data, node, _root: root }
    }

    /// All disks of it.
    pub(super) fn disks(&self) -> Vec<SimDisk> {
        [Some(self.disk.clone()), self.data.clone()].into_iter().flatten().collect()
    }

    /// A data file that can be read by itself holds `content`, which is what the image shows.
    pub(super) fn check_raw(&self, content: &[u8], what: &str) {
        let driver = self.node.driver::<Qcow2Driver>().expect("a qcow2 image");
        if driver.header().is_data_file_raw() {
            let data = self.media().data.unwrap_or_default();
            let wrong = data.iter().zip(content).position(|(raw, shown)| raw != shown);
            assert_eq!(wrong, None, "{what}: the data file holds something else");
        }
    }

    /// The power fails.
    pub(super) fn crash(&self) {
        for disk in self.disks() {
            disk.crash();
        }
    }

    /// What is on the disks now.
    pub(super) fn media(&self) -> Media {
        Media { image: self.disk.contents(), data: self.data.as_ref().map(SimDisk::contents) }
    }
}
