use std::io::Write;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::*;
use crate::cancel::Canceller;

const SHORT: Duration = Duration::from_millis(200);

fn pair() -> (Framed, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = Stream::from_unix(ours, Canceller::new().unwrap()).unwrap();
    (Framed::new(stream, Side::Destination), theirs)
}

fn receive(bytes: &[u8]) -> Result<Frame> {
    let (mut framed, mut peer) = pair();
    peer.write_all(bytes).unwrap();
    drop(peer);
    framed.receive(SHORT)
}

/// A frame with whatever in it, and right checksums: what only an attacker sends.
fn forged(kind: u8, flags: u8, channel: u16, body_len: u32, payload_len: u32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[0] = kind;
    header[1] = flags;
    header[2..4].copy_from_slice(&channel.to_le_bytes());
    header[4..8].copy_from_slice(&body_len.to_le_bytes());
    header[8..12].copy_from_slice(&payload_len.to_le_bytes());
    let crc = crc32fast::hash(&header[..16]);
    header[16..].copy_from_slice(&crc.to_le_bytes());
    header
}

fn text_of(result: Result<Frame>) -> String {
    result.unwrap_err().report()
}

#[test]
fn a_frame_arrives_as_it_was_sent() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = |s| Stream::from_unix(s, Canceller::new().unwrap()).unwrap();
    let mut source = Framed::new(stream(ours), Side::Source);
    let mut dest = Framed::new(stream(theirs), Side::Destination);
    source.send(Kind::State, b"body").unwrap();
    let frame = dest.receive(SHORT).unwrap();
    assert_eq!((frame.kind, frame.body.as_slice()), (Kind::State, b"body".as_slice()));
    dest.send_text(Kind::Failed, &"ä".repeat(MAX_TEXT_LEN)).unwrap();
    let frame = source.receive(SHORT).unwrap();
    assert_eq!(String::from_utf8(frame.body).unwrap().chars().count(), MAX_TEXT_LEN / 2);
}

#[test]
fn every_length_is_limited_before_anything_is_made_of_it() {
    for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_answer()) {
        let over = u32::try_from(kind.body_limit()).unwrap() + 1;
        for (body, payload) in [(over, 0), (u32::MAX, 0), (0, MAX_PAGES_LEN + 1)] {
            let text = text_of(receive(&forged(kind as u8, 0, 0, body, payload)));
            assert!(text.contains("more than"), "{kind:?}: {text}");
        }
    }
    let text = text_of(receive(&forged(Kind::Commit as u8, 0, 0, 0, 1)));
    assert!(text.contains("Commit frame of 0+1 bytes"), "only Pages carry a payload: {text}");
}

#[test]
fn what_is_unknown_is_refused() {
    assert!(text_of(receive(&forged(0x7f, 0, 0, 0, 0))).contains("unknown kind 0x7f"));
    assert!(text_of(receive(&forged(7, 1, 0, 0, 0))).contains("flags or channel"));
    assert!(text_of(receive(&forged(7, 0, 1, 0, 0))).contains("flags or channel"));
    let running = forged(Kind::Running as u8, 0, 0, 0, 0);
    assert!(text_of(receive(&running)).contains("from the wrong side"));
}

#[test]
fn a_damaged_length_is_noticed_before_waiting_for_it() {
    let (mut framed, mut peer) = pair();
    let mut header = header(Kind::State, &[0; 100], 0).unwrap();
    header[4] ^= 8;
    peer.write_all(&header).unwrap();
    // The peer stays connected and sends no more.
    assert_eq!(framed.receive(SHORT).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn silence_ends_with_the_time_and_not_never() {
    let (mut framed, _peer) = pair();
    assert_eq!(framed.receive(SHORT).unwrap_err().kind(), ErrorKind::TimedOut);
}

#[test]
fn nothing_follows_a_torn_frame() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = Stream::from_unix(ours, Canceller::new().unwrap()).unwrap();
    let mut framed = Framed::new(stream, Side::Source);
    framed.set_patience(Duration::ZERO);
    assert!(framed.send(Kind::State, &vec![0; 16 << 20]).is_err());
    let error = framed.send_text(Kind::Cancel, "why").unwrap_err();
    assert!(error.to_string().contains("mid-frame"));
    drop(theirs);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn random_bytes_are_never_a_frame(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(receive(&bytes).is_err());
    }
}
