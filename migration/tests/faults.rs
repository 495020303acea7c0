//! Migrations that go wrong: at every step, on either side, on the wire at every byte.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "this is a test")]

mod support;

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferry_migration::session::Tuning;
use ferry_migration::stats::Status;
use ferry_migration::transport::Stream;
use ferry_migration::{ErrorKind, Session, dest, source};

use support::guest::Workload;
use support::machines::{FakeSource, Fault, facts};
use support::proxy::{Spoil, between};
use support::ram::FakeRam;
use support::{Side, migrate, run_source, start};

fn small() -> FakeSource {
    let ram = FakeRam::new(64, 64);
    for page in [3, 4, 90] {
        ram.fill(page, page + 1);
    }
    let mut source = FakeSource::new(ram, true);
    source.state_len = 64;
    source
}

/// The guest runs at the source as if nothing had happened.
fn assert_stayed(side: &Side<FakeSource, source::End>) {
    assert!(
        matches!(side.end, source::End::Stayed | source::End::Cancelled),
        "{:?}: {}",
        side.end,
        side.report()
    );
    assert!(side.machine.guest.is_running());
    assert!(side.machine.world.lock().unwrap().source_runs);
    assert_eq!(side.machine.calls.last(), Some(&"stop"), "the dirty log is off");
}

#[test]
fn a_fault_at_any_step_of_the_source_leaves_the_guest_there() {
    for step in ["start", "sync", "stop_guest", "save", "inactivate"] {
        let source = small().faulty(Fault::Fail(step));
        let dest = source.destination();
        let (source, dest) = migrate(source, dest);
        assert_stayed(&source);
        assert_eq!(source.report(), format!("fault at {step}"));
        assert_eq!(source.machine.statuses.last(), Some(&Status::Failed));
        assert_ne!(dest.end, dest::End::Arrived);
        assert_eq!(dest.report(), format!("the source gave up: fault at {step}"));
    }
}

#[test]
fn a_fault_at_any_step_of_the_destination_is_told_to_the_source() {
    for step in ["restore", "activate"] {
        let source = small();
        let dest = source.destination().faulty(Fault::Fail(step));
        let (source, dest) = migrate(source, dest);
        assert_stayed(&source);
        assert_eq!(source.report(), format!("the destination failed: fault at {step}"));
        assert_eq!(dest.end, dest::End::Failed);
        assert_eq!(dest.report(), format!("fault at {step}"));
    }
}

#[test]
fn a_guest_that_cannot_start_over_there_is_there_all_the_same() {
    let source = small();
    let dest = source.destination().faulty(Fault::Fail("run_guest"));
    let (source, dest) = migrate(source, dest);
    assert_eq!((source.end, dest.end), (source::End::Moved, dest::End::Arrived));
    assert_eq!(dest.report(), "the guest arrived, but stays paused: fault at run_guest");
}

#[test]
fn a_destination_killed_before_commit_leaves_the_guest_at_the_source() {
    let source = small();
    let dest = source.destination().faulty(Fault::Die("restore"));
    let run = start(source, dest, UnixStream::pair().unwrap(), Tuning::default());
    assert!(run.dest.join().is_err());
    let source = run.source.join().unwrap();
    assert_stayed(&source);
    assert_eq!(source.error.as_ref().unwrap().kind(), ErrorKind::Disconnected);
}

#[test]
fn a_destination_killed_after_it_took_the_disks_leaves_the_guest_paused() {
    for marks in [true, false] {
        let mut source = small();
        source.marks = marks;
        let dest = source.destination().faulty(Fault::Die("activate"));
        let run = start(source, dest, UnixStream::pair().unwrap(), Tuning::default());
        assert!(run.dest.join().is_err());
        let source = run.source.join().unwrap();
        assert_eq!(source.end, source::End::OwnershipUnknown);
        assert!(!source.machine.guest.is_running());
        assert!(source.report().starts_with("ownership unknown: "), "{}", source.report());
        assert_eq!(source.machine.statuses.last(), Some(&Status::Failed));
    }
}

#[test]
fn an_answer_lost_after_commit_is_decided_by_the_disks() {
    let ends = UnixStream::pair().unwrap();
    let wire = Arc::new(ends.0.try_clone().unwrap());
    let source = small();
    let dest = source.destination().faulty(Fault::Cut("activate", wire, Shutdown::Both));
    let run = start(source, dest, ends, Tuning::default());
    let (source, dest) = (run.source.join().unwrap(), run.dest.join().unwrap());
    assert_eq!(dest.end, dest::End::Arrived);
    assert_eq!(source.end, source::End::Moved);
    assert!(source.report().contains("did not confirm, but it holds the disks"));
    assert!(!source.machine.guest.is_running());
}

#[test]
fn commit_is_not_sent_to_a_destination_that_cannot_answer_any_more() {
    let ends = UnixStream::pair().unwrap();
    let wire = Arc::new(ends.1.try_clone().unwrap());
    let source = small().faulty(Fault::Cut("inactivate", wire, Shutdown::Write));
    let dest = source.destination();
    let run = start(source, dest, ends, Tuning::default());
    let (source, dest) = (run.source.join().unwrap(), run.dest.join().unwrap());
    assert_stayed(&source);
    assert_eq!(dest.end, dest::End::Failed);
    assert!(!dest.machine.calls.contains(&"activate"));
}

#[test]
fn a_cancel_at_any_step_before_commit_works() {
    for step in ["start", "sync", "stop_guest", "save", "inactivate"] {
        let outcome = Arc::new(Mutex::new(None));
        let source = small().faulty(Fault::Cancel(step, Arc::clone(&outcome)));
        let dest = source.destination();
        let (source, dest) = migrate(source, dest);
        assert!(outcome.lock().unwrap().take().unwrap().unwrap(), "this call cancelled it");
        assert_stayed(&source);
        assert_eq!(source.end, source::End::Cancelled, "at {step}");
        assert_eq!(source.machine.statuses.last(), Some(&Status::Cancelled));
        assert!(!source.machine.statuses.contains(&Status::Cancelling), "the caller said so");
        assert_ne!(dest.end, dest::End::Arrived);
    }
}

#[test]
fn a_cancel_at_the_destination_leaves_the_guest_at_the_source() {
    let outcome = Arc::new(Mutex::new(None));
    let source = small();
    let mut dest = source.destination().faulty(Fault::Cancel("restore", outcome));
    let source_session = Session::new(Tuning::default()).unwrap();
    let dest_session = Session::new(Tuning::default()).unwrap();
    dest.session = Some(dest_session.clone());
    let (a, b) = UnixStream::pair().unwrap();
    let stream = Stream::from_unix(a, source_session.canceller.clone()).unwrap();
    let source = run_source(source, source::Peer::Stream(stream), &source_session);
    let stream = Stream::from_unix(b, dest_session.canceller.clone()).unwrap();
    let dest = support::run_dest(dest, stream, &dest_session).join().unwrap();
    assert_stayed(&source.join().unwrap());
    assert_eq!(dest.end, dest::End::Failed);
    assert_eq!(dest.machine.statuses.last(), Some(&Status::Cancelled));
}

#[test]
fn a_cancel_after_commit_is_refused_and_changes_nothing() {
    let outcome = Arc::new(Mutex::new(None));
    let source = small();
    let mut dest = source.destination().faulty(Fault::Cancel("activate", Arc::clone(&outcome)));
    let source_session = Session::new(Tuning::default()).unwrap();
    let dest_session = Session::new(Tuning::default()).unwrap();
    // The destination's fault cancels the source's session while it activates.
    dest.session = Some(source_session.clone());
    let (a, b) = UnixStream::pair().unwrap();
    let stream = Stream::from_unix(a, source_session.canceller.clone()).unwrap();
    let source = run_source(source, source::Peer::Stream(stream), &source_session);
    let stream = Stream::from_unix(b, dest_session.canceller.clone()).unwrap();
    let dest = support::run_dest(dest, stream, &dest_session).join().unwrap();
    let source = source.join().unwrap();
    assert_eq!((source.end, dest.end), (source::End::Moved, dest::End::Arrived));
    let late = outcome.lock().unwrap().take().unwrap().unwrap_err();
    assert!(late.to_string().contains("can no longer be cancelled"));
    assert!(!source_session.cancel().unwrap(), "nothing is left to cancel");
}

/// Cancels after a while and returns how long it took to work.
fn cancel_after(session: &Session, wait: Duration) -> Instant {
    std::thread::sleep(wait);
    assert!(session.cancel().unwrap());
    let status = session.stats.snapshot().status;
    assert!(matches!(status, Status::Cancelling | Status::Cancelled), "{status:?}");
    Instant::now()
}

#[test]
fn a_full_pipe_can_be_cancelled() {
    let load = Workload { pages: 3000, rate: 20, zeroes: false };
    for stall in [0, 10, 1000, 100_000, 1_000_000] {
        let ram = FakeRam::new(6400, 64);
        (0..6000).for_each(|page| ram.fill(page, page + 1));
        let source = FakeSource::new(ram, true).working(load);
        let dest = source.destination();
        let (ends, _, _) = between(Spoil::Stall(stall), Spoil::Nothing);
        let run = start(source, dest, ends, Tuning::default());
        let cancelled = cancel_after(&run.source_session, Duration::from_millis(50));
        let source = run.source.join().unwrap();
        assert!(cancelled.elapsed() < Duration::from_secs(2), "{:?}", cancelled.elapsed());
        assert_stayed(&source);
        assert_eq!(source.end, source::End::Cancelled);
        run.dest.join().unwrap();
    }
}

#[test]
fn a_peer_that_never_answers_can_be_cancelled() {
    let (a, b) = UnixStream::pair().unwrap();
    let session = Session::new(Tuning::default()).unwrap();
    let stream = Stream::from_unix(a, session.canceller.clone()).unwrap();
    let source = run_source(small(), source::Peer::Stream(stream), &session);
    let cancelled = cancel_after(&session, Duration::from_millis(50));
    assert_stayed(&source.join().unwrap());
    assert!(cancelled.elapsed() < Duration::from_secs(2));
    drop(b);
}

#[test]
fn a_rate_limited_migration_can_be_cancelled() {
    let tuning = Tuning::default();
    tuning.set_max_bandwidth(1);
    let source = small();
    let dest = source.destination();
    let run = start(source, dest, UnixStream::pair().unwrap(), tuning);
    let cancelled = cancel_after(&run.source_session, Duration::from_millis(50));
    assert_stayed(&run.source.join().unwrap());
    assert!(cancelled.elapsed() < Duration::from_secs(2));
    run.dest.join().unwrap();
}

/// Whatever happens on the wire, there is at most one owner (the fake machines assert it), and where the
/// guest stayed it runs.
fn check_spoiled(forth: Spoil, back: Spoil) -> (source::End, dest::End) {
    let source = small();
    let dest = source.destination();
    let (ends, _, _) = between(forth, back);
    let run = start(source, dest, ends, Tuning::default());
    let (source, dest) = (run.source.join().unwrap(), run.dest.join().unwrap());
    match source.end {
        source::End::Stayed | source::End::Cancelled => {
            assert_stayed(&source);
            assert_ne!(dest.end, dest::End::Arrived, "{forth:?} {back:?}");
            assert!(!source.report().is_empty());
        }
        source::End::Moved => assert_eq!(dest.end, dest::End::Arrived, "{forth:?} {back:?}"),
        source::End::OwnershipUnknown | source::End::StayedPaused => {
            panic!("{forth:?} {back:?}: nobody has the guest: {}", source.report());
        }
    }
    (source.end, dest.end)
}

fn lengths() -> (u64, u64) {
    let source = small();
    let dest = source.destination();
    let (ends, forth, back) = between(Spoil::Nothing, Spoil::Nothing);
    let run = start(source, dest, ends, Tuning::default());
    assert_eq!(run.source.join().unwrap().end, source::End::Moved);
    run.dest.join().unwrap();
    let load = |count: support::proxy::Count| count.load(std::sync::atomic::Ordering::Relaxed);
    (load(forth), load(back))
}

/// Where the contents of the small guest's three pages are in the source's bytes: after the prelude, the
/// Facts frame, and the header, two runs and three checksums of a Pages frame.
fn page_contents() -> std::ops::Range<u64> {
    let facts = facts(&small().guest.ram).encode().unwrap().len() as u64;
    let start = 16 + 20 + facts + 20 + 2 * 12 + 3 * 4;
    start..start + 3 * 4096
}

/// Every byte outside page contents, some within.
fn offsets(len: u64) -> impl Iterator<Item = u64> {
    let contents = page_contents();
    (0..len).filter(move |at| !contents.contains(at) || at % 1009 == 0)
}

/// Every byte of the destination's answers but for the last answer, where each takes a second of watching
/// the locks: some of that.
fn answers(len: u64) -> impl Iterator<Item = u64> {
    (0..len).filter(move |at| at + 40 < len || at % 8 == 0)
}

#[test]
fn a_connection_cut_at_any_byte_leaves_one_owner() {
    let (forth, back) = lengths();
    for at in offsets(forth) {
        check_spoiled(Spoil::Cut(at), Spoil::Nothing);
    }
    for at in answers(back) {
        check_spoiled(Spoil::Nothing, Spoil::Cut(at));
    }
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let (forth, back) = lengths();
    for at in offsets(forth) {
        let (end, _) = check_spoiled(Spoil::Flip(at, 1 << (at % 8)), Spoil::Nothing);
        // The figures in the messages vary in length, and with them where the last bytes are.
        let past_end = forth - at < 100;
        assert!(end == source::End::Stayed || past_end, "{at}");
    }
    for at in answers(back) {
        check_spoiled(Spoil::Nothing, Spoil::Flip(at, 0x10));
    }
}
