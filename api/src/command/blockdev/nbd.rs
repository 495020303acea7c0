//! The `nbd` driver.

use crate::{command::SocketAddress, schema::object};

object! {
    /// Options of `nbd`.
    pub struct NbdOptions {
        /// Where the server listens.
        server: SocketAddress = "server",
        /// Name of the export (default: the one without a name).
        export: Option<String> = "export",
        /// Id of TLS credentials.
        tls_creds: Option<String> = "tls-creds",
        /// Name that the server's certificate must have (default: the host's).
        tls_hostname: Option<String> = "tls-hostname",
        /// Show the metadata of this context as allocation.
        x_dirty_bitmap: Option<String> = "x-dirty-bitmap",
        /// For how many seconds requests wait for a server that is gone (default 0).
        reconnect_delay: Option<u32> = "reconnect-delay",
        /// For how many seconds opening tries again (default 0).
        open_timeout: Option<u32> = "open-timeout",
        /// How many connections share the work, if the server allows more than one.
        connections: Option<u32> = "__org.ferry_x-connections",
    }
}
