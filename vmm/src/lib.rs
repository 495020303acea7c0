//! ferry's machine: KVM, vCPUs, boot, run state, migration and the ferry binary.

pub mod arch;
pub mod config;
pub mod console;
mod control;
pub mod error;
pub mod exit;
pub mod exports;
pub mod kvm;
pub mod lifecycle;
pub mod machine;
pub mod memory;
mod migrate;
#[cfg(test)]
mod testing;
pub mod vcpu;

pub use control::run;
pub use error::{Error, ErrorKind, Result};
