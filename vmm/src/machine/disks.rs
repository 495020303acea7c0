//! The disks: an image in the block graph, a root that the guest's device holds, the device in its PCI slot.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use ferry_block::format::{PROBED_BYTES, recognise};
use ferry_block::{
    BackendKind, BlockBackend, BlockHandle, BlockNode, BlockdevOptions, BlockdevRef, CacheOptions,
    DiscardMode, EdgePerms, IoBuf,
};
use ferry_devices::irq::{IrqLine, SharedLine};
use ferry_devices::pci::{PciBus, SLOT_COUNT, intx_gsi};
use ferry_devices::virtio::blk::{
    BlkControl, ErrorAction, ErrorPolicy, VirtioBlk, VirtioBlkConfig,
};
use ferry_devices::virtio::transport::{VirtioPci, VirtioPciResources};

use super::events::{Brake, MachineEvent, MachineEvents};
use super::platform::lock;
use crate::config::{Config, DiskConfig, DiskFormat};
use crate::error::{Error, ErrorKind, Result};
use crate::kvm::{Doorbells, Line, MsiVectors, Vm};
use crate::memory::Ram;

/// Slot of the first disk; slot 0 is the host bridge.
const FIRST_SLOT: u8 = 1;
/// A disk gets a queue for each vCPU up to this many, unless the configuration says otherwise.
const DEFAULT_QUEUES: u32 = 4;

/// One disk of the machine.
pub struct Disk {
    id: String,
    slot: u8,
    read_only: bool,
    control: BlkControl,
    device: Arc<Mutex<VirtioPci>>,
}

impl Disk {
    /// Its id, which is also the name of its root in the block graph.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its slot on PCI bus 0.
    pub fn slot(&self) -> u8 {
        self.slot
    }

    /// Whether the guest may not write.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The device's door for size changes.
    pub fn control(&self) -> &BlkControl {
        &self.control
    }

    /// The device in its PCI slot, to be quiesced, resumed, saved and restored.
    pub fn device(&self) -> &Arc<Mutex<VirtioPci>> {
        &self.device
    }

    /// Take up the queues again after a quiesce.
    pub(super) fn resume(&self) {
        lock(&self.device).resume();
    }
}

/// What disks need of the machine around them.
pub(super) struct Board<'a> {
    pub(super) vm: &'a Arc<Vm>,
    pub(super) ram: &'a Ram,
    pub(super) pci: &'a PciBus,
    pub(super) graph: &'a BlockHandle,
    pub(super) events: &'a MachineEvents,
    pub(super) brake: &'a Brake,
}

/// Open every image of `config` and put its device on the PCI bus, in order. For an incoming guest the images
/// stay inactive: somebody else still writes to them.
pub(super) async fn build(config: &Config, board: &Board<'_>) -> Result<Vec<Disk>> {
    if config.disks.len() > usize::from(SLOT_COUNT - FIRST_SLOT) {
        let most = SLOT_COUNT - FIRST_SLOT;
        return Err(Error::config(format!("{} disks: at most {most} fit", config.disks.len())));
    }
    let mut disks = Vec::with_capacity(config.disks.len());
    let mut lines = InterruptLines::default();
    for (slot, disk) in (FIRST_SLOT..).zip(&config.disks) {
        open_image(disk, config.incoming.is_none(), board.graph).await?;
        let line = lines.input(board.vm, intx_gsi(slot));
        disks.push(plug(disk, slot, line, config.cpus, board).await?);
    }
    Ok(disks)
}

/// Open the image and make the root that the device will hold.
async fn open_image(disk: &DiskConfig, active: bool, graph: &BlockHandle) -> Result<()> {
    let path = disk
        .path
        .to_str()
        .ok_or_else(|| Error::config(format!("disk '{}': the path is not valid UTF-8", disk.id)))?;
    let file = BlockdevRef::nested(BlockdevOptions::file(path));
    let mut options = match disk.format {
        Some(DiskFormat::Raw) | None => BlockdevOptions::raw(file),
        Some(DiskFormat::Qcow2) => BlockdevOptions::qcow2(file),
    };
    options.read_only = Some(disk.readonly);
    options.active = Some(active);
    options.discard = Some(DiscardMode::Unmap);
    options.cache = Some(CacheOptions { direct: Some(disk.direct), no_flush: None });
    let id = disk.id.clone();
    let perms = if disk.readonly { EdgePerms::READ } else { EdgePerms::READ_WRITE };
    // Of an image that is not ours yet the source of the guest has said it.
    let is_asked = active && disk.format.is_none();
    let opened = graph.call(move |graph| async move {
        let node = graph.open(&options).await?;
        // A disk that cannot be read is the guest's to notice, as it is with a format that was named.
        let shows = if is_asked { shown_format(&node).await.unwrap_or(None) } else { None };
        let root = graph.add_backend(BackendKind::Device, &id, &node, perms)?;
        graph.extension(Roots::default).0.borrow_mut().push(root);
        Ok::<_, ferry_block::Error>(shows)
    });
    let shows = opened.await.and_then(|opened| opened).map_err(|e| {
        let (id, hint) = (&disk.id, hint(e.kind()));
        // Not every refusal names the file itself.
        let place = if e.to_string().contains(path) { "" } else { &format!(" ({path})") };
        Error::new(ErrorKind::Config, format!("disk '{id}'{place} cannot be used: {e}{hint}"))
    })?;
    if let Some(format) = shows {
        tracing::warn!("{}", mistakable(disk, format));
    }
    Ok(())
}

/// What a person is told whose raw disk looks like something else.
fn mistakable(disk: &DiskConfig, format: &str) -> String {
    let (id, path) = (&disk.id, disk.path.display());
    let otherwise = match format {
        "qcow2" => "add format=qcow2",
        _ => "convert it first (qemu-img convert)",
    };
    format!(
        "disk '{id}': {path} looks like a {format} image, and the guest gets its bytes as they are; if that is \
         not meant, {otherwise}, else add format=raw"
    )
}

/// The format that a raw disk looks like, if any. The guest may have written that itself, so it decides nothing.
async fn shown_format(node: &BlockNode) -> ferry_block::Result<Option<&'static str>> {
    let len = usize::try_from(node.len()).unwrap_or(usize::MAX).min(PROBED_BYTES);
    let head = IoBuf::alloc(len);
    node.read(0, head.clone()).await?;
    Ok(recognise(&head.to_vec()))
}

/// What a person can do about an image that does not open.
fn hint(kind: ferry_block::ErrorKind) -> &'static str {
    match kind {
        ferry_block::ErrorKind::NotFound => {
            "; correct path=, or make an empty disk with: truncate -s 10G FILE"
        }
        ferry_block::ErrorKind::PermissionDenied => {
            "; give yourself access to the file, or readonly=on if the guest only reads"
        }
        ferry_block::ErrorKind::Locked => {
            " If that is another guest, end it first; two writers would destroy the disk"
        }
        _ => "",
    }
}

/// Roots whose devices are not made yet: a graph itself does not keep them.
#[derive(Default)]
struct Roots(RefCell<Vec<BlockBackend>>);

/// Make the device of an opened image and put it into `slot`.
async fn plug(
    disk: &DiskConfig,
    slot: u8,
    line: Arc<dyn IrqLine>,
    cpus: u32,
    board: &Board<'_>,
) -> Result<Disk> {
    let wrong = |e: &dyn Display| Error::config(format!("disk '{}': {e}", disk.id));
    let most = u16::try_from(cpus.min(DEFAULT_QUEUES)).unwrap_or(1);
    let queues = disk.queues.unwrap_or(most);
    let config = VirtioBlkConfig {
        serial: disk.serial.clone().unwrap_or_default(),
        read_only: disk.readonly,
        queues,
        on_error: error_policy(&disk.id, board),
        ..VirtioBlkConfig::default()
    };
    let blk = VirtioBlk::new(config, &disk.id, board.graph).await.map_err(|e| wrong(&e))?;
    let taken = board.graph.call(|graph| async move {
        graph.extension(Roots::default).0.borrow_mut().clear();
    });
    taken.await.map_err(|e| wrong(&e))?;
    let control = blk.control();
    let resources = VirtioPciResources {
        memory: board.ram.guest().clone(),
        // One for each queue and one for changes of the configuration.
        msi: MsiVectors::new(board.vm, queues + 1)?,
        line,
        gsi: intx_gsi(slot),
        binder: Doorbells::new(board.vm),
    };
    let device = VirtioPci::new(&disk.id, Box::new(blk), resources).map_err(|e| wrong(&e))?;
    board.pci.add(slot, device.clone()).map_err(|e| wrong(&e))?;
    Ok(Disk { id: disk.id.clone(), slot, read_only: disk.readonly, control, device })
}

/// The lines that INTx pins go to. Slots with the same line share it.
#[derive(Default)]
struct InterruptLines(BTreeMap<u8, Arc<SharedLine>>);

impl InterruptLines {
    fn input(&mut self, vm: &Arc<Vm>, gsi: u8) -> Arc<dyn IrqLine> {
        let make = || SharedLine::new(Line::new(vm, gsi.into()));
        self.0.entry(gsi).or_insert_with(make).input()
    }
}

/// What a failed request does: the guest stops when the storage is full, since somebody can make room and let it
/// go on; everything else the guest is told, as a real disk would.
fn error_policy(id: &str, board: &Board<'_>) -> ErrorPolicy {
    let (id, events, brake) = (id.to_owned(), board.events.clone(), Arc::clone(board.brake));
    Arc::new(move |failed| {
        let stops = failed.is_write && failed.kind == ferry_block::ErrorKind::NoSpace;
        let action = if stops { ErrorAction::Stop } else { ErrorAction::Report };
        if stops {
            brake.store(true, Ordering::SeqCst);
        }
        events(MachineEvent::Disk { id: id.clone(), failed: failed.clone(), action });
        action
    })
}

#[cfg(test)]
#[path = "disks_tests.rs"]
mod tests;
