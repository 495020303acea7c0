//! Tests of the running driver, most of them with QEMU's tools as judges.

mod interop;
mod random;
mod rig;
