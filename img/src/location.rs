//! What a person writes to name an image: a path, an NBD address, or options.

use ferry_block::BlockdevOptions;
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::keyval;

/// Where NBD servers listen when nobody says anything else.
const NBD_PORT: &str = "10809";

/// A place where the bytes of an image are, or a whole image described by options.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Location {
    /// A file of the host, by path.
    File(String),
    /// Options of a protocol: the format is still to be found out.
    Protocol(Value),
    /// Options of everything.
    Image(Value),
}

impl Location {
    /// Reads a name as `qemu-img` does: `json:{...}`, `nbd:...`, an NBD URI, `file:path`, or a path.
    pub(crate) fn parse(name: &str) -> Result<Location> {
        if let Some(text) = name.strip_prefix("json:") {
            let options: Value = serde_json::from_str(text).map_err(|error| {
                Failure::new(format!("Could not parse the JSON options: {error}"))
            })?;
            let driver = options.get("driver").and_then(Value::as_str);
            let protocol = matches!(driver, Some("file" | "host_device" | "nbd"));
            return Ok(if protocol {
                Location::Protocol(options)
            } else {
                Location::Image(options)
            });
        }
        if let Some(path) = name.strip_prefix("file:") {
            return Ok(Location::File(path.to_owned()));
        }
        for scheme in ["nbd", "nbds"] {
            for transport in ["", "+tcp", "+unix"] {
                let prefix = format!("{scheme}{transport}://");
                if let Some(rest) = name.strip_prefix(prefix.as_str()) {
                    return nbd_uri(name, rest, transport == "+unix", scheme == "nbds");
                }
            }
        }
        if let Some(rest) = name.strip_prefix("nbd:") {
            return nbd_legacy(name, rest);
        }
        match name.split_once(':') {
            Some((protocol, _)) if is_protocol(protocol) => {
                Err(Failure::new(format!("Unknown protocol '{protocol}'")))
            }
            _ => Ok(Location::File(name.to_owned())),
        }
    }

    /// `--image-opts`.
    pub(crate) fn options(text: &str) -> Result<Location> {
        Ok(Location::Image(keyval::object(text)?))
    }

    /// The options of the protocol node, if there is no format yet.
    pub(crate) fn protocol(&self) -> Option<Value> {
        match self {
            Location::File(path) => Some(json!({"driver": "file", "filename": path})),
            Location::Protocol(options) => Some(options.clone()),
            Location::Image(_) => None,
        }
    }
}

/// Options in JSON as the block layer takes them.
pub(crate) fn blockdev(options: Value) -> Result<BlockdevOptions> {
    serde_json::from_value(options).map_err(|error| Failure::new(error.to_string()))
}

/// Whether what stands before a colon could be a protocol: a path has a slash before it.
fn is_protocol(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char))
}

/// `[host[:port]]/export?socket=path`.
fn nbd_uri(name: &str, rest: &str, unix: bool, tls: bool) -> Result<Location> {
    let bad = |what: &str| Failure::new(format!("Invalid NBD address '{name}': {what}"));
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, export) = address.split_once('/').unwrap_or((address, ""));
    let mut socket = None;
    let mut creds = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("socket", path)) => socket = Some(unescape(path)),
            Some(("tls-creds", id)) => creds = Some(unescape(id)),
            _ => return Err(bad("only 'socket' may follow the question mark")),
        }
    }
    let server = match (unix, socket) {
        (true, Some(path)) if authority.is_empty() => json!({"type": "unix", "path": path}),
        (true, _) => return Err(bad("a Unix address has a 'socket' and no host")),
        (false, None) => {
            let (host, port) = host_and_port(authority).ok_or_else(|| bad("no host"))?;
            json!({"type": "inet", "host": host, "port": port})
        }
        (false, Some(_)) => return Err(bad("a 'socket' needs nbd+unix")),
    };
    let mut options = json!({"driver": "nbd", "server": server, "export": unescape(export)});
    if tls {
        options["tls-creds"] = Value::from(creds.unwrap_or_else(|| "tls0".to_owned()));
    }
    Ok(Location::Protocol(options))
}

/// `nbd:unix:path[:exportname=x]` and `nbd:host:port[:exportname=x]`.
fn nbd_legacy(name: &str, rest: &str) -> Result<Location> {
    let (address, export) = match rest.split_once(":exportname=") {
        Some((address, export)) => (address, export),
        None => (rest, ""),
    };
    let server = match address.strip_prefix("unix:") {
        Some(path) => json!({"type": "unix", "path": path}),
        None => {
            let bad = || Failure::new(format!("Invalid NBD address '{name}': no host and port"));
            let (host, port) = host_and_port(address).ok_or_else(bad)?;
            json!({"type": "inet", "host": host, "port": port})
        }
    };
    Ok(Location::Protocol(json!({"driver": "nbd", "server": server, "export": export})))
}

/// The host, which may be an IPv6 address in brackets, and the port.
fn host_and_port(authority: &str) -> Option<(String, String)> {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, rest)| rest);
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':').unwrap_or(NBD_PORT))
        }
        None => authority.split_once(':').unwrap_or((authority, NBD_PORT)),
    };
    (!host.is_empty()).then(|| (host.to_owned(), port.to_owned()))
}

/// Percent escapes of a URI; what is none stays as it is.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let hex = more.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &more[2..];
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_qemu_img_reads_them() {
        let unix = |path: &str, export: &str| {
            let server = json!({"type": "unix", "path": path});
            Location::Protocol(json!({"driver": "nbd", "server": server, "export": export}))
        };
        let inet = |host: &str, port: &str, export: &str| {
            let server = json!({"type": "inet", "host": host, "port": port});
            Location::Protocol(json!({"driver": "nbd", "server": server, "export": export}))
        };
        let cases = [
            ("a.img", Location::File("a.img".into())),
            ("./a:b", Location::File("./a:b".into())),
            ("file:a:b", Location::File("a:b".into())),
            ("nbd+unix:///disk?socket=/tmp/a%20b", unix("/tmp/a b", "disk")),
            ("nbd+unix://?socket=s", unix("s", "")),
            ("nbd://h/x%2Fy", inet("h", "10809", "x/y")),
            ("nbd://[::1]:99/", inet("::1", "99", "")),
            ("nbd:unix:/s:exportname=e", unix("/s", "e")),
            ("nbd:h:7", inet("h", "7", "")),
        ];
        for (name, location) in cases {
            assert_eq!(Location::parse(name).unwrap(), location, "{name}");
        }
        for name in ["rbd:a/b", "nbd://", "nbd+unix:///x", "nbd://h/x?socket=s", "json:{"] {
            assert!(Location::parse(name).is_err(), "{name}");
        }
        let raw = Location::parse(r#"json:{"driver": "raw", "file": "f"}"#).unwrap();
        assert!(matches!(raw, Location::Image(_)));
    }
}
