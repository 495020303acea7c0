//! The handshake phase of one client: [`Negotiation`] with a stream.

use std::time::Duration;

use super::Server;
use super::negotiate::{Agreement, Encryption, Negotiation, Step};
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::proto::handshake::{C_FIXED_NEWSTYLE, C_NO_ZEROES, FIXED_NEWSTYLE, NO_ZEROES};
use crate::nbd::proto::option::{self, HEADER, MAX_OPTION};
use crate::nbd::proto::{INIT_MAGIC, OPTION_MAGIC};
use crate::net::Stream;

/// How long a client may take until it has chosen an export.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// Most options of one client.
const MAX_OPTIONS: usize = 1024;

/// Haggles until the client has chosen an export or left. An error says what it did wrong.
pub(super) async fn run(
    server: &Server,
    mut stream: Stream,
) -> Result<Option<(Stream, Agreement)>> {
    let mut hello = Vec::new();
    hello.extend_from_slice(&INIT_MAGIC.to_be_bytes());
    hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    hello.extend_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&hello).await?;
    let mut flags = [0; 4];
    if !stream.read_exact(&mut flags).await? {
        return Ok(None);
    }
    let flags = u32::from_be_bytes(flags);
    let unknown = flags & !(C_FIXED_NEWSTYLE | C_NO_ZEROES);
    if unknown != 0 {
        return Err(broken(format!("the client has unknown flags {unknown:#x}")));
    }
    let tls = server.0.tls.as_ref();
    let encryption = if tls.is_some() { Encryption::Required } else { Encryption::Impossible };
    let mut negotiation = Negotiation::new(encryption, flags & C_NO_ZEROES != 0);
    for _ in 0..MAX_OPTIONS {
        let mut header = [0; HEADER];
        if !stream.read_exact(&mut header).await? {
            return Ok(None);
        }
        let (option, len) = option::decode(header)?;
        let mut out = Vec::new();
        let step = if len > MAX_OPTION {
            skip(&stream, len).await?;
            Negotiation::too_long(option, &mut out);
            Step::Next
        } else {
            let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
            if !stream.read_exact(&mut data).await? {
                return Ok(None);
            }
            negotiation.option(option, &data, server, &mut out)
        };
        stream.write_all(&out).await?;
        match (step, tls) {
            (Step::Next, _) => {}
            (Step::StartTls, Some(tls)) => {
                stream = stream.with_tls(tls.accept()?).await?;
                negotiation.encrypted();
            }
            (Step::Transmit(agreement), _) => return Ok(Some((stream, agreement))),
            (Step::Close(Some(reason)), _) => return Err(broken(reason)),
            (Step::Close(None) | Step::StartTls, _) => {
                stream.say_goodbye();
                return Ok(None);
            }
        }
    }
    Err(broken("the client has no end of options".to_owned()))
}

/// Reads and forgets.
async fn skip(stream: &Stream, len: u32) -> Result<()> {
    let mut left = usize::try_from(len).unwrap_or(usize::MAX);
    let mut chunk = vec![0; 64 << 10];
    while left != 0 {
        let now = left.min(chunk.len());
        if !stream.read_exact(&mut chunk[..now]).await? {
            return Err(broken("the client left in the middle of an option".to_owned()));
        }
        left -= now;
    }
    Ok(())
}

fn broken(text: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}
