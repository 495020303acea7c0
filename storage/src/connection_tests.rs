//! What standard input and output may be.

use std::process::Command;

use super::*;

/// Whether reading from or writing to it may block.
fn blocks(fd: &impl AsRawFd) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    i32::from_str_radix(flags.trim(), 8).unwrap() & libc::O_NONBLOCK == 0
}

#[test]
fn what_others_use_goes_on_blocking() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
    let writer = OpenOptions::new().write(true).open(&fifo).unwrap();
    let ours = never_blocking(writer.as_fd(), OpenOptions::new().write(true)).unwrap();
    assert!(!blocks(&ours) && blocks(&writer));
    // While nobody reads, it cannot be opened so.
    drop((reader, ours));
    assert!(never_blocking(writer.as_fd(), OpenOptions::new().write(true)).is_err());
    assert!(blocks(&writer));
}

#[test]
fn a_socket_is_used_as_it_is() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let file = never_blocking(ours.as_fd(), OpenOptions::new().read(true)).unwrap();
    assert!(!blocks(&file) && file.metadata().unwrap().file_type().is_socket());
}
