//! What is special when a connection is encrypted: the bytes that wait are not those that were queued.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::peer_tests::{at, certificates, folder, text, with_server, with_tls_client};
use super::*;
use crate::clock::Clock;
use crate::executor::within;
use crate::net::SocketAddress;

/// What TLS encrypts at once, bytes.
const CHUNK: usize = 64 << 10;

/// How many bytes a local socket takes while nobody reads them.
fn capacity() -> usize {
    let (mut full, _idle) = UnixStream::pair().unwrap();
    socket2::SockRef::from(&full).set_send_buffer_size(2 << 20).unwrap();
    full.set_nonblocking(true).unwrap();
    let mut count = 0;
    while let Ok(written) = full.write(&[0; CHUNK]) {
        count += written;
    }
    count
}

/// Takes one client to `server`. Whenever it begins to send much, it has the time to fill its socket.
fn relay(listener: &UnixListener, server: &str) -> std::io::Result<()> {
    let (mut client, _) = listener.accept()?;
    let mut server = UnixStream::connect(server)?;
    let (mut answers, mut back) = (server.try_clone()?, client.try_clone()?);
    let _answering = crate::thread::spawn("answers", move || {
        drop(std::io::copy(&mut answers, &mut back));
    });
    let clock = Clock::real();
    let (mut bytes, mut last) = (vec![0; CHUNK], clock.now());
    loop {
        let count = client.read(&mut bytes)?;
        if count == bytes.len() && clock.now() - last > 50_000_000 {
            std::thread::sleep(Duration::from_millis(100));
        }
        last = clock.now();
        if count == 0 {
            return server.shutdown(std::net::Shutdown::Both);
        }
        server.write_all(&bytes[..count])?;
    }
}

/// A socket may be full just when the last bytes of a request have been encrypted, and nothing else wakes who
/// sends them.
#[test]
fn what_is_encrypted_leaves_to_its_last_byte() {
    let around = capacity();
    let lengths = (around.saturating_sub(4 * CHUNK)..around + 4 * CHUNK).step_by(CHUNK * 3 / 4);
    let (folder, disk, socket) = folder(around + 4 * CHUNK);
    certificates(folder.path());
    let (dir, between) = (text(folder.path()), text(&folder.path().join("between")));
    let listener = UnixListener::bind(&between).unwrap();
    let name = socket.clone();
    with_server(&disk, SocketAddress::unix(&socket), Some(&dir), |_name| {
        let relay = crate::thread::spawn("relay", move || relay(&listener, &name)).unwrap();
        with_tls_client(&dir, at(&between, "disk"), async |executor, node| {
            for len in lengths {
                let write = node.write(0, IoBuf::from_vec(&vec![7; len]), WriteFlags::NONE);
                let written = within(executor, Duration::from_secs(10), write).await;
                written.unwrap_or_else(|| panic!("{len} bytes never arrive")).unwrap();
                // The next one is a burst of its own.
                executor.sleep(Duration::from_millis(60)).await;
            }
        });
        drop(relay.join());
    });
}
