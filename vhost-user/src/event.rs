//! The eventfds that a front end hands over.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use ferry_block::{Error, Result};
use ferry_devices::virtio::DriverSignal;

use crate::wire::bad;

/// What the link of an eventfd in `/proc` says.
const EVENTFD: &str = "anon_inode:[eventfd]";

/// Takes an eventfd and sees to it that it does not block.
///
/// # Errors
/// It is something else: that might block, or always be readable.
pub(crate) fn eventfd(fd: OwnedFd) -> Result<File> {
    let failed = |error| Error::from_io(error, "an eventfd cannot be used");
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(failed)?;
    if link.as_os_str() != EVENTFD {
        return Err(bad(format!("{} was sent where an eventfd is needed", link.display())));
    }
    // A socket's way to say so is one for every descriptor, and needs no unsafe code.
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(true).map_err(failed)?;
    Ok(File::from(OwnedFd::from(stream)))
}

/// How the driver is told of used buffers, queue by queue.
pub(crate) struct Calls(RefCell<Vec<RingEvents>>);

#[derive(Default)]
struct RingEvents {
    call: Option<File>,
    err: Option<File>,
}

impl Calls {
    /// For so many queues, none of which has an eventfd.
    pub(crate) fn new(queues: usize) -> Calls {
        Calls(RefCell::new((0..queues).map(|_| RingEvents::default()).collect()))
    }

    /// Sets, or takes away, what tells of used buffers.
    pub(crate) fn set_call(&self, queue: usize, call: Option<File>) {
        if let Some(events) = self.0.borrow_mut().get_mut(queue) {
            events.call = call;
        }
    }

    /// Sets, or takes away, what tells of a broken device.
    pub(crate) fn set_err(&self, queue: usize, err: Option<File>) {
        if let Some(events) = self.0.borrow_mut().get_mut(queue) {
            events.err = err;
        }
    }
}

impl DriverSignal for Calls {
    fn queue(&self, index: u16) {
        if let Some(events) = self.0.borrow().get(usize::from(index)) {
            ring(events.call.as_ref());
        }
    }

    fn needs_reset(&self) {
        for events in self.0.borrow().iter() {
            ring(events.err.as_ref());
        }
    }
}

fn ring(event: Option<&File>) {
    let Some(mut event) = event else { return };
    if let Err(error) = event.write_all(&1_u64.to_ne_bytes()) {
        // Its counter is full: it has been told often enough.
        tracing::debug!("a front end's eventfd: {error}");
    }
}
