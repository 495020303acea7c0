//! Where a socket listens or connects to, as QMP writes it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// QMP's `SocketAddress`, of the kinds that storage is served on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum SocketAddress {
    /// TCP.
    Inet {
        /// Name or number of the host; empty listens on all addresses.
        host: String,
        /// Port number; 0 lets a listener choose one.
        port: String,
        /// Whether to send probes on a connection that is silent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep_alive: Option<bool>,
        /// Whether IPv4 may be used.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ipv4: Option<bool>,
        /// Whether IPv6 may be used.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ipv6: Option<bool>,
    },
    /// A socket in the file system.
    Unix {
        /// Its path.
        path: String,
    },
}

impl SocketAddress {
    /// A socket in the file system.
    pub fn unix(path: impl Into<String>) -> SocketAddress {
        SocketAddress::Unix { path: path.into() }
    }

    /// TCP, with any version of IP.
    pub fn tcp(host: impl Into<String>, port: u16) -> SocketAddress {
        let (host, port) = (host.into(), port.to_string());
        SocketAddress::Inet { host, port, keep_alive: None, ipv4: None, ipv6: None }
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SocketAddress::Inet { host, port, .. } if host.contains(':') => {
                write!(f, "[{host}]:{port}")
            }
            SocketAddress::Inet { host, port, .. } => write!(f, "{host}:{port}"),
            SocketAddress::Unix { path } => f.write_str(path),
        }
    }
}
