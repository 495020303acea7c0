//! Disks for guests of other monitors: the back end of vhost-user-blk.
//!
//! A monitor with the virtio device (the front end) connects to the socket of an [`Export`], hands over its
//! guest's memory and the eventfds of its queues, and from then on the guest's driver and we talk through the
//! queues directly: `ferry_devices` serves them as it serves those of our own guests.
//!
//! The protocol is the one of QEMU's `docs/interop/vhost-user.rst`. Everything happens on the graph's thread:
//! an order to stop a queue simply waits until its requests are over, and nothing is handed between threads.
//! That is why the messages are read here and not by the `vhost` crate, whose handler blocks on its socket and
//! would need a thread for each connection.
//!
//! # What a front end can do
//!
//! It is trusted as far as its own disk goes, and no further. Each number of a message is checked, memory is
//! mapped within the bounds of its file, and a descriptor that shall be an eventfd must be one. A message that
//! makes no sense ends the connection; a ring that the *guest* breaks stops the device until its reset.
//! Memory that the front end takes away under us, by shrinking its file, is replaced by memory of our own when
//! we touch it, and the connection ends (see `fault`). One thing remains: a front end that makes an eventfd block
//! again and fills its counter, or whose memory is a file that takes its time, holds the thread. Serve front ends
//! that would do that to each other from processes of their own.

mod event;
mod export;
mod fault;
#[cfg(test)]
mod front_end;
mod log;
mod memory;
mod ring;
mod session;
mod socket;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod wire;

pub use export::{Export, ExportOptions};
