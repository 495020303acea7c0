//! The members that `nbd` has in `blockdev-add`, and file names that stand for them.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::nbd::proto::DEFAULT_PORT;
use crate::net::SocketAddress;

/// The members that `nbd` has in `blockdev-add`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NbdOptions {
    /// Where the server listens.
    pub server: SocketAddress,
    /// Name of the export; the default export if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<String>,
    /// Id of TLS credentials of a client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_creds: Option<String>,
    /// Name that the server's certificate must have, if it is not that of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_hostname: Option<String>,
    /// For how many seconds requests wait for a lost server to come back; 0 fails them at once.
    #[serde(default)]
    pub reconnect_delay: u32,
    /// For how many seconds opening tries again while the server cannot be reached.
    #[serde(default)]
    pub open_timeout: u32,
    /// Metadata context to show instead of the allocation, such as `qemu:dirty-bitmap:NAME`: dirty
    /// is shown as data and clean as absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_dirty_bitmap: Option<String>,
    /// How many connections to share the work, where the server allows more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_connections: Option<u32>,
}

impl NbdOptions {
    /// An export of a server, with nothing else said.
    pub fn new(server: SocketAddress, export: Option<String>) -> NbdOptions {
        NbdOptions {
            server,
            export,
            tls_creds: None,
            tls_hostname: None,
            reconnect_delay: 0,
            open_timeout: 0,
            x_dirty_bitmap: None,
            x_connections: None,
        }
    }

    /// What a file name means: `nbd://HOST[:PORT][/EXPORT]` or `nbd+unix:///[EXPORT]?socket=PATH`.
    /// `None` if it is none of the kind.
    pub fn from_filename(name: &str) -> Option<Result<NbdOptions>> {
        let (scheme, rest) = name.split_once("://")?;
        match scheme {
            "nbd" | "nbd+tcp" => Some(from_tcp(rest)),
            "nbd+unix" => Some(from_unix(rest)),
            _ => None,
        }
    }

    /// The same as a file name.
    pub fn filename(&self) -> String {
        let export = escape(self.export.as_deref().unwrap_or_default());
        match &self.server {
            SocketAddress::Inet { .. } if export.is_empty() => format!("nbd://{}", self.server),
            SocketAddress::Inet { .. } => format!("nbd://{}/{export}", self.server),
            SocketAddress::Unix { path } => {
                format!("nbd+unix:///{export}?socket={}", escape(path))
            }
        }
    }
}

fn from_tcp(rest: &str) -> Result<NbdOptions> {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').unwrap_or("")),
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let port = match port {
        "" => DEFAULT_PORT,
        port => port.parse().map_err(|_invalid| bad(&format!("'{port}' is not a port number")))?,
    };
    let host = if host.is_empty() { "localhost" } else { host };
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    if !query.is_empty() {
        return Err(bad(&format!("'{query}' means nothing in a file name of TCP")));
    }
    Ok(NbdOptions::new(SocketAddress::tcp(host, port), export_name(path)?))
}

fn from_unix(rest: &str) -> Result<NbdOptions> {
    let path = rest.strip_prefix('/').ok_or_else(|| bad("a host makes no sense here"))?;
    let (export, query) = path.split_once('?').unwrap_or((path, ""));
    let socket = query.strip_prefix("socket=").filter(|path| !path.is_empty());
    let socket = socket.ok_or_else(|| bad("'socket=PATH' is missing"))?;
    Ok(NbdOptions::new(SocketAddress::unix(unescape(socket)?), export_name(export)?))
}

fn export_name(path: &str) -> Result<Option<String>> {
    let name = unescape(path)?;
    Ok(Some(name).filter(|name| !name.is_empty()))
}

fn bad(text: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("not the name of an NBD export: {text}"))
}

/// Resolves `%XX`.
fn unescape(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = after.split_at_checked(2);
        let number = digits.and_then(|(digits, _)| std::str::from_utf8(digits).ok());
        let number = number.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(number.ok_or_else(|| bad("'%' is not followed by two digits"))?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_invalid| bad("it is not UTF-8"))
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> NbdOptions {
        NbdOptions::from_filename(name).unwrap().unwrap()
    }

    #[test]
    fn file_names_are_understood_and_come_back() {
        let cases = [
            ("nbd://host", "nbd://host:10809", SocketAddress::tcp("host", 10809), None),
            (
                "nbd://host:1/a%20b",
                "nbd://host:1/a%20b",
                SocketAddress::tcp("host", 1),
                Some("a b"),
            ),
            ("nbd://[::1]:7/x", "nbd://[::1]:7/x", SocketAddress::tcp("::1", 7), Some("x")),
            (
                "nbd+unix:///d?socket=/tmp/s%3F",
                "nbd+unix:///d?socket=/tmp/s%3F",
                SocketAddress::unix("/tmp/s?"),
                Some("d"),
            ),
            ("nbd+unix:///?socket=s", "nbd+unix:///?socket=s", SocketAddress::unix("s"), None),
        ];
        for (name, back, server, export) in cases {
            let options = parsed(name);
            assert_eq!(options, NbdOptions::new(server, export.map(str::to_owned)), "{name}");
            assert_eq!(options.filename(), back);
            assert_eq!(parsed(back), options);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(NbdOptions::from_filename("/tmp/disk").is_none());
        assert!(NbdOptions::from_filename("http://x").is_none());
        for name in
            ["nbd://h:x", "nbd+unix:///e", "nbd+unix://h/?socket=s", "nbd://h/%4", "nbd://h/%zz"]
        {
            assert!(NbdOptions::from_filename(name).unwrap().is_err(), "{name}");
        }
    }
}
