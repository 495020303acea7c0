//! A guest without an operating system: it drives a virtio-blk disk with self-checking data, dirties
//! memory at a rate and checks every page, and says on the serial port what it saw.
//!
//! It enters by PVH, drops to ring 3 at once (a host without hardware virtualisation runs ring 3
//! natively and emulates ring 0), polls everything and takes no interrupt. `README.md` beside this
//! package lists the words of its command line and the lines it prints.
#![no_std]
#![no_main]

mod args;
mod boot;
mod clock;
mod console;
mod disk;
mod memory;
mod pattern;
mod pci;
mod port;
mod queue;
mod run;
mod transport;
mod trap;
mod workload;

use core::panic::PanicInfo;

/// A bug in the guest itself is told like any other failure.
#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    console::line(format_args!("FAIL guest panicked: {info}"));
    run::finish(run::End::default(), 1)
}
