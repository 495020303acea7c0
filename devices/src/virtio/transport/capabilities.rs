//! What the driver finds in configuration space: the header and the virtio capabilities
//! (virtio 1.2, sections 4.1.2 and 4.1.4), and the window that one of them is.

use super::common::COMMON_LEN;
use super::{BAR, BAR_LEN, DEVICE, ISR, MSIX_TABLE, NOTIFY, NOTIFY_MULTIPLIER, REGION_LEN};
use crate::pci::{BarKind, ConfigSpace, PciError, PciIdentity};
use crate::virtio::VirtioDevice;

/// Vendor-specific capability (PCI 3.0, appendix H).
const CAPABILITY_VENDOR: u8 = 0x09;
/// `cfg_type` of the capabilities (section 4.1.4).
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// The PCI configuration access capability (section 4.1.4.9): a window of up to four bytes into the BAR.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// Where the capability is.
    at: u16,
}

impl Window {
    /// The access that the driver has set up: offset in the BAR and length, or `None` when it has set up
    /// nothing that is there.
    pub(super) fn access(self, config: &ConfigSpace) -> Option<(u64, usize)> {
        let mut capability = [0; 16];
        config.read(self.at, &mut capability);
        let [_, _, _, _, bar, _, _, _, o0, o1, o2, o3, l0, l1, l2, l3] = capability;
        let offset = u64::from(u32::from_le_bytes([o0, o1, o2, o3]));
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(u64::from(len));
        let there = usize::from(bar) == BAR && offset < MSIX_TABLE;
        (fits && there).then(|| (offset, usize::try_from(len).unwrap_or(0)))
    }

    /// Offset of the data field.
    pub(super) fn data(self) -> u16 {
        self.at + 16
    }

    /// Whether an access of configuration space reaches the data field.
    pub(super) fn is_touched(self, offset: u16, len: usize) -> bool {
        let (from, data) = (usize::from(offset), usize::from(self.data()));
        from < data + 4 && data < from.saturating_add(len)
    }
}

/// Header, BAR and the virtio capabilities.
pub(super) fn config_space(
    device: &dyn VirtioDevice,
    queues: usize,
) -> Result<(ConfigSpace, Window), PciError> {
    const VENDOR: u16 = 0x1af4;
    // Section 4.1.2.1: 0x1040 plus the device type; revision 1 or more and a subsystem of 0x40 or more keep
    // legacy drivers away.
    let id = 0x1040 + device.device_type();
    let mut config = ConfigSpace::new(PciIdentity {
        vendor: VENDOR,
        device: id,
        revision: 1,
        class: device.pci_class(),
        subsystem_vendor: VENDOR,
        subsystem: id,
    });
    config.add_bar(BAR, BarKind::Memory64 { prefetchable: false }, BAR_LEN)?;
    let notify_len = u32::try_from(queues).unwrap_or(u32::MAX).saturating_mul(NOTIFY_MULTIPLIER);
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    let regions: [(u8, u64, u32, &[u8]); 4] = [
        (CFG_COMMON, 0, u32::try_from(COMMON_LEN).unwrap_or(0), &[]),
        (CFG_ISR, ISR, 1, &[]),
        (CFG_DEVICE, DEVICE, u32::try_from(REGION_LEN).unwrap_or(0), &[]),
        (CFG_NOTIFY, NOTIFY, notify_len, &multiplier),
    ];
    for (kind, offset, len, extra) in regions {
        config.add_capability(CAPABILITY_VENDOR, &capability(kind, offset, len, extra), &[])?;
    }
    // The driver may write bar, offset, length and data (section 4.1.4.9).
    let writable = [&[0, 0, 0xff, 0, 0, 0][..], &[0xff; 12]].concat();
    let body = capability(CFG_PCI, 0, 0, &[0; 4]);
    let at = config.add_capability(CAPABILITY_VENDOR, &body, &writable)?;
    Ok((config, Window { at: u16::from(at) }))
}

/// `struct virtio_pci_cap` after its ID and link (section 4.1.4).
fn capability(kind: u8, offset: u64, len: u32, extra: &[u8]) -> Vec<u8> {
    let whole = u8::try_from(16 + extra.len()).unwrap_or(u8::MAX);
    let bar = u8::try_from(BAR).unwrap_or(u8::MAX);
    let offset = u32::try_from(offset).unwrap_or(u32::MAX);
    let mut body = vec![whole, kind, bar, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(extra);
    body
}
