//! What becomes of requests whose end nobody waits for, and what those learn that end beside others.

use std::pin::pin;

use super::*;
use crate::buf::IoBuf;

/// A file as on NFS, or as on a disk.
fn open(is_nfs: bool) -> Rc<OpenFile> {
    let mut file = OpenFile::new(tempfile::tempfile().unwrap());
    Rc::get_mut(&mut file).unwrap().is_nfs = is_nfs;
    file
}

/// What the file has lost when a request that was given up ends in this way.
fn lost(file: &Rc<OpenFile>, verb: Verb, result: i32) -> i32 {
    let table = Rc::new(OpTable::default());
    let key = table.insert(Held::new(file, verb));
    drop(Op::new(&table, key));
    table.complete(key, result);
    file.lost()
}

fn write() -> Verb {
    let buf = IoBuf::alloc(512);
    Verb::Transfer { way: Way::Write, at: 0, buf, durable: false, elsewhere: false }
}

fn sync(range: Option<std::ops::Range<u64>>) -> Verb {
    Verb::Sync { range }
}

#[test]
fn a_flush_that_fails_when_it_was_given_up_is_not_forgotten() {
    for errno in [libc::EIO, libc::ENOSPC] {
        assert_eq!(lost(&open(false), sync(None), -errno), errno);
        assert_eq!(lost(&open(false), sync(Some(0..512)), -errno), errno);
        assert_eq!(lost(&open(true), write(), -errno), errno, "NFS tells of earlier writes");
    }
}

#[test]
fn what_fails_by_itself_loses_nothing_else() {
    let asked_again = [(sync(None), 0), (sync(None), -libc::EINTR), (sync(None), -libc::EAGAIN)];
    let alone = [(write(), -libc::ENOSPC), (write(), 512), (write(), -libc::EIO)];
    for (verb, result) in asked_again.into_iter().chain(alone) {
        assert_eq!(lost(&open(false), verb, result), 0);
    }
}

#[test]
fn a_sync_ends_when_those_beside_it_have_told_what_they_know() {
    let file = open(false);
    let table = Rc::new(OpTable::default());
    let begin = |verb| table.insert(Held::new(&file, verb));
    let (first, second) = (begin(sync(None)), begin(sync(Some(0..512))));
    let waker = Waker::noop();
    let mut told = pin!(file.told());
    let mut is_told = || told.as_mut().poll(&mut Context::from_waker(waker)).is_ready();
    assert!(!is_told());
    // Neither writes nor what came later hold it up.
    let (_later, _write) = (begin(sync(None)), begin(write()));
    table.complete(second, 0);
    assert!(!is_told());
    table.complete(first, -libc::EIO);
    assert_eq!(file.lost(), libc::EIO);
    assert!(is_told());
}
