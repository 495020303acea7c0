//! ferry's machine: KVM, vCPUs, boot, run state, migration and the ferry binary.

pub mod arch;
pub mod config;
pub mod error;
pub mod kvm;
pub mod lifecycle;
pub mod machine;
pub mod memory;
#[cfg(test)]
mod testing;
pub mod vcpu;

pub use error::{Error, ErrorKind, Result};
