//! Whether a disk can be carried on by what a new connection offers.
//!
//! The limits of the node and the requests under way were made for the first server. What a later one can do
//! besides is not made use of, so that any server that can do what the first one could will do after it.

use super::super::negotiate::Facts;
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::proto::{HeaderStyle, export};

/// What holds when a disk of which `before` was said is carried on where `now` is said.
///
/// # Errors
/// Requests that were made for what was there before make no sense there.
pub(super) fn succeed(before: &Facts, now: &Facts) -> Result<Facts> {
    // As before, only what is whole blocks can be asked for.
    let size = now.size & !u64::from(before.min_block - 1);
    if size < before.size {
        return refuse(&format!("it has {size} bytes, not {}", before.size));
    }
    if now.flags & export::READ_ONLY != before.flags & export::READ_ONLY {
        return refuse("one of the two is read-only");
    }
    let shorter = before.style == HeaderStyle::Extended && now.style != HeaderStyle::Extended;
    if shorter || now.min_block > before.min_block || now.max_payload < before.max_payload {
        return refuse("it does not take requests as they were taken before");
    }
    // What was asked for by these comes again as it was.
    let lost = before.flags & !now.flags;
    if let Some((_, verb)) = export::OFFERS.iter().find(|(flag, _)| lost & flag != 0) {
        return refuse(&format!("it cannot {verb} any more"));
    }
    if before.context.is_some() && now.context.is_none() {
        return refuse("it does not tell any more what its bytes are");
    }
    let more = export::OFFERS.iter().fold(0, |all, (flag, _)| all | flag) & !before.flags;
    // Who has a cache now is to be flushed whatever came before it.
    let flags = now.flags & !(more & !export::SEND_FLUSH);
    Ok(Facts { size, flags, context: before.context.and(now.context), ..*before })
}

fn refuse(why: &str) -> Result<Facts> {
    let text = format!("another disk is exported there now: {why}");
    Err(Error::new(ErrorKind::Io, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u16 = export::HAS_FLAGS
        | export::SEND_FLUSH
        | export::SEND_FUA
        | export::SEND_TRIM
        | export::SEND_WRITE_ZEROES
        | export::SEND_FAST_ZERO;

    const PLAIN: Facts = Facts {
        size: 1 << 20,
        flags: export::HAS_FLAGS | export::SEND_FLUSH,
        style: HeaderStyle::Structured,
        min_block: 512,
        preferred_block: 4096,
        max_payload: 1 << 20,
        context: None,
    };

    const BETTER: Facts = Facts {
        size: (1 << 20) + 100,
        flags: ALL | export::CAN_MULTI_CONN | export::SEND_CACHE,
        style: HeaderStyle::Extended,
        min_block: 1,
        preferred_block: 4096,
        max_payload: 32 << 20,
        context: Some(1),
    };

    #[test]
    fn a_better_server_may_come_between() {
        let now = succeed(&PLAIN, &BETTER).unwrap();
        assert_eq!(
            now,
            Facts { flags: PLAIN.flags | export::CAN_MULTI_CONN | export::SEND_CACHE, ..PLAIN }
        );
        assert_eq!(succeed(&now, &PLAIN).unwrap(), PLAIN);
    }

    #[test]
    fn what_was_made_use_of_has_to_be_there() {
        let lacks = |flag: u16| Facts { flags: BETTER.flags & !flag, ..BETTER };
        for flag in [export::SEND_CACHE, export::CAN_MULTI_CONN] {
            assert_eq!(succeed(&BETTER, &lacks(flag)).unwrap(), lacks(flag));
        }
        let refused = [
            (lacks(export::SEND_FUA), "cannot make single writes durable"),
            (lacks(export::SEND_WRITE_ZEROES), "cannot write zeroes"),
            (Facts { flags: BETTER.flags | export::READ_ONLY, ..BETTER }, "read-only"),
            (Facts { size: BETTER.size - 1, ..BETTER }, "it has 1048675 bytes, not 1048676"),
            (Facts { style: HeaderStyle::Structured, ..BETTER }, "does not take requests"),
            (Facts { min_block: 2, ..BETTER }, "does not take requests"),
            (Facts { max_payload: 1 << 20, ..BETTER }, "does not take requests"),
            (Facts { context: None, ..BETTER }, "what its bytes are"),
        ];
        for (now, why) in refused {
            let error = succeed(&BETTER, &now).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    /// Writes that one with a cache has acknowledged are made durable by it.
    #[test]
    fn a_cache_that_was_not_there_before_is_flushed() {
        let without = Facts { flags: export::HAS_FLAGS, ..PLAIN };
        let now = succeed(&without, &BETTER).unwrap();
        assert!(now.can(export::SEND_FLUSH) && !now.can(export::SEND_FUA));
        let error = succeed(&now, &without).unwrap_err().to_string();
        assert!(error.contains("cannot flush"), "{error}");
    }
}
