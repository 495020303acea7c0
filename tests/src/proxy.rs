//! A man in the middle of a migration: passes bytes on, and at a chosen byte does something nasty.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

use crate::time;

/// What happens after so many bytes from the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing ever.
    None,
    /// One bit of the next byte is flipped.
    FlipBit,
    /// Nothing more is read, so that the pipe fills up.
    Stall,
    /// Both connections are closed.
    Cut,
}

/// A listening proxy for one connection.
pub struct Proxy {
    listen: PathBuf,
    passed: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens at `listen` and, when somebody comes, connects to `to`.
    ///
    /// # Errors
    ///
    /// When it cannot listen there.
    pub fn start(listen: &Path, to: &Path, fault: Fault, after: u64) -> Result<Proxy> {
        let socket = UnixListener::bind(listen)
            .with_context(|| format!("cannot listen at {}", listen.display()))?;
        let passed = Arc::new(AtomicU64::new(0));
        let (to, count) = (to.to_owned(), Arc::clone(&passed));
        time::spawn("proxy", move || {
            let Ok((source, _)) = socket.accept() else { return };
            let Ok(target) = UnixStream::connect(&to) else { return };
            let answers = (target.try_clone(), source.try_clone());
            if let (Ok(from), Ok(to)) = answers {
                time::spawn("answers", move || pass(from, to, Fault::None, 0, &AtomicU64::new(0)));
            }
            pass(source, target, fault, after, &count);
        });
        Ok(Proxy { listen: listen.to_owned(), passed })
    }

    /// Where to migrate to.
    pub fn uri(&self) -> String {
        format!("unix:{}", self.listen.display())
    }

    /// Bytes that the source has sent so far.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

/// Carries bytes until either side ends, or the fault.
fn pass(mut from: UnixStream, mut to: UnixStream, fault: Fault, after: u64, passed: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    let mut left = after;
    let mut armed = fault != Fault::None;
    loop {
        // The byte at which it happens must be the first of what is read then.
        let limit = if armed && left > 0 { left.min(64 << 10) } else { 64 << 10 };
        if armed && left == 0 && fault == Fault::Stall {
            // Until the source gives up and hangs up, which a socket that nobody reads does not show.
            std::thread::park();
        }
        if armed && left == 0 && fault == Fault::Cut {
            break;
        }
        let Ok(limit) = usize::try_from(limit) else { break };
        let Ok(len @ 1..) = from.read(&mut buffer[..limit]) else { break };
        if armed && left == 0 {
            buffer[0] ^= 1;
            armed = false;
        }
        left = left.saturating_sub(len as u64);
        passed.fetch_add(len as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    // Whoever was closed already does not mind.
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}
