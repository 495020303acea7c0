//! Streams that an attacker wrote: right checksums, wrong everything else. Guest memory lies between
//! guard pages, so that one byte outside it would end the test.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "this is a test")]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_migration::handshake::Prelude;
use ferry_migration::session::Tuning;
use ferry_migration::stream::Kind;
use ferry_migration::transport::Stream;
use ferry_migration::{Session, dest, source};
use proptest::prelude::*;

use support::machines::{FakeSource, facts};
use support::ram::FakeRam;
use support::{run_dest, run_source, thread};

/// A frame, written down from the specification and not with the code under test.
fn frame(kind: u8, body: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, 0, 0, 0];
    frame.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    frame.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
    frame.extend(crc32fast::hash(body).to_le_bytes());
    let crc = crc32fast::hash(&frame);
    frame.extend(crc.to_le_bytes());
    frame.extend(body);
    frame.extend(payload);
    frame
}

fn runs(list: &[(u64, u32)]) -> Vec<u8> {
    list.iter()
        .flat_map(|(first, count)| [&first.to_le_bytes()[..], &count.to_le_bytes()[..]].concat())
        .collect()
}

/// A Pages frame as an honest source writes it: each of its pages holds `page`, and has its checksum.
fn pages(list: &[(u64, u32)], count: usize, page: &[u8; 4096]) -> Vec<u8> {
    let sums = crc32fast::hash(page).to_le_bytes().repeat(count);
    frame(Kind::Pages as u8, &[runs(list), sums].concat(), &page.repeat(count))
}

fn machine() -> FakeSource {
    FakeSource::new(FakeRam::new(64, 64), true)
}

/// Sends prelude, facts and then `bytes` to a destination; returns how it ended.
fn attack(bytes: Vec<u8>) -> (dest::End, String, Arc<support::guest::Guest>) {
    let source = machine();
    let dest = source.destination();
    let guest = Arc::clone(&dest.guest);
    let session = Session::new(Tuning::default()).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = Stream::from_unix(theirs, session.canceller.clone()).unwrap();
    let dest = run_dest(dest, stream, &session);
    let body = facts(&source.guest.ram).encode().unwrap();
    let mut reader = ours.try_clone().unwrap();
    let answers = thread("answers", move || {
        let mut all = vec![];
        reader.read_to_end(&mut all).ok();
        all
    });
    let mut writer = ours;
    // The destination may hang up at any byte.
    let all = [&Prelude::OURS.encode()[..], &frame(Kind::Facts as u8, &body, &[]), &bytes].concat();
    if writer.write_all(&all).is_ok() {
        writer.shutdown(std::net::Shutdown::Write).ok();
    }
    let side = dest.join().expect("no panic");
    drop(writer);
    answers.join().unwrap();
    (side.end, side.report(), guest)
}

#[test]
fn pages_land_where_they_belong_and_nowhere_else() {
    let page = [7; 4096];
    type Case<'a> = (&'a [(u64, u32)], usize, &'a str);
    let cases: [Case<'_>; 9] = [
        (&[(3, 1)], 1, "the peer closed the connection"),
        (&[(64, 1), (127, 1)], 2, "the peer closed the connection"),
        (&[(128, 1)], 1, "pages 128+1 are not guest memory"),
        (&[(63, 2)], 2, "pages 63+2 are not guest memory"),
        (&[(u64::MAX, 1)], 1, "are not guest memory"),
        (&[(0, u32::MAX)], 1, "are not guest memory"),
        (&[(0, 0)], 0, "are not guest memory"),
        (&[(5, 1), (5, 1)], 2, "not in ascending order"),
        (&[(5, 1)], 2, "names 4096 bytes and carries 8192"),
    ];
    for (list, count, expected) in cases {
        let (end, text, guest) = attack(pages(list, count, &page));
        assert_eq!(end, dest::End::Failed);
        assert!(text.contains(expected), "{list:?}: {text}");
        let landed = expected.contains("closed");
        assert_eq!(guest.ram.is_zero(), !landed, "{list:?}");
    }
}

#[test]
fn a_page_that_does_not_arrive_as_it_was_sent_must_come_again() {
    let page = [7; 4096];
    let honest = pages(&[(3, 1)], 1, &page);
    let mut damaged = honest.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    // In CBOR: {"sections": 0, "guest_running": true}.
    let end = frame(Kind::StateEnd as u8, b"\xa2\x68sections\x00\x6dguest_running\xf5", &[]);
    let zero = frame(Kind::ZeroPages as u8, &runs(&[(3, 1)]), &[]);
    let noticed = "1 pages of guest memory did not arrive as they were sent, the first at 0x3000";
    // Without it the machine is loaded, and misses its own state.
    for (bytes, expected) in [
        (vec![honest.clone(), end.clone()], ""),
        (vec![damaged.clone(), end.clone()], noticed),
        (vec![honest.clone(), damaged.clone(), end.clone()], noticed),
        (vec![damaged.clone(), honest, end.clone()], ""),
        (vec![damaged, zero, end], ""),
    ] {
        let (_, text, _) = attack(bytes.concat());
        assert_eq!(text.contains("did not arrive"), !expected.is_empty(), "{text}");
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn frames_out_of_turn_are_refused() {
    let round = |n: u64| frame(Kind::RoundEnd as u8, &n.to_le_bytes(), &[]);
    for (bytes, expected) in [
        (frame(Kind::Commit as u8, &[], &[]), "Commit out of turn"),
        (round(2), "round 1 ended out of turn"),
        ([round(1), round(1)].concat(), "round 2 ended out of turn"),
        (frame(Kind::Facts as u8, &[], &[]), "Facts out of turn"),
        (frame(Kind::StateEnd as u8, &[0xff], &[]), "StateEnd message makes no sense"),
        (frame(Kind::State as u8, &[1, 0], &[]), "section is cut short"),
        (frame(Kind::Pages as u8, &[1, 2, 3], &[]), "not a list of page runs"),
        (frame(Kind::Pages as u8, &[1, 2, 3], &[0; 4096]), "more pages than checksums"),
        (frame(Kind::Cancel as u8, b"no\nmore", &[]), "the source gave up: no more"),
        (frame(0x55, &[], &[]), "unknown kind 0x55"),
    ] {
        let (end, text, guest) = attack(bytes);
        assert_eq!(end, dest::End::Failed);
        assert!(text.contains(expected), "{text}");
        assert!(guest.ram.is_zero());
    }
}

#[test]
fn somebody_who_is_no_ferry_is_told_apart() {
    let source = machine();
    let session = Session::new(Tuning::default()).unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let stream = Stream::from_unix(theirs, session.canceller.clone()).unwrap();
    let dest = run_dest(source.destination(), stream, &session);
    ours.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    drop(ours);
    let side = dest.join().unwrap();
    assert_eq!(side.end, dest::End::Untouched, "another source may try");
    assert!(side.report().contains("does not speak ferry's migration protocol"));
}

/// What an attacker may send: any kind, with a body that is nearly right.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        proptest::collection::vec((0u64..140, 0u32..4), 0..5).prop_map(|list| runs(&list)),
        (0u64..4).prop_map(|n| n.to_le_bytes().to_vec()),
    ];
    let kind = prop_oneof![4 => 1u8..9, 1 => any::<u8>()];
    (kind, body, 0usize..4, any::<bool>()).prop_map(|(kind, body, pages, fitting)| {
        let named: usize = body
            .chunks_exact(12)
            .map(|r| u32::from_le_bytes(r[8..].try_into().unwrap()).min(64) as usize)
            .sum();
        if kind != Kind::Pages as u8 {
            return frame(kind, &body, &[]);
        }
        let pages = if fitting { named } else { pages };
        let sums = vec![fitting.into(); pages * 4];
        frame(kind, &[body, sums].concat(), &vec![9; pages * 4096])
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_stream_harms_the_destination(
        frames in proptest::collection::vec(any_frame(), 0..12),
        flip in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut bytes = frames.concat();
        if let (Some((at, bits)), false) = (flip, bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
        }
        let begin = Instant::now();
        let (end, text, _) = attack(bytes);
        prop_assert_eq!(end, dest::End::Failed);
        prop_assert!(!text.is_empty());
        prop_assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn no_answer_harms_the_source(
        frames in proptest::collection::vec(
            (prop_oneof![4 => 0x81u8..0x87, 1 => any::<u8>()],
             proptest::collection::vec(any::<u8>(), 0..30)),
            0..6,
        ),
        welcome in any::<bool>(),
    ) {
        let source = machine();
        source.guest.ram.fill(1, 1);
        let body = facts(&source.guest.ram).encode().unwrap();
        let session = Session::new(Tuning::default()).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let stream = Stream::from_unix(ours, session.canceller.clone()).unwrap();
        let run = run_source(source, source::Peer::Stream(stream), &session);
        let mut answers = Prelude::OURS.encode().to_vec();
        if welcome {
            answers.extend(frame(Kind::Welcome as u8, &body, &[]));
        }
        for (kind, body) in frames {
            answers.extend(frame(kind, &body, &[]));
        }
        theirs.write_all(&answers).ok();
        theirs.shutdown(std::net::Shutdown::Write).ok();
        let mut sink = vec![];
        theirs.read_to_end(&mut sink).ok();
        let side = run.join().expect("no panic");
        prop_assert_eq!(side.end, source::End::Stayed);
        prop_assert!(side.machine.guest.is_running());
    }
}
