//! ferry's machine: KVM, vCPUs, boot, run state, migration and the ferry binary.
