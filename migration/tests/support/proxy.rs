//! Something in the middle of the connection that spoils it at an exact byte.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::thread;

/// What happens to one direction, at the byte of that number.
#[derive(Debug, Clone, Copy)]
pub enum Spoil {
    Nothing,
    /// These bits of the byte flip.
    Flip(u64, u8),
    /// The connection breaks before that byte.
    Cut(u64),
    /// Nothing passes any more from that byte on, and nothing is read.
    Stall(u64),
}

/// How many bytes passed.
pub type Count = Arc<AtomicU64>;

/// Two ends with a proxy between them, and the bytes that passed in each direction.
pub fn between(forth: Spoil, back: Spoil) -> ((UnixStream, UnixStream), Count, Count) {
    let (source, left) = UnixStream::pair().unwrap();
    let (right, dest) = UnixStream::pair().unwrap();
    let (count_forth, count_back) = (Count::default(), Count::default());
    pump(&left, &right, forth, Arc::clone(&count_forth));
    pump(&right, &left, back, Arc::clone(&count_back));
    ((source, dest), count_forth, count_back)
}

fn pump(from: &UnixStream, to: &UnixStream, spoil: Spoil, count: Count) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread("proxy", move || {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let seen = count.load(Ordering::Relaxed);
            let Ok(got @ 1..) = from.read(&mut buffer) else { break };
            let end = seen + got as u64;
            let mut pass = got;
            match spoil {
                Spoil::Flip(at, bits) if (seen..end).contains(&at) => {
                    buffer[usize::try_from(at - seen).unwrap()] ^= bits;
                }
                Spoil::Cut(at) | Spoil::Stall(at) if at < end => {
                    pass = usize::try_from(at.saturating_sub(seen)).unwrap();
                }
                _ => {}
            }
            let passed = to.write_all(&buffer[..pass]);
            count.store(seen + pass as u64, Ordering::Relaxed);
            if passed.is_err() {
                break;
            }
            if pass < got {
                if matches!(spoil, Spoil::Stall(_)) {
                    // Held open until the other side goes.
                    while !is_closed(&from) && !is_closed(&to) {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                }
                break;
            }
        }
        // What was cut off one way is cut off both ways: that is a connection, not a pipe.
        from.shutdown(Shutdown::Both).ok();
        to.shutdown(Shutdown::Both).ok();
    });
}

/// Would a write fail? Asked without writing.
fn is_closed(stream: &UnixStream) -> bool {
    let mut fd =
        libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(stream), events: 0, revents: 0 };
    #[expect(unsafe_code, reason = "poll has no safe wrapper here")]
    // SAFETY: one valid entry.
    let ready = unsafe { libc::poll(&raw mut fd, 1, 0) };
    ready > 0
}
