//! What both sides must agree on before any guest state moves.
//!
//! Each side sends a [`Prelude`] (magic and protocol versions) and then its [`Facts`]. The
//! destination compares and answers; the source compares again, so that both logs name both values.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::ram::PAGE_SIZE;

/// First bytes of every connection. Never changes.
pub const MAGIC: [u8; 8] = *b"ferrymig";
/// Newest protocol version that this side speaks.
pub const NEWEST_VERSION: u16 = 1;
/// Oldest protocol version that this side speaks.
pub const OLDEST_VERSION: u16 = 1;
/// Bytes of an encoded [`Prelude`].
pub const PRELUDE_LEN: usize = 16;

/// Most memory ranges, devices or disks one side may list.
const MAX_ITEMS: usize = 1024;
/// Most vCPUs one side may claim.
const MAX_VCPUS: u32 = 4096;

/// Magic and protocol versions: 8 bytes magic, 2 newest, 2 oldest, 4 CRC-32 of the 12 before it,
/// little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prelude {
    /// Newest protocol version spoken.
    pub newest: u16,
    /// Oldest protocol version spoken.
    pub oldest: u16,
}

impl Prelude {
    /// What this build speaks.
    pub const OURS: Prelude = Prelude { newest: NEWEST_VERSION, oldest: OLDEST_VERSION };

    /// The wire form.
    pub fn encode(self) -> [u8; PRELUDE_LEN] {
        let mut out = [0; PRELUDE_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&self.newest.to_le_bytes());
        out[10..12].copy_from_slice(&self.oldest.to_le_bytes());
        let crc = crc32fast::hash(&out[..12]);
        out[12..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the wire form.
    pub fn decode(bytes: [u8; PRELUDE_LEN]) -> Result<Prelude> {
        let [m @ .., n0, n1, o0, o1, c0, c1, c2, c3] = bytes;
        if m != MAGIC {
            return Err(Error::corrupt("the peer does not speak ferry's migration protocol"));
        }
        if crc32fast::hash(&bytes[..12]) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(Error::corrupt("the first bytes of the migration stream are damaged"));
        }
        Ok(Prelude { newest: u16::from_le_bytes([n0, n1]), oldest: u16::from_le_bytes([o0, o1]) })
    }

    /// The newest version that both sides speak.
    pub fn agree(self, peer: Prelude) -> Result<u16> {
        let version = self.newest.min(peer.newest);
        if version < self.oldest.max(peer.oldest) {
            return Err(Error::new(
                ErrorKind::Incompatible,
                format!(
                    "no common protocol version: this side speaks {}..={}, the peer {}..={}",
                    self.oldest, self.newest, peer.oldest, peer.newest
                ),
            ));
        }
        Ok(version)
    }
}

/// A range of guest-physical memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRange {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A device that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFact {
    /// The device's id, which also names its state section.
    pub id: String,
    /// What it is, such as `virtio-blk`.
    pub kind: String,
    /// Where the guest finds it, such as a PCI address.
    pub address: String,
}

/// A disk that the guest sees. Its file, format and host path may differ: its content may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFact {
    /// The id of the device that shows it.
    pub id: String,
    /// Length in bytes.
    pub size: u64,
    /// May the guest not write to it?
    pub read_only: bool,
}

/// Everything about a guest that its destination must match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Program and version, for logs only: a difference is no reason to refuse.
    pub software: String,
    /// Machine type, such as `pc-1`: fixes features and section versions.
    pub machine: String,
    /// Bytes per page of the RAM transfer.
    pub page_size: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// RAM, in address order.
    pub memory: Vec<MemoryRange>,
    /// Devices with state, in any order.
    pub devices: Vec<DeviceFact>,
    /// Disks, in any order.
    pub disks: Vec<DiskFact>,
}

impl Facts {
    /// Encodes the frame body.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check_limits()?;
        let mut out = Vec::new();
        ciborium::into_writer(self, &mut out)
            .map_err(|e| Error::corrupt("encoding the machine's description").because(e))?;
        Ok(out)
    }

    /// Decodes a frame body from a peer.
    pub fn decode(body: &[u8]) -> Result<Facts> {
        let facts: Facts = ciborium::from_reader(body)
            .map_err(|e| Error::corrupt("reading the peer's machine description").because(e))?;
        facts.check_limits()?;
        Ok(facts)
    }

    fn check_limits(&self) -> Result<()> {
        let longest = self.memory.len().max(self.devices.len()).max(self.disks.len());
        if longest > MAX_ITEMS || self.vcpus > MAX_VCPUS {
            return Err(Error::corrupt(format!(
                "machine description too large: {longest} items of at most {MAX_ITEMS}, {} vCPUs \
                 of at most {MAX_VCPUS}",
                self.vcpus
            )));
        }
        Ok(())
    }

    /// Do these facts tell the truth about the memory that is going to be moved?
    pub(crate) fn matches_memory(&self, layout: &[MemoryRange]) -> Result<()> {
        if self.memory == layout && u64::from(self.page_size) == PAGE_SIZE {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Machine,
            format!(
                "the machine describes its memory as {} in pages of {}, but maps {} in pages of \
                 {PAGE_SIZE}",
                memory_text(&self.memory),
                self.page_size,
                memory_text(layout)
            ),
        ))
    }

    /// Can a guest of `source` run on `destination`? The error lists every difference with both
    /// values.
    pub fn compare(source: &Facts, destination: &Facts) -> Result<()> {
        let mut differences = Vec::new();
        let mut differ = |what: &str, here: String, there: String| {
            if here != there {
                differences.push(format!("{what}: source {here}, destination {there}"));
            }
        };
        differ("machine type", source.machine.clone(), destination.machine.clone());
        differ("page size", source.page_size.to_string(), destination.page_size.to_string());
        differ("vCPUs", source.vcpus.to_string(), destination.vcpus.to_string());
        differ("memory", memory_text(&source.memory), memory_text(&destination.memory));
        for (id, here, there) in pairs(&source.devices, &destination.devices, |d| &d.id) {
            differ(&format!("device '{id}'"), device_text(here), device_text(there));
        }
        for (id, here, there) in pairs(&source.disks, &destination.disks, |d| &d.id) {
            differ(&format!("disk '{id}'"), disk_text(here), disk_text(there));
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Incompatible,
            format!("the destination is another machine: {}", differences.join("; ")),
        ))
    }
}

/// Items of both sides under one id each, sorted; a side that lacks one gives `None`.
fn pairs<'a, T>(
    source: &'a [T],
    destination: &'a [T],
    id: impl Fn(&T) -> &String,
) -> Vec<(String, Option<&'a T>, Option<&'a T>)> {
    let mut ids: Vec<String> = source.iter().chain(destination).map(|t| id(t).clone()).collect();
    ids.sort();
    ids.dedup();
    ids.into_iter()
        .map(|name| {
            let here = source.iter().find(|t| *id(t) == name);
            let there = destination.iter().find(|t| *id(t) == name);
            (name, here, there)
        })
        .collect()
}

fn memory_text(memory: &[MemoryRange]) -> String {
    let ranges: Vec<String> =
        memory.iter().map(|r| format!("{} KiB at {:#x}", r.len / 1024, r.start)).collect();
    ranges.join(" + ")
}

fn device_text(device: Option<&DeviceFact>) -> String {
    device.map_or("none".to_owned(), |d| format!("{} at {}", d.kind, d.address))
}

fn disk_text(disk: Option<&DiskFact>) -> String {
    disk.map_or("none".to_owned(), |d| {
        format!("{} bytes{}", d.size, if d.read_only { ", read-only" } else { "" })
    })
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
