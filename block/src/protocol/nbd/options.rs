//! The members that `nbd` has in `blockdev-add`.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::nbd::proto::DEFAULT_PORT;
use crate::net::SocketAddress;

/// The members that `nbd` has in `blockdev-add`. In names and on command lines `path`, or `host` and
/// `port`, may stand for `server`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(remote = "Self", rename_all = "kebab-case", deny_unknown_fields)]
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
    /// Metadata context that `ferry img map` is to show instead of the allocation, such as
    /// `qemu:dirty-bitmap:NAME`. Its bits are read as if they were the allocation's, as QEMU reads
    /// them: what is dirty looks like a hole. Nothing else believes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_dirty_bitmap: Option<String>,
    /// How many connections to share the work, where the server allows more than one.
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "__org.ferry_x-connections")]
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
}

// `remote = "Self"` makes plain functions of what the members say; here they become the traits.
impl<'de> Deserialize<'de> for NbdOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NbdOptions, D::Error> {
        let mut members = Map::deserialize(deserializer)?;
        nest_address(&mut members).map_err(D::Error::custom)?;
        NbdOptions::deserialize(Value::Object(members)).map_err(D::Error::custom)
    }
}

impl Serialize for NbdOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        NbdOptions::serialize(self, serializer)
    }
}

/// Makes `server` of `path`, or of `host` and `port`; an error is QEMU's text.
fn nest_address(members: &mut Map<String, Value>) -> Result<(), &'static str> {
    let [path, host, port] = ["path", "host", "port"].map(|key| members.remove(key));
    let server = match (path, host, port) {
        (None, None, None) if members.contains_key("server") => return Ok(()),
        (None, None, None) => return Err("NBD server address missing"),
        _ if members.contains_key("server") => {
            return Err("Cannot use 'server' and path/host/port at the same time");
        }
        (Some(_), Some(_), _) => return Err("path and host may not be used at the same time"),
        (_, None, Some(_)) => return Err("port may not be used without host"),
        (None, Some(host), port) => {
            let port = match port {
                None => DEFAULT_PORT.to_string().into(),
                Some(Value::Number(port)) => port.to_string().into(),
                Some(port) => port,
            };
            json!({"type": "inet", "host": host, "port": port})
        }
        (Some(path), None, None) => json!({"type": "unix", "path": path}),
    };
    members.insert("server".to_owned(), server);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_given_flat() {
        let read = |text: &str| serde_json::from_str::<NbdOptions>(text);
        let unix = NbdOptions::new(SocketAddress::unix("/s"), Some("e".into()));
        assert_eq!(read(r#"{"path": "/s", "export": "e"}"#).unwrap(), unix);
        let tcp = NbdOptions::new(SocketAddress::tcp("h", 7), None);
        assert_eq!(read(r#"{"host": "h", "port": "7"}"#).unwrap(), tcp);
        assert_eq!(read(r#"{"host": "h", "port": 7}"#).unwrap(), tcp);
        let tcp = NbdOptions::new(SocketAddress::tcp("h", DEFAULT_PORT), None);
        assert_eq!(read(r#"{"host": "h"}"#).unwrap(), tcp);
        assert_eq!(read(&serde_json::to_string(&unix).unwrap()).unwrap(), unix);
        // QMP has it as our own.
        let several = NbdOptions { x_connections: Some(4), ..unix.clone() };
        for name in ["x-connections", "__org.ferry_x-connections"] {
            let text = format!(r#"{{"path": "/s", "export": "e", "{name}": 4}}"#);
            assert_eq!(read(&text).unwrap(), several);
        }
        for (bad, why) in [
            (r#"{"export": "e"}"#, "address missing"),
            (r#"{"path": "/s", "host": "h"}"#, "path and host"),
            (r#"{"path": "/s", "port": "1"}"#, "without host"),
            (r#"{"port": "1"}"#, "without host"),
            (r#"{"path": "/s", "server": {"type": "unix", "path": "/s"}}"#, "at the same time"),
            (r#"{"path": "/s", "nosuch": 1}"#, "nosuch"),
        ] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
