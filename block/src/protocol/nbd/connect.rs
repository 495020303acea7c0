//! From nothing to a connection that takes requests.

use std::rc::Rc;

use super::negotiate::{Facts, HELLO, Negotiation, Step, Wishes};
use super::options::NbdOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::nbd::proto::BASE_ALLOCATION;
use crate::nbd::proto::option::{REPLY_HEADER, decode_reply};
use crate::net::{self, SocketAddress, Stream, TlsCreds};

/// What to connect to, and as whom.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) options: NbdOptions,
    pub(super) tls: Option<Rc<TlsCreds>>,
}

impl Target {
    fn wishes(&self) -> Wishes {
        let context = self.options.x_dirty_bitmap.as_deref().unwrap_or(BASE_ALLOCATION);
        Wishes {
            export: self.options.export.clone().unwrap_or_default(),
            tls: self.tls.is_some(),
            context: context.to_owned(),
        }
    }

    /// The name that the server's certificate must bear.
    fn tls_name(&self) -> Result<&str> {
        match (&self.options.tls_hostname, &self.options.server) {
            (Some(name), _) => Ok(name),
            (None, SocketAddress::Inet { host, .. }) => Ok(host),
            (None, SocketAddress::Unix { .. }) => {
                let text = "TLS over a local socket needs 'tls-hostname'";
                Err(Error::new(ErrorKind::InvalidArgument, text))
            }
        }
    }
}

/// Connects, agrees on everything; what the server offers.
pub(super) async fn connect(executor: &Executor, target: &Target) -> Result<(Stream, Facts)> {
    let stream = net::connect(executor, &target.options.server).await?;
    let name = target.options.filename();
    let (stream, facts) = haggle(stream, target).await.map_err(|error| error.context(name))?;
    if target.options.x_dirty_bitmap.is_some() && facts.context.is_none() {
        let context = format!("requested x-dirty-bitmap {} not found", target.wishes().context);
        return Err(Error::new(ErrorKind::InvalidArgument, context));
    }
    Ok((stream, facts))
}

async fn haggle(mut stream: Stream, target: &Target) -> Result<(Stream, Facts)> {
    let mut hello = [0; HELLO];
    read(&stream, &mut hello).await?;
    let mut out = Vec::new();
    let (mut negotiation, mut step) = Negotiation::begin(hello, target.wishes(), &mut out)?;
    loop {
        stream.write_all(&out).await?;
        out.clear();
        step = match step {
            Step::Reply => {
                let mut header = [0; REPLY_HEADER];
                read(&stream, &mut header).await?;
                let header = decode_reply(header)?;
                let mut data = vec![0; usize::try_from(header.len).unwrap_or(0)];
                read(&stream, &mut data).await?;
                negotiation.reply(header, &data, &mut out)?
            }
            Step::StartTls => {
                let Some(tls) = &target.tls else {
                    return Err(Error::new(ErrorKind::Io, "TLS without credentials"));
                };
                stream = stream.with_tls(tls.connect(target.tls_name()?)?).await?;
                negotiation.encrypted(&mut out)
            }
            Step::Description(len) => {
                let mut data = vec![0; len];
                read(&stream, &mut data).await?;
                negotiation.described(&data)?
            }
            Step::Done(facts) => return Ok((stream, facts)),
        };
    }
}

async fn read(stream: &Stream, into: &mut [u8]) -> Result<()> {
    if stream.read_exact(into).await? {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Disconnected, "the server hung up while exports were agreed on"))
}
