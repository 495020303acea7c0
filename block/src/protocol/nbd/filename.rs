//! File names that stand for an export: NBD URIs, and what QEMU had before there were any.

use super::options::NbdOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::proto::DEFAULT_PORT;
use crate::net::SocketAddress;

/// Id of the credentials of an `nbds` address that names none.
const DEFAULT_CREDS: &str = "tls0";

impl NbdOptions {
    /// What a file name means: `nbd[s][+tcp]://HOST[:PORT][/EXPORT]`,
    /// `nbd[s]+unix:///[EXPORT]?socket=PATH`, or without the slashes `nbd:HOST:PORT` and
    /// `nbd:unix:PATH` with `:exportname=EXPORT` behind. What ends in `s` takes `tls-creds=ID`, too.
    /// `None` if it is none of the kind.
    pub fn from_filename(name: &str) -> Option<Result<NbdOptions>> {
        if let Some((scheme, rest)) = name.split_once("://") {
            let (unix, tls) = match scheme {
                "nbd" | "nbd+tcp" => (false, false),
                "nbds" | "nbds+tcp" => (false, true),
                "nbd+unix" => (true, false),
                "nbds+unix" => (true, true),
                _ => return None,
            };
            return Some(from_uri(rest, unix, tls));
        }
        name.strip_prefix("nbd:").map(from_legacy)
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

fn from_uri(rest: &str, unix: bool, tls: bool) -> Result<NbdOptions> {
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = address.split_once('/').unwrap_or((address, ""));
    let (mut socket, mut creds) = (None, tls.then(|| DEFAULT_CREDS.to_owned()));
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("socket", path)) if unix && !path.is_empty() => socket = Some(unescape(path)?),
            Some(("tls-creds", id)) if tls => creds = Some(unescape(id)?),
            _ => return Err(bad(&format!("'{pair}' means nothing in it"))),
        }
    }
    let server = match socket {
        Some(path) if authority.is_empty() => SocketAddress::unix(path),
        Some(_) => return Err(bad("a socket is on no host")),
        None if unix => return Err(bad("'socket=PATH' is missing")),
        None => tcp(authority)?,
    };
    Ok(NbdOptions { tls_creds: creds, ..NbdOptions::new(server, export_name(path)?) })
}

/// `unix:PATH` or `HOST:PORT`, then `:exportname=EXPORT`; nothing is escaped.
fn from_legacy(rest: &str) -> Result<NbdOptions> {
    let (address, export) = match rest.split_once(":exportname=") {
        Some((address, export)) => (address, Some(export.to_owned())),
        None => (rest, None),
    };
    let server = match address.strip_prefix("unix:") {
        Some("") => return Err(bad("the socket's path is missing")),
        Some(path) => SocketAddress::unix(path),
        None if address.is_empty() => return Err(bad("host and port are missing")),
        None => tcp(address)?,
    };
    Ok(NbdOptions::new(server, export.filter(|name| !name.is_empty())))
}

/// `[USER@]HOST[:PORT]`, with an IPv6 address in brackets; nobody is asked who the user is.
fn tcp(authority: &str) -> Result<SocketAddress> {
    let authority = authority.rsplit_once('@').map_or(authority, |(_user, rest)| rest);
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').unwrap_or("")),
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let port = match port {
        "" => DEFAULT_PORT,
        port => port.parse().map_err(|_invalid| bad(&format!("'{port}' is not a port number")))?,
    };
    let host = if host.is_empty() { "localhost" } else { host };
    Ok(SocketAddress::tcp(host, port))
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
    fn addresses_with_tls_and_of_the_old_kind_are_understood() {
        let tls = |id: &str, options: NbdOptions| NbdOptions {
            tls_creds: Some(id.to_owned()),
            ..options
        };
        let new = |server, export: &str| NbdOptions::new(server, Some(export.to_owned()));
        let (host, unix) = (|| SocketAddress::tcp("h", 10809), || SocketAddress::unix("/s"));
        for (name, options) in [
            ("nbds://me@h/x%2Fy", tls("tls0", new(host(), "x/y"))),
            ("nbds+tcp://h/e?tls-creds=mine", tls("mine", new(host(), "e"))),
            ("nbds+unix:///e?socket=/s&tls-creds=c", tls("c", new(unix(), "e"))),
            ("nbd+unix://?socket=/s", NbdOptions::new(unix(), None)),
            ("nbd://", NbdOptions::new(SocketAddress::tcp("localhost", 10809), None)),
            ("nbd:h:10809", NbdOptions::new(host(), None)),
            ("nbd:unix:/s:exportname=e%", new(unix(), "e%")),
        ] {
            assert_eq!(parsed(name), options, "{name}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(NbdOptions::from_filename("/tmp/disk").is_none());
        assert!(NbdOptions::from_filename("http://x").is_none());
        for name in [
            "nbd://h:x",
            "nbd+unix:///e",
            "nbd+unix://h/?socket=s",
            "nbd://h/%4",
            "nbd://h/%zz",
            "nbd://h/x?socket=s",
            "nbd://h/x?tls-creds=c",
            "nbd:unix:",
            "nbd:",
        ] {
            assert!(NbdOptions::from_filename(name).unwrap().is_err(), "{name}");
        }
    }
}
