//! What kind of host this is, and so which guests can run on it.
//!
//! - `Hardware`: KVM on svm or vmx. Every guest runs directly.
//! - `PageTables`: KVM without hardware virtualisation. User-mode code of a guest runs natively, its kernel code is
//!   emulated: the bare-metal guest runs, Linux does not.
//! - `None`: no usable KVM.
//!
//! Where Linux cannot run directly, `emulated` makes a host that can.

use std::fs::{self, File};

/// The kinds of host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// KVM with hardware virtualisation.
    Hardware,
    /// KVM by page-table virtualisation.
    PageTables,
    /// No KVM that we may use.
    None,
}

/// Looks at this host.
pub fn kind() -> Kind {
    let usable = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    match usable {
        false => Kind::None,
        true if has_flag(&flags, "svm") || has_flag(&flags, "vmx") => Kind::Hardware,
        true => Kind::PageTables,
    }
}

fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_ascii_whitespace().any(|word| word == flag))
}

/// The resident memory of a process, in bytes: all of it, and the part that is not shared memory.
pub fn resident(pid: u32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let shared = field("RssShmem:").unwrap_or(0);
    field("VmRSS:").map(|all| (all, all - shared))
}
