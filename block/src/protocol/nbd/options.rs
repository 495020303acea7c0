//! The members that `nbd` has in `blockdev-add`.

use serde::{Deserialize, Serialize};

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
}
