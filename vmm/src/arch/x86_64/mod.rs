//! x86-64: the address map, boot protocols, ACPI, CPUID and the state of CPUs and interrupt controllers.

pub mod acpi;
pub mod boot;
pub mod cpuid;
mod elf;
pub mod layout;
pub mod msr;
pub mod regs;
pub mod state;
