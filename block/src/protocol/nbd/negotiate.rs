//! The client's half of option haggling, without I/O: replies in, options out.

use crate::error::{Error, ErrorKind, Result};
use crate::nbd::proto::handshake::{C_FIXED_NEWSTYLE, C_NO_ZEROES, FIXED_NEWSTYLE, NO_ZEROES};
use crate::nbd::proto::option::{self, ReplyHeader, put_string};
use crate::nbd::proto::{Fields, HeaderStyle, INIT_MAGIC, MAX_PAYLOAD, MAX_STRING, OLDSTYLE_MAGIC};
use crate::nbd::proto::{OPTION_MAGIC, export, info, opt, rep};

/// Length of a server's first words, bytes.
pub(super) const HELLO: usize = 18;
/// Most replies to one option.
const MAX_REPLIES: usize = 1024;
/// Largest block that a server may insist on, bytes.
const MAX_MIN_BLOCK: u32 = 64 << 10;

/// What the client wants.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    pub(super) export: String,
    /// Nothing is to be said before TLS is up.
    pub(super) tls: bool,
    /// The metadata context to ask for.
    pub(super) context: String,
}

/// What the server offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Bytes of the export.
    pub(super) size: u64,
    pub(super) flags: u16,
    pub(super) style: HeaderStyle,
    /// All offsets and lengths are multiples of it, bytes.
    pub(super) min_block: u32,
    /// What it does best in whole blocks of, at least `min_block`, bytes: a power of two.
    pub(super) preferred_block: u32,
    /// Longest payload, bytes.
    pub(super) max_payload: u32,
    /// Number of the metadata context, if the server has it.
    pub(super) context: Option<u32>,
}

impl Facts {
    pub(super) fn can(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// What to do next, after what is in `out` was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Read a reply to an option.
    Reply,
    /// Begin TLS, then call [`Negotiation::encrypted`].
    StartTls,
    /// Read so many bytes that describe the export, for [`Negotiation::described`].
    Description(usize),
    /// Send requests.
    Done(Facts),
}

/// Haggling with one server.
pub(super) struct Negotiation {
    wishes: Wishes,
    /// The option whose replies are awaited.
    asked: u32,
    replies: usize,
    zeroes: bool,
    described: bool,
    facts: Facts,
}

impl Negotiation {
    /// Answers a server's first words, and asks the first question.
    pub(super) fn begin(
        hello: [u8; HELLO],
        wishes: Wishes,
        out: &mut Vec<u8>,
    ) -> Result<(Negotiation, Step)> {
        let mut fields = Fields::new(&hello);
        let flags = match (fields.u64(), fields.u64(), fields.u16()) {
            (Some(INIT_MAGIC), Some(OPTION_MAGIC), Some(flags)) => flags,
            (Some(INIT_MAGIC), Some(OLDSTYLE_MAGIC), _) => {
                let text = "the server speaks oldstyle NBD only, which knows no exports";
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            _ => return Err(broken("it does not begin with the magic of NBD")),
        };
        let fixed = flags & FIXED_NEWSTYLE != 0;
        let zeroes = flags & NO_ZEROES == 0;
        let answer =
            if fixed { C_FIXED_NEWSTYLE } else { 0 } | if zeroes { 0 } else { C_NO_ZEROES };
        out.extend_from_slice(&answer.to_be_bytes());
        let facts = Facts {
            size: 0,
            flags: 0,
            style: HeaderStyle::Simple,
            min_block: 1,
            preferred_block: 1,
            max_payload: MAX_PAYLOAD,
            context: None,
        };
        let tls = wishes.tls;
        let mut this =
            Negotiation { wishes, asked: 0, replies: 0, zeroes, described: false, facts };
        let step = match (fixed, tls) {
            (true, true) => this.ask(opt::STARTTLS, &[], out),
            (true, false) => this.ask(opt::EXTENDED_HEADERS, &[], out),
            (false, true) => return Err(no_tls("it is too old for it")),
            (false, false) => this.ask_old(out),
        };
        Ok((this, step))
    }

    /// TLS is up; asks the next question.
    pub(super) fn encrypted(&mut self, out: &mut Vec<u8>) -> Step {
        self.ask(opt::EXTENDED_HEADERS, &[], out)
    }

    /// Takes one reply.
    pub(super) fn reply(
        &mut self,
        header: ReplyHeader,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Step> {
        self.replies += 1;
        if header.option != self.asked || self.replies > MAX_REPLIES {
            return Err(broken("it answers what was not asked"));
        }
        let refused = header.kind & rep::ERR != 0;
        if refused && matches!(header.kind, rep::ERR_TLS_REQD) {
            let text = "the server wants TLS, and no 'tls-creds' are given";
            return Err(Error::new(ErrorKind::PermissionDenied, text));
        }
        match (self.asked, header.kind) {
            (opt::STARTTLS, rep::ACK) => Ok(Step::StartTls),
            (opt::STARTTLS, _) if refused => Err(no_tls(&said(data))),
            (opt::EXTENDED_HEADERS, rep::ACK) => {
                self.facts.style = HeaderStyle::Extended;
                Ok(self.ask_context(out))
            }
            (opt::EXTENDED_HEADERS, _) if refused => Ok(self.ask(opt::STRUCTURED_REPLY, &[], out)),
            (opt::STRUCTURED_REPLY, rep::ACK) => {
                self.facts.style = HeaderStyle::Structured;
                Ok(self.ask_context(out))
            }
            (opt::STRUCTURED_REPLY, _) if refused => Ok(self.ask_export(out)),
            (opt::SET_META_CONTEXT, rep::META_CONTEXT) => self.take_context(data),
            (opt::SET_META_CONTEXT, rep::ACK) => Ok(self.ask_export(out)),
            (opt::SET_META_CONTEXT, _) if refused => {
                self.facts.context = None;
                Ok(self.ask_export(out))
            }
            (opt::GO, rep::INFO) => self.take_info(data),
            (opt::GO, rep::ACK) if self.described => self.finish(),
            (opt::GO, rep::ERR_UNSUP) if self.facts.style != HeaderStyle::Extended => {
                Ok(self.ask_old(out))
            }
            (opt::GO, _) if refused => {
                let kind = match header.kind {
                    rep::ERR_UNKNOWN => ErrorKind::NotFound,
                    rep::ERR_POLICY => ErrorKind::PermissionDenied,
                    rep::ERR_SHUTDOWN => ErrorKind::Disconnected,
                    _ => ErrorKind::Io,
                };
                let text = said(data);
                Err(Error::new(
                    kind,
                    format!("the server refuses export '{}'{text}", self.wishes.export),
                ))
            }
            _ => Err(broken("its answers make no sense")),
        }
    }

    /// Takes the description that the oldest way of choosing an export is answered with.
    pub(super) fn described(&mut self, description: &[u8]) -> Result<Step> {
        let mut fields = Fields::new(description);
        let (Some(size), Some(flags)) = (fields.u64(), fields.u16()) else {
            return Err(broken("it does not describe the export"));
        };
        (self.facts.size, self.facts.flags) = (size, flags);
        self.finish()
    }

    fn ask(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Step {
        (self.asked, self.replies) = (option, 0);
        option::encode(option, data, out);
        Step::Reply
    }

    fn ask_context(&mut self, out: &mut Vec<u8>) -> Step {
        let mut data = Vec::new();
        put_string(&self.wishes.export, &mut data);
        data.extend_from_slice(&1_u32.to_be_bytes());
        put_string(&self.wishes.context, &mut data);
        self.ask(opt::SET_META_CONTEXT, &data, out)
    }

    fn ask_export(&mut self, out: &mut Vec<u8>) -> Step {
        let mut data = Vec::new();
        put_string(&self.wishes.export, &mut data);
        data.extend_from_slice(&1_u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        self.ask(opt::GO, &data, out)
    }

    fn ask_old(&mut self, out: &mut Vec<u8>) -> Step {
        let name = self.wishes.export.clone();
        self.ask(opt::EXPORT_NAME, name.as_bytes(), out);
        Step::Description(if self.zeroes { 134 } else { 10 })
    }

    fn take_context(&mut self, data: &[u8]) -> Result<Step> {
        let mut fields = Fields::new(data);
        let number = fields.u32();
        if number.is_none() || fields.rest() != self.wishes.context.as_bytes() {
            return Err(broken("it selects a metadata context that was not asked for"));
        }
        self.facts.context = number;
        Ok(Step::Reply)
    }

    fn take_info(&mut self, data: &[u8]) -> Result<Step> {
        let mut fields = Fields::new(data);
        match fields.u16() {
            Some(info::EXPORT) => {
                let (Some(size), Some(flags)) = (fields.u64(), fields.u16()) else {
                    return Err(broken("it does not describe the export"));
                };
                (self.facts.size, self.facts.flags) = (size, flags);
                self.described = true;
            }
            Some(info::BLOCK_SIZE) => {
                let (Some(min), Some(preferred), Some(max)) =
                    (fields.u32(), fields.u32(), fields.u32())
                else {
                    return Err(broken("it does not tell its block sizes"));
                };
                if !min.is_power_of_two() || min > MAX_MIN_BLOCK || max < min || max < 512 {
                    let text = format!("blocks of {min} to {max} bytes cannot be worked with");
                    return Err(Error::new(ErrorKind::Unsupported, text));
                }
                self.facts.min_block = min;
                // Only a hint: one that makes no sense is not taken.
                let sane = preferred.is_power_of_two() && (min..=MAX_PAYLOAD).contains(&preferred);
                self.facts.preferred_block = if sane { preferred } else { min };
                self.facts.max_payload = max.min(MAX_PAYLOAD) & !(min - 1);
            }
            Some(_other) => {}
            None => return Err(broken("it informs of nothing")),
        }
        Ok(Step::Reply)
    }

    fn finish(&mut self) -> Result<Step> {
        let facts = &mut self.facts;
        if i64::try_from(facts.size).is_err() {
            return Err(broken("its export is longer than any file can be"));
        }
        // Only what is whole blocks can be asked for.
        facts.size &= !u64::from(facts.min_block - 1);
        if facts.flags & export::HAS_FLAGS == 0 {
            facts.flags = 0;
        }
        Ok(Step::Done(*facts))
    }
}

/// What a server said about a refusal.
fn said(data: &[u8]) -> String {
    let text = String::from_utf8_lossy(&data[..data.len().min(MAX_STRING)]);
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

fn no_tls(why: &str) -> Error {
    let context = format!("the server does not speak TLS: {}", why.trim_start_matches(": "));
    Error::new(ErrorKind::PermissionDenied, context)
}

fn broken(what: &str) -> Error {
    Error::new(ErrorKind::Io, format!("the server does not speak NBD well: {what}"))
}

#[cfg(test)]
#[path = "negotiate_tests.rs"]
mod tests;
