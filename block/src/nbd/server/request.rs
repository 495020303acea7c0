//! What each request does.

use std::ops::Range;

use super::connection::Connection;
use super::status;
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::Error;
use crate::nbd::proto::errno::{self, EINVAL, ENOSPC, ENOTSUP, EOVERFLOW, EPERM};
use crate::nbd::proto::reply::Descriptor;
use crate::nbd::proto::request::Request;
use crate::nbd::proto::{Fields, HeaderStyle, MAX_PAYLOAD, cmd, flag};

/// Bytes read at once, and thrown away, to have them in a cache.
const CACHE_STEP: u64 = 1 << 20;
/// Longest stretch that a client can have cached in one request, bytes.
const MAX_CACHE: u64 = 64 << 20;
/// Longest descriptor that fits 32 bits, rounded down so that the next one starts well.
const LONGEST_NARROW: u64 = (1 << 32) - (64 << 10);

/// What a request led to.
pub(super) enum Outcome {
    Done,
    Data(IoBuf),
    /// Descriptors for each metadata context.
    Status(Vec<(u32, Vec<Descriptor>)>),
    Failed(u32, String),
}

/// Why a request was refused before it was tried.
struct Refused(u32, String);

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused(errno::of(&error), error.to_string())
    }
}

fn refused<T>(number: u32, text: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(number, text.into()))
}

impl Connection {
    /// Does what was asked.
    pub(super) async fn perform(&self, request: &Request, payload: IoBuf) -> Outcome {
        match self.try_perform(request, payload).await {
            Ok(outcome) => outcome,
            Err(Refused(ENOTSUP, text)) if request.flags & flag::FAST_ZERO == 0 => {
                // Clients may not be told so of anything but fast zeroes.
                Outcome::Failed(EINVAL, text)
            }
            Err(Refused(number, text)) => Outcome::Failed(number, text),
        }
    }

    async fn try_perform(&self, request: &Request, payload: IoBuf) -> Result<Outcome, Refused> {
        self.check_flags(request)?;
        let backend = &self.export.backend;
        match request.command {
            cmd::READ => {
                let range = self.check_range(request, EINVAL)?;
                if range.end - range.start > MAX_PAYLOAD.into() {
                    return refused(EOVERFLOW, format!("at most {MAX_PAYLOAD} bytes can be read"));
                }
                let buf = self.pool.get(usize::try_from(request.len).unwrap_or(0));
                backend.read(range.start, buf.clone()).await?;
                Ok(Outcome::Data(buf))
            }
            cmd::WRITE => {
                self.check_writable()?;
                let range = self.check_range(request, ENOSPC)?;
                let flags = WriteFlags { fua: self.is_durable(request), ..WriteFlags::NONE };
                backend.write(range.start, payload, flags).await?;
                Ok(Outcome::Done)
            }
            cmd::FLUSH => {
                backend.flush().await?;
                Ok(Outcome::Done)
            }
            // The rarer ones are boxed: the future of the common ones stays small.
            cmd::TRIM => Box::pin(self.trim(request)).await,
            cmd::WRITE_ZEROES => Box::pin(self.write_zeroes(request)).await,
            cmd::CACHE => Box::pin(self.cache(request)).await,
            cmd::BLOCK_STATUS => Box::pin(self.block_status(request, payload)).await,
            other => refused(EINVAL, format!("command {other} is not known here")),
        }
    }

    async fn trim(&self, request: &Request) -> Result<Outcome, Refused> {
        self.check_writable()?;
        let range = self.check_range(request, ENOSPC)?;
        let pass = self.export.backend.enter().await?;
        pass.discard(range).await?;
        if self.is_durable(request) {
            pass.flush().await?;
        }
        Ok(Outcome::Done)
    }

    async fn write_zeroes(&self, request: &Request) -> Result<Outcome, Refused> {
        self.check_writable()?;
        let range = self.check_range(request, ENOSPC)?;
        let no_hole = request.flags & flag::NO_HOLE != 0;
        let flags = WriteFlags {
            fua: self.is_durable(request),
            may_unmap: !no_hole,
            // Where an image has nothing there is a hole, too.
            opaque: no_hole,
            no_fallback: request.flags & flag::FAST_ZERO != 0,
            ..WriteFlags::NONE
        };
        self.export.backend.write_zeroes(range, flags).await?;
        Ok(Outcome::Done)
    }

    /// Reads and throws away, so that the next one who reads has it near.
    async fn cache(&self, request: &Request) -> Result<Outcome, Refused> {
        let range = self.check_range(request, EINVAL)?;
        let (mut at, end) = (range.start, range.end.min(range.start.saturating_add(MAX_CACHE)));
        while at < end {
            let len = CACHE_STEP.min(end - at);
            let buf = self.pool.get(usize::try_from(len).unwrap_or(0));
            self.export.backend.read(at, buf).await?;
            at += len;
        }
        Ok(Outcome::Done)
    }

    async fn block_status(&self, request: &Request, payload: IoBuf) -> Result<Outcome, Refused> {
        let agreed = &self.agreement.contexts;
        if agreed.is_empty() {
            return refused(EINVAL, "no metadata context was selected");
        }
        let (len, wanted) = match request.flags & flag::PAYLOAD_LEN {
            0 => (request.len, agreed.clone()),
            _ => chosen_contexts(&payload.to_vec(), agreed)?,
        };
        if len == 0 {
            return refused(EINVAL, "the status of nothing");
        }
        let range = self.check_range(&Request { len, ..*request }, EINVAL)?;
        let one = request.flags & flag::REQ_ONE != 0;
        let longest = match self.agreement.style {
            HeaderStyle::Extended => u64::MAX,
            HeaderStyle::Simple | HeaderStyle::Structured => LONGEST_NARROW,
        };
        let pass = self.export.backend.enter().await?;
        let mut found = Vec::new();
        for number in wanted {
            let context = usize::try_from(number).ok().and_then(|at| self.export.contexts.get(at));
            let Some(context) = context else { continue };
            let (export, range) = (&self.export, range.clone());
            let list = status::describe(export, &pass, context, range, one, longest).await?;
            found.push((number, list));
        }
        Ok(Outcome::Status(found))
    }

    fn is_durable(&self, request: &Request) -> bool {
        request.flags & flag::FUA != 0 || self.export.options.writethrough
    }

    fn check_flags(&self, request: &Request) -> Result<(), Refused> {
        let structured = self.agreement.style != HeaderStyle::Simple;
        let extended = self.agreement.style == HeaderStyle::Extended;
        let mut valid = flag::FUA;
        valid |= match request.command {
            cmd::READ if structured => flag::DF,
            cmd::WRITE if extended => flag::PAYLOAD_LEN,
            cmd::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
            cmd::BLOCK_STATUS if extended => flag::REQ_ONE | flag::PAYLOAD_LEN,
            cmd::BLOCK_STATUS => flag::REQ_ONE,
            _ => 0,
        };
        let unknown = request.flags & !valid;
        if unknown != 0 {
            let command = request.command;
            return refused(EINVAL, format!("command {command} has no flags {unknown:#x}"));
        }
        if extended && request.command == cmd::WRITE && request.flags & flag::PAYLOAD_LEN == 0 {
            return refused(EINVAL, "a write without payload");
        }
        Ok(())
    }

    fn check_writable(&self) -> Result<(), Refused> {
        if self.export.options.writable {
            return Ok(());
        }
        refused(EPERM, format!("export '{}' is read-only", self.export.name()))
    }

    /// The bytes that a request is about, if the export has them; `beyond` is the answer if not.
    fn check_range(&self, request: &Request, beyond: u32) -> Result<Range<u64>, Refused> {
        let Request { offset, len, .. } = *request;
        let size = self.export.backend.len();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(offset..end),
            _ => {
                refused(beyond, format!("{len} bytes at {offset} leave the export of {size} bytes"))
            }
        }
    }
}

/// The length and the metadata contexts that the payload of a block status request asks for.
fn chosen_contexts(payload: &[u8], agreed: &[u32]) -> Result<(u64, Vec<u32>), Refused> {
    let invalid = || refused(EINVAL, "the payload of a block status request is not well formed");
    let mut fields = Fields::new(payload);
    let Some(len) = fields.u64() else { return invalid() };
    let mut wanted = Vec::new();
    while !fields.is_empty() {
        match fields.u32() {
            Some(id) if agreed.contains(&id) && !wanted.contains(&id) => wanted.push(id),
            _ => return invalid(),
        }
    }
    if wanted.is_empty() { invalid() } else { Ok((len, wanted)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_in_a_payload_must_be_agreed_on_and_there_once() {
        let payload = |ids: &[u32]| {
            let ids = ids.iter().flat_map(|id| id.to_be_bytes());
            4096_u64.to_be_bytes().into_iter().chain(ids).collect::<Vec<u8>>()
        };
        let chosen = |bytes: &[u8]| chosen_contexts(bytes, &[0, 2]).ok();
        assert_eq!(chosen(&payload(&[2])), Some((4096, vec![2])));
        for bad in [&[][..], &[1], &[2, 2]] {
            assert_eq!(chosen(&payload(bad)), None);
        }
        assert_eq!(chosen(&payload(&[2])[..11]), None);
    }
}
