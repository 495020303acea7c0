//! The `nbd` driver: a disk that an NBD server exports.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::net::SocketAddress;
use crate::node::BlockNode;
use crate::open::Opening;

/// The members of `blockdev-add` for driver `nbd`.
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
    pub(crate) async fn open(&self, _opening: &Opening<'_>) -> Result<BlockNode> {
        let context = format!("cannot connect to {}: no client yet", self.server);
        Err(Error::new(ErrorKind::Unsupported, context))
    }
}
