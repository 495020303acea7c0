//! Whole migrations in memory, without faults.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "this is a test")]

mod support;

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ferry_migration::session::Tuning;
use ferry_migration::stats::Status;
use ferry_migration::transport::{Listener, Uri};
use ferry_migration::{Session, dest, source};

use support::guest::Workload;
use support::machines::FakeSource;
use support::ram::FakeRam;
use support::{migrate, run_dest, run_source, start};

fn sample(low: u64, high: u64) -> FakeSource {
    let ram = FakeRam::new(low, high);
    for page in (0..ram.pages()).step_by(3) {
        ram.fill(page, page + 1);
    }
    FakeSource::new(ram, true)
}

#[test]
fn an_idle_guest_arrives_whole() {
    let source = sample(640, 128);
    let dest = source.destination();
    let (source, dest) = migrate(source, dest);
    assert_eq!(
        (source.end, dest.end),
        (source::End::Moved, dest::End::Arrived),
        "{}",
        source.report()
    );
    assert_eq!(source.machine.guest.ram.first_difference(&dest.machine.guest.ram), None);
    assert!(dest.machine.world.lock().unwrap().dest_runs);
    assert_eq!(
        source.machine.statuses,
        [Status::Setup, Status::Active, Status::Device, Status::Completed]
    );
    assert_eq!(dest.machine.statuses, [Status::Active, Status::Completed]);
    assert_eq!(
        source.machine.calls,
        ["start", "sync", "stop_guest", "sync", "save", "inactivate", "forget", "stop"]
    );
    assert_eq!(dest.machine.calls, ["restore", "activate", "run_guest"]);
}

#[test]
fn the_figures_add_up_on_both_sides() {
    let source = sample(640, 128);
    let dest = source.destination();
    let run = start(source, dest, UnixStream::pair().unwrap(), Tuning::default());
    run.source.join().unwrap();
    run.dest.join().unwrap();
    let sent = run.source_session.stats.snapshot();
    let ram = sent.ram.unwrap();
    assert_eq!(ram.total, 768 * 4096);
    assert_eq!((ram.normal, ram.normal_bytes), (256, 256 * 4096));
    assert_eq!(ram.remaining, 0);
    assert!(ram.transferred > ram.normal_bytes && ram.transferred < ram.normal_bytes + 65536);
    assert_eq!(ram.transferred, ram.precopy_bytes + ram.downtime_bytes);
    assert_eq!(sent.rounds.len(), 1);
    assert!(sent.downtime_us.unwrap() > 0);
    let phases = sent.phases.unwrap();
    assert!(phases.commit >= phases.activate && phases.prepare >= phases.restore);
    let received = run.dest_session.stats.snapshot();
    assert_eq!(received.ram.unwrap().transferred, ram.transferred);
    assert_eq!(received.phases.unwrap().stop, phases.stop, "Commit carries the source's phases");
}

#[test]
fn untouched_and_zero_pages_are_not_sent() {
    let ram = FakeRam::new(6400, 6400);
    ram.fill(10, 1);
    ram.fill(6500, 2);
    for page in 100..164 {
        ram.fill(page, 1);
        ram.fill(page, 0);
    }
    let source = FakeSource::new(ram, true);
    let dest = source.destination();
    let run = start(source, dest, UnixStream::pair().unwrap(), Tuning::default());
    let source = run.source.join().unwrap();
    let dest = run.dest.join().unwrap();
    assert_eq!(source.machine.guest.ram.first_difference(&dest.machine.guest.ram), None);
    let ram = run.source_session.stats.snapshot().ram.unwrap();
    assert_eq!(ram.normal, 2);
    // Touched and zero; the kernel may count neighbours in, but not all of memory.
    assert!((64..2000).contains(&ram.duplicate), "{} zero pages looked at", ram.duplicate);
    assert!(ram.transferred < 3 * 4096);
}

#[test]
fn a_writing_guest_arrives_as_it_was_when_it_stopped() {
    for zeroes in [false, true] {
        let load = Workload { pages: 3000, rate: 50, zeroes };
        let source = sample(6400, 1024).working(load);
        let dest = source.destination();
        let (source, dest) = migrate(source, dest);
        assert_eq!(source.end, source::End::Moved, "{}", source.report());
        assert_eq!(source.machine.guest.ram.first_difference(&dest.machine.guest.ram), None);
    }
}

#[test]
fn a_guest_faster_than_the_limit_is_copied_until_it_may_be_stopped() {
    let tuning = Tuning::default();
    // 20 MiB/s against 50 pages/ms = 200 MiB/s: does not fit until the limit goes.
    tuning.set_max_bandwidth(20 << 20);
    tuning.set_downtime_limit(Duration::from_millis(10));
    let load = Workload { pages: 3000, rate: 50, zeroes: false };
    let source = sample(6400, 0x40).working(load);
    let dest = source.destination();
    let run = start(source, dest, UnixStream::pair().unwrap(), tuning.clone());
    std::thread::sleep(Duration::from_millis(700));
    let snapshot = run.source_session.stats.snapshot();
    assert_eq!(snapshot.status, Status::Active);
    let sent = snapshot.ram.unwrap().transferred;
    assert!((1 << 20..20 << 20).contains(&sent), "{sent} bytes in 0.7 s at 20 MiB/s");
    tuning.set_max_bandwidth(0);
    let source = run.source.join().unwrap();
    let dest = run.dest.join().unwrap();
    assert_eq!(source.end, source::End::Moved);
    assert_eq!(source.machine.guest.ram.first_difference(&dest.machine.guest.ram), None);
}

#[test]
fn a_paused_guest_arrives_paused() {
    let ram = FakeRam::new(64, 64);
    ram.fill(3, 3);
    let source = FakeSource::new(ram, false);
    let dest = source.destination();
    let (source, dest) = migrate(source, dest);
    assert_eq!((source.end, dest.end), (source::End::Moved, dest::End::Arrived));
    assert!(!dest.machine.world.lock().unwrap().dest_runs);
}

#[test]
fn state_larger_than_a_frame_arrives() {
    let mut source = sample(64, 64);
    source.state_len = 3 << 20;
    let dest = source.destination();
    let (source, dest) = migrate(source, dest);
    assert_eq!(dest.end, dest::End::Arrived, "{}", source.report());
}

#[test]
fn it_works_over_tcp_and_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}", dir.path().join("m.sock").display());
    for uri in ["tcp:127.0.0.1:0", &unix] {
        let source = sample(640, 128);
        let dest = source.destination();
        let listener = Listener::bind(&Uri::parse(uri).unwrap()).unwrap();
        let to = listener.uri().unwrap();
        let source_session = Session::new(Tuning::default()).unwrap();
        let dest_session = Session::new(Tuning::default()).unwrap();
        let source = run_source(source, source::Peer::Uri(to), &source_session);
        let stream = listener.accept(&dest_session.canceller).unwrap();
        let dest = run_dest(dest, stream, &dest_session);
        let (source, dest) = (source.join().unwrap(), dest.join().unwrap());
        assert_eq!(source.end, source::End::Moved, "{uri}: {}", source.report());
        assert_eq!(source.machine.guest.ram.first_difference(&dest.machine.guest.ram), None);
    }
    assert!(!dir.path().join("m.sock").exists(), "the listener leaves no socket behind");
}

#[test]
fn a_destination_that_does_not_listen_is_an_error_that_names_it() {
    let session = Session::new(Tuning::default()).unwrap();
    let uri = Uri::parse("unix:/nonexistent/ferry.sock").unwrap();
    let begin = Instant::now();
    let source = run_source(sample(64, 64), source::Peer::Uri(uri), &session).join().unwrap();
    assert_eq!(source.end, source::End::Stayed);
    assert_eq!(
        source.report(),
        "Failed to connect to '/nonexistent/ferry.sock': connect: No such file or directory"
    );
    assert_eq!(source.machine.calls, ["stop"], "the guest was not touched");
    assert_eq!(source.machine.statuses, [Status::Setup, Status::Failed]);
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_guest_migrates_again_after_a_failure() {
    let source = sample(640, 128);
    let mut wrong = source.destination();
    wrong.machine_type = "pc-2".into();
    let (first, refused) = migrate(source, wrong);
    assert_eq!((first.end, refused.end), (source::End::Stayed, dest::End::Untouched));
    let text = "the destination is another machine: machine type: source pc-1, destination pc-2";
    assert_eq!(refused.report(), text);
    assert_eq!(first.report(), format!("the destination failed: {text}"));
    let right = first.machine.destination();
    let mut again = first.machine;
    (again.passes, again.calls) = (0, vec![]);
    let (second, dest) = migrate(again, right);
    assert_eq!(second.end, source::End::Moved);
    assert_eq!(second.machine.guest.ram.first_difference(&dest.machine.guest.ram), None);
}
