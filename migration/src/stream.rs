//! The migration protocol: what goes over the connection, and its framing.
//!
//! ```text
//!  source                                             destination
//!    | -- Prelude: magic, protocol versions ---------------> |
//!    | <------------------------ Prelude ------------------- |
//!    | -- Facts: the machine ------------------------------> | compares
//!    | <------------------------ Welcome: its own facts ---- | or Failed: why not
//!    |                                                       |
//!    | == round n, guest running ===========================  |
//!    | -- Pages: runs, then their contents ----------------> | straight into guest memory
//!    | -- ZeroPages: runs ---------------------------------> |
//!    | -- RoundEnd n --------------------------------------> |
//!    | <------------------------ RoundDone n --------------- | has everything so far
//!    | == as many rounds as pay =============================|
//!    |                                                       |
//!    | guest stops; last Pages, ZeroPages -----------------> |
//!    | -- State: sections, any number of frames -----------> |
//!    | -- StateEnd: how many; did the guest run? ----------> | loads and validates everything
//!    | <------------------------ Prepared ------------------ | or Failed: why not
//!    | gives all disks up                                    |
//!    | -- Commit ------------------------------------------> | takes all disks
//!    | <------------------------ Running ------------------- | or Refused: why not
//!    | forgets the guest                                     | guest runs
//! ```
//!
//! Before Commit the destination may say Failed with a text at any moment and the source Cancel; both
//! end the migration and the guest stays where it was. After Commit only Running and Refused are
//! answers, and no answer is not one: see [`source`](crate::source).
//!
//! # Framing
//!
//! A [`Prelude`] of 16 bytes each way, then frames. Numbers are little endian.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | kind, see [`Kind`]; 0x80 and above go from the destination to the source |
//! | 1 | flags, 0 |
//! | 2 | channel, 0: room for more connections and for disks over the same one |
//! | 4 | body length, limited per kind |
//! | 4 | payload length; 0 but for Pages |
//! | 4 | CRC-32 of the body |
//! | 4 | CRC-32 of the 16 bytes before it: a damaged length must not have us wait for what never comes |
//!
//! then the body, then the payload. The payload of Pages is memory that the guest may change while it is
//! sent, so its checksums, one per page in the body, may not hold; then the page comes again in a later round.
//! Once the guest is stopped they must hold: a page whose last sum does not ends the migration.
//!
//! Nothing is allocated for a frame before its length has been compared with the limit of its kind. A
//! frame of an unknown kind, with a flag, on an unknown channel, or going the wrong way ends the migration.
//!
//! # Compatibility
//!
//! The framing and the prelude stay for ever. A protocol version adds kinds or changes bodies; both
//! sides speak the newest version that both know. What moves inside State has versions of its own, per
//! section.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::handshake::{PRELUDE_LEN, Prelude};
use crate::ram::{GuestSlice, PAGE_SIZE};
use crate::state::{MAX_INSTANCE_LEN, MAX_KIND_LEN, MAX_PAYLOAD_LEN};
use crate::sys::{Piece, PieceMut};
use crate::transport::Stream;

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 20;
/// Most bytes of page contents in one frame.
pub const MAX_PAGES_LEN: u32 = 4 << 20;
/// Most pages in one frame.
const MAX_PAGES: usize = 1 << 10;
const _: () = assert!(MAX_PAGES as u64 * PAGE_SIZE == MAX_PAGES_LEN as u64);
/// Most runs in one Pages or ZeroPages frame: with header and body as many pieces as one call takes.
pub const MAX_RUNS: usize = 1000;
/// Bytes of one run in a frame body.
pub const RUN_LEN: usize = 12;
/// Bytes of one page's checksum (CRC-32) in the body of a Pages frame.
pub const SUM_LEN: usize = 4;
/// Longest text of a Failed, Refused or Cancel frame; what is longer is cut.
pub const MAX_TEXT_LEN: usize = 16 << 10;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The source's [`Facts`](crate::handshake::Facts), CBOR.
    Facts = 0x01,
    /// Runs of pages (first page 8 bytes, count 4 bytes each), then the checksum of each page; the payload is
    /// their contents.
    Pages = 0x02,
    /// Runs of pages that hold zeros now.
    ZeroPages = 0x03,
    /// A round is over: its number, 8 bytes.
    RoundEnd = 0x04,
    /// State sections, one after the other, each whole.
    State = 0x05,
    /// All state was sent, CBOR.
    StateEnd = 0x06,
    /// The source has given the disks up, CBOR.
    Commit = 0x07,
    /// The source gave up before Commit, or its user did: a text.
    Cancel = 0x08,
    /// The destination's [`Facts`](crate::handshake::Facts), CBOR: it fits.
    Welcome = 0x81,
    /// A round has arrived: its number, 8 bytes.
    RoundDone = 0x82,
    /// All state is loaded and valid, CBOR.
    Prepared = 0x83,
    /// The destination owns the guest, CBOR.
    Running = 0x84,
    /// The destination could not take the disks, holds none, and will never run: a text.
    Refused = 0x85,
    /// The destination gave up before Commit: a text.
    Failed = 0x86,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 14] = [
        Kind::Facts,
        Kind::Pages,
        Kind::ZeroPages,
        Kind::RoundEnd,
        Kind::State,
        Kind::StateEnd,
        Kind::Commit,
        Kind::Cancel,
        Kind::Welcome,
        Kind::RoundDone,
        Kind::Prepared,
        Kind::Running,
        Kind::Refused,
        Kind::Failed,
    ];

    fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Most bytes the body of this kind may have.
    pub fn body_limit(self) -> usize {
        match self {
            Kind::Facts | Kind::Welcome => 1 << 20,
            Kind::Pages => MAX_RUNS * RUN_LEN + MAX_PAGES * SUM_LEN,
            Kind::ZeroPages => MAX_RUNS * RUN_LEN,
            // One section of the greatest size always fits.
            Kind::State => MAX_PAYLOAD_LEN + MAX_KIND_LEN + MAX_INSTANCE_LEN + 64,
            Kind::RoundEnd | Kind::RoundDone => 8,
            Kind::StateEnd | Kind::Commit | Kind::Prepared | Kind::Running => 4 << 10,
            Kind::Refused | Kind::Failed | Kind::Cancel => MAX_TEXT_LEN,
        }
    }

    /// Does the destination send it?
    fn is_answer(self) -> bool {
        self as u8 >= 0x80
    }
}

/// A received frame; its payload, if any, is still in the connection and must be read next.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) body: Vec<u8>,
    pub(crate) payload_len: u32,
}

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// Frames over a stream.
#[derive(Debug)]
pub(crate) struct Framed {
    stream: Stream,
    side: Side,
    /// A frame was written in part: nothing more may be.
    torn: bool,
}

impl Framed {
    pub(crate) fn new(stream: Stream, side: Side) -> Framed {
        Framed { stream, side, torn: false }
    }

    /// Exchanges preludes, the source's first: who calls and is no ferry gets no answer.
    pub(crate) fn exchange_preludes(&mut self, timeout: Duration) -> Result<Prelude> {
        if self.side == Side::Source {
            self.write(&mut [Piece::bytes(&Prelude::OURS.encode())])?;
        }
        let mut theirs = [0; PRELUDE_LEN];
        self.stream.read_all(&mut [PieceMut::bytes(&mut theirs)], timeout)?;
        let theirs = Prelude::decode(theirs)?;
        if self.side == Side::Destination {
            self.write(&mut [Piece::bytes(&Prelude::OURS.encode())])?;
        }
        Ok(theirs)
    }

    /// Sends a frame without payload. An error means that the peer cannot have received it whole.
    pub(crate) fn send(&mut self, kind: Kind, body: &[u8]) -> Result<()> {
        let header = header(kind, body, 0)?;
        self.write(&mut [Piece::bytes(&header), Piece::bytes(body)])
    }

    /// Sends runs and the memory they name, in one call where the kernel takes it.
    pub(crate) fn send_pages(&mut self, body: &[u8], slices: &[GuestSlice<'_>]) -> Result<()> {
        let payload: usize = slices.iter().map(GuestSlice::len).sum();
        let header = header(Kind::Pages, body, payload)?;
        let mut pieces = Vec::with_capacity(slices.len() + 2);
        pieces.extend([Piece::bytes(&header), Piece::bytes(body)]);
        pieces.extend(slices.iter().map(|slice| Piece::guest(*slice)));
        self.write(&mut pieces)
    }

    /// Sends a text that says why something failed; cut to the limit.
    pub(crate) fn send_text(&mut self, kind: Kind, text: &str) -> Result<()> {
        let mut end = text.len().min(MAX_TEXT_LEN);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.send(kind, &text.as_bytes()[..end])
    }

    fn write(&mut self, pieces: &mut [Piece<'_>]) -> Result<()> {
        if self.torn {
            return Err(Error::new(ErrorKind::Disconnected, "the stream was left in mid-frame"));
        }
        let result = self.stream.write_all(pieces);
        self.torn = result.is_err();
        result
    }

    /// Receives a frame, waiting at most `timeout` whenever nothing comes.
    pub(crate) fn receive(&mut self, timeout: Duration) -> Result<Frame> {
        let mut header = [0; HEADER_LEN];
        self.stream.read_all(&mut [PieceMut::bytes(&mut header)], timeout)?;
        let (frame, crc) = parse_header(&header, self.side)?;
        let mut frame = frame;
        self.stream.read_all(&mut [PieceMut::bytes(&mut frame.body)], timeout)?;
        if crc32fast::hash(&frame.body) != crc {
            return Err(Error::corrupt(format!("a {:?} frame arrived damaged", frame.kind)));
        }
        Ok(frame)
    }

    /// Reads a payload straight into guest memory.
    pub(crate) fn receive_pages(
        &mut self,
        slices: &[GuestSlice<'_>],
        timeout: Duration,
    ) -> Result<()> {
        let mut pieces: Vec<_> = slices.iter().map(|slice| PieceMut::guest(*slice)).collect();
        self.stream.read_all(&mut pieces, timeout)
    }

    /// Has the peer said something, or left?
    pub(crate) fn has_input(&self) -> bool {
        self.stream.has_input()
    }

    /// Changes how long a write may stand still before the peer counts as hung.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.stream.set_patience(patience);
    }

    /// Says why we leave, if that can be said without waiting, and cuts the connection.
    pub(crate) fn hang_up(&mut self, last_words: Option<(Kind, &str)>) {
        self.stream.set_patience(Duration::ZERO);
        if let Some((kind, text)) = last_words
            && let Err(error) = self.send_text(kind, text)
        {
            tracing::debug!("the peer was not told why: {}", error.report());
        }
        self.stream.close();
    }

    /// Waits for the peer to read what was sent and to close, at most `timeout` and `limit` bytes: a
    /// connection that is closed with unread input takes the last words with it.
    pub(crate) fn linger(&mut self, timeout: Duration, limit: usize) {
        self.stream.finish_writing();
        let mut sink = vec![0; 64 << 10];
        let mut left = limit;
        while left > 0 {
            let chunk = sink.len().min(left);
            // Ends with an error at the latest when the peer closes.
            if self.stream.read_all(&mut [PieceMut::bytes(&mut sink[..chunk])], timeout).is_err() {
                return;
            }
            left -= chunk;
        }
    }
}

/// The header of a frame.
pub(crate) fn header(kind: Kind, body: &[u8], payload: usize) -> Result<[u8; HEADER_LEN]> {
    let too_long = || {
        Error::new(ErrorKind::Io, format!("a {kind:?} frame of {} bytes is too long", body.len()))
    };
    if body.len() > kind.body_limit() || payload > MAX_PAGES_LEN as usize {
        return Err(too_long());
    }
    let body_len = u32::try_from(body.len()).map_err(|_over| too_long())?;
    let payload_len = u32::try_from(payload).map_err(|_over| too_long())?;
    let mut header = [0; HEADER_LEN];
    header[0] = kind as u8;
    header[4..8].copy_from_slice(&body_len.to_le_bytes());
    header[8..12].copy_from_slice(&payload_len.to_le_bytes());
    header[12..16].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    let crc = crc32fast::hash(&header[..16]);
    header[16..].copy_from_slice(&crc.to_le_bytes());
    Ok(header)
}

/// Checks everything that can be checked without the body, and makes room for that. Returns the
/// body's checksum to compare.
fn parse_header(header: &[u8; HEADER_LEN], side: Side) -> Result<(Frame, u32)> {
    let [kind, flags, ch0, ch1, b0, b1, b2, b3, p0, p1, p2, p3, c0, c1, c2, c3, crc @ ..] = *header;
    if crc32fast::hash(&header[..16]) != u32::from_le_bytes(crc) {
        return Err(Error::corrupt("a frame header arrived damaged"));
    }
    let body_len = u32::from_le_bytes([b0, b1, b2, b3]) as usize;
    let payload_len = u32::from_le_bytes([p0, p1, p2, p3]);
    let known = Kind::from_byte(kind)
        .ok_or_else(|| Error::corrupt(format!("frame of unknown kind {kind:#04x}")))?;
    if flags != 0 || ch0 != 0 || ch1 != 0 {
        return Err(Error::corrupt(format!("{known:?} frame with unknown flags or channel")));
    }
    if known.is_answer() != (side == Side::Source) {
        return Err(Error::corrupt(format!("{known:?} frame from the wrong side")));
    }
    let payload_limit = if known == Kind::Pages { MAX_PAGES_LEN } else { 0 };
    if body_len > known.body_limit() || payload_len > payload_limit {
        return Err(Error::corrupt(format!(
            "{known:?} frame of {body_len}+{payload_len} bytes, more than {}+{payload_limit}",
            known.body_limit()
        )));
    }
    let frame = Frame { kind: known, body: vec![0; body_len], payload_len };
    Ok((frame, u32::from_le_bytes([c0, c1, c2, c3])))
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
