//! What becomes of requests whose end nobody waits for.

use super::*;
use crate::buf::IoBuf;

/// What the file has lost when a request that was given up ends in this way.
fn lost(verb: Verb, result: i32) -> i32 {
    let file = OpenFile::new(tempfile::tempfile().unwrap());
    let table = Rc::new(OpTable::default());
    let key = table.insert(Held::new(&file, verb));
    drop(Op::new(&table, key));
    table.complete(key, result);
    file.lost()
}

fn write(durable: bool) -> Verb {
    let buf = IoBuf::alloc(512);
    Verb::Transfer { way: Way::Write, at: 0, buf, durable, elsewhere: false }
}

#[test]
fn a_flush_that_fails_when_it_was_given_up_is_not_forgotten() {
    assert_eq!(lost(Verb::Sync, -libc::EIO), libc::EIO);
    assert_eq!(lost(Verb::Sync, -libc::ENOSPC), libc::ENOSPC);
    assert_eq!(lost(write(true), -libc::EIO), libc::EIO);
}

#[test]
fn what_fails_by_itself_loses_nothing_else() {
    let asked_again = [(Verb::Sync, 0), (Verb::Sync, -libc::EINTR), (Verb::Sync, -libc::EAGAIN)];
    let alone = [(write(true), -libc::ENOSPC), (write(true), 512), (write(false), -libc::EIO)];
    for (verb, result) in asked_again.into_iter().chain(alone) {
        assert_eq!(lost(verb, result), 0);
    }
}
