//! Requests as they come out of the stream: many from one system call, their payload not copied.

use std::io;

use crate::buf::{BufPool, IoBuf};
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::proto::request::{MAX_HEADER, Request};
use crate::nbd::proto::{HeaderStyle, MAX_PAYLOAD};
use crate::net::Stream;

/// Bytes received at once: what a client has under way at depth 32 with 4 KiB writes, and more.
const BUFFER: usize = 256 << 10;
/// A payload that is longer gets memory of its own and is received straight into it.
const SMALL: usize = 64 << 10;

/// What was received and not handled yet.
pub(super) struct Input {
    style: HeaderStyle,
    pool: BufPool,
    buf: IoBuf,
    start: usize,
    end: usize,
    large: Option<Large>,
}

/// A request whose payload is being received.
struct Large {
    request: Request,
    payload: IoBuf,
    filled: usize,
}

impl Input {
    pub(super) fn new(style: HeaderStyle, pool: &BufPool) -> Input {
        let buf = pool.get(BUFFER);
        Input { style, pool: pool.clone(), buf, start: 0, end: 0, large: None }
    }

    /// The next request that is there as a whole, with its payload. An error if what is there is
    /// none: nothing that follows would make sense.
    pub(super) fn next(&mut self) -> Result<Option<(Request, IoBuf)>> {
        if let Some(large) = self.large.take_if(|large| large.filled == large.payload.len()) {
            return Ok(Some((large.request, large.payload)));
        }
        let header_len = Request::header_len(self.style);
        let there = self.end - self.start;
        if self.large.is_some() || there < header_len {
            return Ok(None);
        }
        let mut header = [0; MAX_HEADER];
        let header = &mut header[..header_len];
        self.buf.slice(self.start..self.start + header_len).copy_to(header);
        let request = Request::decode(self.style, header)?;
        let payload_len = request.payload_len(self.style);
        let Some(len) =
            usize::try_from(payload_len).ok().filter(|_| payload_len <= MAX_PAYLOAD.into())
        else {
            let context =
                format!("a request carries {payload_len} bytes, at most {MAX_PAYLOAD} may be");
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        };
        let data = self.start + header_len;
        if there >= header_len + len {
            self.start = data + len;
            return Ok(Some((request, self.buf.slice(data..data + len))));
        }
        if len > SMALL {
            let payload = self.pool.get(len);
            let filled = self.end - data;
            payload.slice(0..filled).copy_from_buf(&self.buf.slice(data..self.end));
            self.start = self.end;
            self.large = Some(Large { request, payload, filled });
        }
        Ok(None)
    }

    /// Receives what there is; 0 at the end of the stream.
    pub(super) fn receive(&mut self, stream: &Stream) -> io::Result<usize> {
        if let Some(large) = &mut self.large {
            let count = stream.recv(&large.payload.slice(large.filled..large.payload.len()))?;
            large.filled += count;
            return Ok(count);
        }
        self.make_room();
        let count = stream.recv(&self.buf.slice(self.end..BUFFER))?;
        self.end += count;
        Ok(count)
    }

    /// Moves what is left to the front, so that the longest request that is not received on its own
    /// fits behind it. A buffer that payloads still lie in is left to them.
    fn make_room(&mut self) {
        let left = self.end - self.start;
        if left != 0 && self.end + SMALL + MAX_HEADER <= BUFFER {
            return;
        }
        if !self.buf.is_unshared() {
            let fresh = self.pool.get(BUFFER);
            fresh.slice(0..left).copy_from_buf(&self.buf.slice(self.start..self.end));
            self.buf = fresh;
        } else if left != 0 {
            self.buf.slice(0..left).copy_from_buf(&self.buf.slice(self.start..self.end));
        }
        (self.start, self.end) = (0, left);
    }
}
