//! ferry's test rig: starts guests, images, networks and peers for the end-to-end tests.
//!
//! A test asks [`need::test`] for what it cannot do without, makes an [`image`], starts a [`vm::Vm`] with the
//! bare-metal [`guest`] under ferry or QEMU, and drives it by its [`console`] and by [`qmp`]. Linux guests run in
//! a [`scenario`], directly where the [`host`] can, else inside an [`emulated`] one.

pub mod artifact;
pub mod autopsy;
pub mod binary;
pub mod command;
pub mod console;
pub mod cpio;
pub mod daemon;
pub mod emulated;
pub mod guest;
pub mod host;
pub mod image;
pub mod journal;
pub mod lab;
pub mod linux;
pub mod lz4;
pub mod need;
#[path = "../../resources/bare-metal/src/pattern.rs"]
pub mod pattern;
pub mod qmp;
pub mod scenario;
pub mod time;
pub mod vm;
