//! Addresses of sockets.

use crate::schema::{object, union};

union! {
    /// Where a socket listens or connects to.
    pub struct SocketAddress {
        ..
        /// The kind with its own members.
        address: SocketKind = "type",
    }
    /// The kinds of addresses.
    pub enum SocketKind {
        /// TCP.
        Inet(InetSocketAddress) = "inet",
        /// A socket in the file system.
        Unix(UnixSocketAddress) = "unix",
    }
}

object! {
    /// A TCP address.
    #[derive(Default)]
    pub struct InetSocketAddress {
        /// Host name or number.
        host: String = "host",
        /// Port number or service.
        port: String = "port",
        /// Whether to probe a connection that is silent (default false).
        keep_alive: Option<bool> = "keep-alive",
        /// Whether IPv4 may be used.
        ipv4: Option<bool> = "ipv4",
        /// Whether IPv6 may be used.
        ipv6: Option<bool> = "ipv6",
    }
}

object! {
    /// A socket in the file system.
    pub struct UnixSocketAddress {
        /// Its path.
        path: String = "path",
    }
}

union! {
    /// An address as older commands have it: the members are in `data`.
    pub struct SocketAddressLegacy {
        ..
        /// The kind with its own members.
        address: SocketKindLegacy = "type",
    }
    /// The kinds of addresses.
    pub enum SocketKindLegacy {
        /// TCP.
        Inet(InetSocketAddressData) = "inet",
        /// A socket in the file system.
        Unix(UnixSocketAddressData) = "unix",
    }
}

object! {
    /// `data` of a TCP address.
    pub struct InetSocketAddressData {
        /// The members.
        data: InetSocketAddress = "data",
    }
}

object! {
    /// `data` of a socket in the file system.
    pub struct UnixSocketAddressData {
        /// The members.
        data: UnixSocketAddress = "data",
    }
}

impl From<SocketAddressLegacy> for SocketAddress {
    fn from(legacy: SocketAddressLegacy) -> SocketAddress {
        let address = match legacy.address {
            SocketKindLegacy::Inet(inet) => SocketKind::Inet(inet.data),
            SocketKindLegacy::Unix(unix) => SocketKind::Unix(unix.data),
        };
        SocketAddress { address }
    }
}
