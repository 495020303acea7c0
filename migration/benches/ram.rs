//! How fast RAM moves: one GiB between two threads, against the limit of a bare copy.
//!
//! `cargo bench -p ferry-migration`. Each row is measured in the same run; the limit is one thread that
//! writes the same memory to a socket with large calls and another that reads it into fresh memory.
#![expect(unsafe_code, reason = "memory mapped for the machines")]
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, reason = "a bench")]
#![allow(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "figures for people")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ferry_migration::ram::{GuestRam, PAGE_SIZE};
use ferry_migration::session::Tuning;
use ferry_migration::transport::{Listener, Uri};
use ferry_migration::{Session, source};

use support::guest::Workload;
use support::machines::FakeSource;
use support::ram::FakeRam;
use support::{run_dest, run_source, thread};

/// Pages of the guest: 1 GiB.
const PAGES: u64 = 1 << 18;

fn main() {
    println!("{:<44} {:>9} {:>10} {:>10} {:>12}", "", "MiB/s", "total ms", "cpu ms", "downtime us");
    for _ in 0..2 {
        limit("memcpy into fresh memory", memcpy);
        limit("bare copy over tcp", || bare(tcp_pair()));
        limit("bare copy over unix", || bare(UnixStream::pair().unwrap()));
        for uri in ["tcp:127.0.0.1:0", "unix:/tmp/ferry-bench.sock"] {
            migrate("1 GiB filled, idle", uri, filled(PAGES), None);
            migrate("1 GiB, 40 MiB touched, idle", uri, filled(PAGES / 25), None);
            migrate("1 GiB untouched", uri, filled(0), None);
            // 51 pages per millisecond are 200 MiB/s.
            let load = Workload { pages: PAGES / 4, rate: 51, zeroes: false };
            migrate("1 GiB, 200 MiB/s in 256 MiB", uri, filled(PAGES / 4), Some(load));
        }
    }
}

fn filled(pages: u64) -> FakeRam {
    let ram = FakeRam::new(PAGES, 64);
    (0..pages).for_each(|page| ram.fill(page, page + 1));
    ram
}

/// Processor time of the whole process: on a busy machine it says more than the clock.
fn cpu() -> Duration {
    // SAFETY: all zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a valid place to write to.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let micros =
        |t: libc::timeval| Duration::from_micros((t.tv_sec * 1_000_000 + t.tv_usec) as u64);
    micros(usage.ru_utime) + micros(usage.ru_stime)
}

fn row(name: &str, bytes: u64, time: (Duration, Duration), downtime: Option<u64>) {
    let rate = bytes as f64 / (1 << 20) as f64 / time.0.as_secs_f64();
    let downtime = downtime.map_or_else(String::new, |us| us.to_string());
    let (wall, cpu) = (time.0.as_secs_f64() * 1e3, time.1.as_secs_f64() * 1e3);
    println!("{name:<44} {rate:>9.0} {wall:>10.1} {cpu:>10.1} {downtime:>12}");
}

fn limit(name: &str, copy: impl Fn() -> (Duration, Duration)) {
    row(name, PAGES * PAGE_SIZE, copy(), None);
}

/// The low region as bytes.
#[expect(clippy::mut_from_ref, reason = "the memory is nobody's in particular")]
fn bytes(ram: &FakeRam) -> &mut [u8] {
    let region = ram.regions()[0];
    let len = usize::try_from(region.len).unwrap();
    // SAFETY: mapped, and in these rows only one thread touches it.
    unsafe { std::slice::from_raw_parts_mut(region.host.as_ptr(), len) }
}

fn memcpy() -> (Duration, Duration) {
    let (from, to) = (filled(PAGES), filled(0));
    let begin = (Instant::now(), cpu());
    bytes(&to).copy_from_slice(bytes(&from));
    (begin.0.elapsed(), cpu() - begin.1)
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    (one, other)
}

fn bare<S: Read + Write + Send + 'static>((mut one, mut other): (S, S)) -> (Duration, Duration) {
    let (from, to) = (filled(PAGES), filled(0));
    let begin = (Instant::now(), cpu());
    let reader = thread("reader", move || {
        other.read_exact(bytes(&to)).unwrap();
        drop(to);
    });
    for chunk in bytes(&from).chunks(1 << 20) {
        one.write_all(chunk).unwrap();
    }
    reader.join().unwrap();
    (begin.0.elapsed(), cpu() - begin.1)
}

fn migrate(name: &str, uri: &str, ram: FakeRam, load: Option<Workload>) {
    let mut machine = FakeSource::new(ram, true);
    if let Some(load) = load {
        machine = machine.working(load);
    }
    let dest = machine.destination();
    let listener = Listener::bind(&Uri::parse(uri).unwrap()).unwrap();
    let to = listener.uri().unwrap();
    let sessions =
        (Session::new(Tuning::default()).unwrap(), Session::new(Tuning::default()).unwrap());
    let begin = (Instant::now(), cpu());
    let source = run_source(machine, source::Peer::Uri(to), &sessions.0);
    let stream = listener.accept(&sessions.1.canceller).unwrap();
    let dest = run_dest(dest, stream, &sessions.1);
    let source = source.join().unwrap();
    let time = (begin.0.elapsed(), cpu() - begin.1);
    dest.join().unwrap();
    assert_eq!(source.end, source::End::Moved, "{}", source.report());
    let stats = sessions.0.stats.snapshot();
    let name = format!("{name}, {}", uri.split(':').next().unwrap());
    row(&name, stats.ram.unwrap().transferred, time, stats.downtime_us);
    if load.is_some() {
        for round in stats.rounds {
            println!(
                "    round {}: {} KiB in {} us, {} KiB dirty after, predicted {} us: {}",
                round.round,
                round.bytes >> 10,
                round.micros,
                round.dirty_bytes >> 10,
                round.predicted_downtime,
                round.decision
            );
        }
        println!("    {:?}", stats.phases.unwrap());
    }
}
