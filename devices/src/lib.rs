//! ferry's device models: buses, serial, RTC, PCI and virtio.
