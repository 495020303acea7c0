//! The server's half of option haggling, without I/O: options in, replies out.

use crate::nbd::proto::option::{encode_reply, put_string};
use crate::nbd::proto::{BASE_ALLOCATION, DIRTY_BITMAP, Fields, HeaderStyle, MAX_PAYLOAD};
use crate::nbd::proto::{export, info, opt, rep};

/// Queries looked at in one request for metadata contexts.
const MAX_QUERIES: u32 = 256;
/// What follows an oldstyle description unless the client can do without.
const PADDING: [u8; 124] = [0; 124];

/// What a client is told of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Tells it from others that had its name before, or will.
    pub(crate) number: u64,
    /// Its canonical name.
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// Bytes.
    pub(crate) size: u64,
    /// Transmission flags, but for those that depend on the style of headers.
    pub(crate) flags: u16,
    /// Bytes of the units that are handled best.
    pub(crate) preferred_block: u32,
    /// Names of the metadata contexts; their numbers on the wire are their places here.
    pub(crate) contexts: Vec<String>,
}

/// The exports there are.
pub(crate) trait Catalogue {
    /// All that clients may see.
    fn offers(&self) -> Vec<Offer>;

    /// The one a client means by `name`.
    fn offer(&self, name: &str) -> Option<Offer>;
}

/// Whether this connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// The server has no credentials.
    Impossible,
    /// Nothing else is answered before the client has asked for it.
    Required,
    /// It is.
    Done,
}

/// What was agreed on for the transmission phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// The number of the export.
    pub(crate) export: u64,
    /// Its length as the client was told.
    pub(crate) size: u64,
    pub(crate) style: HeaderStyle,
    /// The metadata contexts that block status reports.
    pub(crate) contexts: Vec<u32>,
}

/// What to do after an option, once the replies are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read the next option.
    Next,
    /// Begin TLS, then call [`Negotiation::encrypted`].
    StartTls,
    /// Serve requests.
    Transmit(Agreement),
    /// Close the connection; the reason, unless the client asked for it.
    Close(Option<String>),
}

/// What has been agreed on so far with one client.
pub(crate) struct Negotiation {
    encryption: Encryption,
    no_zeroes: bool,
    style: HeaderStyle,
    /// The contexts that were selected last, and of which export.
    contexts: Option<(u64, Vec<u32>)>,
}

/// An error reply: its type and what people may read.
type Refusal = (u32, String);

fn refuse(kind: u32, text: impl Into<String>) -> Refusal {
    (kind, text.into())
}

impl Negotiation {
    pub(crate) fn new(encryption: Encryption, no_zeroes: bool) -> Negotiation {
        Negotiation { encryption, no_zeroes, style: HeaderStyle::Simple, contexts: None }
    }

    /// TLS is up: what was agreed on before is worth nothing.
    pub(crate) fn encrypted(&mut self) {
        *self = Negotiation::new(Encryption::Done, self.no_zeroes);
    }

    /// Handles one option, appending its replies to `out`.
    pub(crate) fn option(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Catalogue,
        out: &mut Vec<u8>,
    ) -> Step {
        let answered = match option {
            opt::ABORT => {
                encode_reply(option, rep::ACK, &[], out);
                return Step::Close(None);
            }
            opt::EXPORT_NAME => return self.export_name(data, exports, out),
            opt::STARTTLS => self.start_tls(data),
            _ if self.encryption == Encryption::Required => {
                Err(refuse(rep::ERR_TLS_REQD, "TLS must be started before anything else"))
            }
            opt::LIST => list(data, exports, out),
            opt::INFO | opt::GO => self.info(option, data, exports, out),
            opt::STRUCTURED_REPLY => self.set_style(data, HeaderStyle::Structured),
            opt::EXTENDED_HEADERS => self.set_style(data, HeaderStyle::Extended),
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => {
                self.contexts(option, data, exports, out)
            }
            _ => Err(refuse(rep::ERR_UNSUP, format!("option {option} is not known here"))),
        };
        match answered {
            Ok(step) => {
                encode_reply(option, rep::ACK, &[], out);
                step
            }
            Err((kind, text)) => {
                encode_reply(option, kind, text.as_bytes(), out);
                Step::Next
            }
        }
    }

    /// Refuses an option whose data was too long to be read.
    pub(crate) fn too_long(option: u32, out: &mut Vec<u8>) {
        encode_reply(option, rep::ERR_TOO_BIG, b"the option is too long", out);
    }

    fn start_tls(&mut self, data: &[u8]) -> Result<Step, Refusal> {
        if !data.is_empty() {
            return Err(refuse(rep::ERR_INVALID, "this option has no data"));
        }
        match self.encryption {
            Encryption::Required => Ok(Step::StartTls),
            Encryption::Impossible => Err(refuse(rep::ERR_POLICY, "TLS is not configured here")),
            Encryption::Done => Err(refuse(rep::ERR_INVALID, "TLS is up already")),
        }
    }

    fn set_style(&mut self, data: &[u8], style: HeaderStyle) -> Result<Step, Refusal> {
        if !data.is_empty() {
            return Err(refuse(rep::ERR_INVALID, "this option has no data"));
        }
        if self.style > style {
            return Err(refuse(rep::ERR_EXT_HEADER_REQD, "extended headers are in use already"));
        }
        if self.style == style {
            return Err(refuse(rep::ERR_INVALID, "this was agreed on already"));
        }
        self.style = style;
        Ok(Step::Next)
    }

    /// The old way to choose an export, which has no way to refuse but to hang up.
    fn export_name(&self, data: &[u8], exports: &dyn Catalogue, out: &mut Vec<u8>) -> Step {
        if self.encryption == Encryption::Required {
            return Step::Close(Some("the client did not start TLS".to_owned()));
        }
        if self.style == HeaderStyle::Extended {
            return Step::Close(Some("extended headers do not go with this option".to_owned()));
        }
        let name = std::str::from_utf8(data).ok();
        let Some(offer) = name.and_then(|name| exports.offer(name)) else {
            let name = String::from_utf8_lossy(data);
            return Step::Close(Some(format!("export '{name}' not present")));
        };
        out.extend_from_slice(&offer.size.to_be_bytes());
        out.extend_from_slice(&self.flags(&offer).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&PADDING);
        }
        Step::Transmit(self.agree(&offer))
    }

    fn info(
        &self,
        option: u32,
        data: &[u8],
        exports: &dyn Catalogue,
        out: &mut Vec<u8>,
    ) -> Result<Step, Refusal> {
        let invalid = || refuse(rep::ERR_INVALID, "the request for an export is not well formed");
        let mut fields = Fields::new(data);
        let name = fields.string().ok_or_else(invalid)?;
        let count = fields.u16().ok_or_else(invalid)?;
        let mut wanted = Vec::new();
        for _ in 0..count {
            wanted.push(fields.u16().ok_or_else(invalid)?);
        }
        if !fields.is_empty() {
            return Err(invalid());
        }
        let offer = exports
            .offer(name)
            .ok_or_else(|| refuse(rep::ERR_UNKNOWN, format!("export '{name}' not present")))?;
        let mut reply = |kind: u16, parts: &[&[u8]]| {
            let data = [&kind.to_be_bytes()[..], &parts.concat()].concat();
            encode_reply(option, rep::INFO, &data, out);
        };
        if wanted.contains(&info::NAME) {
            reply(info::NAME, &[offer.name.as_bytes()]);
        }
        if let Some(text) =
            offer.description.as_ref().filter(|_| wanted.contains(&info::DESCRIPTION))
        {
            reply(info::DESCRIPTION, &[text.as_bytes()]);
        }
        // Nodes take any range, so these are hints, sent to whoever can use them.
        let sizes = [1, offer.preferred_block, MAX_PAYLOAD].map(u32::to_be_bytes);
        reply(info::BLOCK_SIZE, &[&sizes[0], &sizes[1], &sizes[2]]);
        let flags = self.flags(&offer);
        reply(info::EXPORT, &[&offer.size.to_be_bytes(), &flags.to_be_bytes()]);
        if option == opt::INFO {
            return Ok(Step::Next);
        }
        Ok(Step::Transmit(self.agree(&offer)))
    }

    fn flags(&self, offer: &Offer) -> u16 {
        offer.flags
            | match self.style {
                HeaderStyle::Simple => 0,
                HeaderStyle::Structured => export::SEND_DF,
                HeaderStyle::Extended => export::SEND_DF | export::BLOCK_STATUS_PAYLOAD,
            }
    }

    fn agree(&self, offer: &Offer) -> Agreement {
        let contexts = match &self.contexts {
            Some((export, contexts)) if *export == offer.number => contexts.clone(),
            _ => Vec::new(),
        };
        let (export, size) = (offer.number, offer.size);
        Agreement { export, size, style: self.style, contexts }
    }

    fn contexts(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Catalogue,
        out: &mut Vec<u8>,
    ) -> Result<Step, Refusal> {
        let set = option == opt::SET_META_CONTEXT;
        if set {
            // Also a request that fails forgets what was selected before.
            self.contexts = None;
        }
        if self.style == HeaderStyle::Simple {
            return Err(refuse(rep::ERR_INVALID, "structured replies must be agreed on first"));
        }
        let invalid = || refuse(rep::ERR_INVALID, "the query is not well formed");
        let mut fields = Fields::new(data);
        let name = fields.string().ok_or_else(invalid)?;
        let count = fields.u32().ok_or_else(invalid)?;
        if count > MAX_QUERIES {
            return Err(refuse(rep::ERR_TOO_BIG, "too many queries"));
        }
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(fields.string().ok_or_else(invalid)?);
        }
        if !fields.is_empty() {
            return Err(invalid());
        }
        let offer = exports
            .offer(name)
            .ok_or_else(|| refuse(rep::ERR_UNKNOWN, format!("export '{name}' not present")))?;
        let mut selected = Vec::new();
        for (number, context) in (0_u32..).zip(&offer.contexts) {
            let asked =
                queries.iter().any(|query| query == context || (!set && lists(query, context)));
            if asked || (!set && queries.is_empty()) {
                let id = if set { number } else { 0 };
                let data = [&id.to_be_bytes()[..], context.as_bytes()].concat();
                encode_reply(option, rep::META_CONTEXT, &data, out);
                selected.push(number);
            }
        }
        if set {
            self.contexts = Some((offer.number, selected));
        }
        Ok(Step::Next)
    }
}

fn list(data: &[u8], exports: &dyn Catalogue, out: &mut Vec<u8>) -> Result<Step, Refusal> {
    if !data.is_empty() {
        return Err(refuse(rep::ERR_INVALID, "this option has no data"));
    }
    for offer in exports.offers() {
        let mut data = Vec::new();
        put_string(&offer.name, &mut data);
        data.extend_from_slice(offer.description.unwrap_or_default().as_bytes());
        encode_reply(opt::LIST, rep::SERVER, &data, out);
    }
    Ok(Step::Next)
}

/// Whether a query that stands for several contexts covers this one.
fn lists(query: &str, context: &str) -> bool {
    match query {
        "base:" => context == BASE_ALLOCATION,
        "qemu:" => context.starts_with("qemu:"),
        DIRTY_BITMAP => context.starts_with(DIRTY_BITMAP),
        _ => false,
    }
}

#[cfg(test)]
#[path = "negotiate_tests.rs"]
mod tests;
