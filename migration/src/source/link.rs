//! The source's half of the conversation: questions, answers, and the other side's last words.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::messages;
use crate::stream::{Frame, Framed, Kind};

/// How long to look for the peer's last words when the connection breaks.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(500);

/// Waits for the answer `wanted`; a failure that the destination reports instead is the error.
pub(super) fn answer(framed: &mut Framed, wanted: Kind, timeout: Duration) -> Result<Vec<u8>> {
    let frame = framed.receive(timeout)?;
    if frame.kind == wanted {
        return Ok(frame.body);
    }
    Err(not_an_answer(&frame))
}

/// Fails when the destination has said something although nothing was asked: it gave up, or left.
pub(super) fn check_quiet(framed: &mut Framed) -> Result<()> {
    if !framed.has_input() {
        return Ok(());
    }
    Err(not_an_answer(&framed.receive(LAST_WORDS_TIMEOUT)?))
}

/// Replaces "broken pipe" by what the destination said before it left, where it said something.
pub(super) fn last_words(framed: &mut Framed, error: Error) -> Error {
    if error.kind() != ErrorKind::Disconnected {
        return error;
    }
    match framed.receive(LAST_WORDS_TIMEOUT) {
        Ok(frame) if frame.kind == Kind::Failed => reported(&frame),
        _ => error,
    }
}

/// What a destination reported in a Failed or Refused frame.
pub(super) fn reported(frame: &Frame) -> Error {
    let text = messages::text(&frame.body);
    Error::new(ErrorKind::Remote, format!("the destination failed: {text}"))
}

fn not_an_answer(frame: &Frame) -> Error {
    match frame.kind {
        Kind::Failed => reported(frame),
        other => Error::corrupt(format!("the destination sent {other:?} out of turn")),
    }
}
