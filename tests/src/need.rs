//! Tests that cannot run here say why and count as skipped.

use std::fs::File;
use std::io::Write;

use anyhow::Result;

use crate::{command, host};

/// What a test needs of the machine.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A usable /dev/kvm.
    Kvm,
    /// A program, and the Debian package that has it.
    Program(&'static str, &'static str),
}

impl Need {
    fn missing(self) -> Option<String> {
        match self {
            Need::Kvm if host::kind() == host::Kind::None => {
                Some("no usable /dev/kvm on this host".into())
            }
            Need::Program(name, package) if command::find(name).is_none() => {
                Some(format!("{name} is not installed (package {package})"))
            }
            Need::Kvm | Need::Program(..) => None,
        }
    }
}

/// The judge of images.
pub const QEMU_IMG: Need = Need::Program("qemu-img", "qemu-utils");
/// QEMU itself, as the peer and as the emulated host.
pub const QEMU: Need = Need::Program("qemu-system-x86_64", "qemu-system-x86");

/// Runs a test where its needs are met, and otherwise writes down why not: on standard error and, for the
/// summary of a whole run, in the file that `FERRY_SKIPPED` names.
///
/// # Panics
///
/// When the test fails.
pub fn test(needs: &[Need], body: impl FnOnce() -> Result<()>) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    if let Some(reason) = needs.iter().find_map(|need| need.missing()) {
        eprintln!("SKIPPED {name}: {reason}");
        append("FERRY_SKIPPED", &format!("{name}: {reason}"));
        return;
    }
    if let Err(error) = body() {
        panic!("{error:#}");
    }
}

/// Something that whoever reads the summary of a whole run should know, though no test failed: a line in the
/// file that `FERRY_NOTES` names.
pub fn note(text: &str) {
    append("FERRY_NOTES", text);
}

/// Adds a line to the file that an environment variable names, where it names one.
fn append(variable: &str, line: &str) {
    let Some(path) = std::env::var_os(variable) else { return };
    let file = File::options().append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
        .unwrap_or_else(|error| panic!("{variable} names no file that can be written: {error}"));
}
