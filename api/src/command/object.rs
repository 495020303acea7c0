//! Objects beside the nodes: TLS credentials and throttle groups.

use serde_json::Value;

use crate::schema::{Described, Type, enumeration, object, union};

union! {
    /// Arguments of `object-add`.
    pub struct ObjectOptions {
        /// Its id.
        id: String = "id",
        ..
        /// The kind with its own properties.
        kind: ObjectKind = "qom-type",
    }
    /// The kinds of objects.
    pub enum ObjectKind {
        /// Limits that throttle nodes share.
        ThrottleGroup(Box<ThrottleGroupProperties>) = "throttle-group",
        /// Certificates.
        TlsCredsX509(TlsCredsX509Properties) = "tls-creds-x509",
    }
}

object! {
    /// Properties of a throttle group.
    #[derive(Default)]
    pub struct ThrottleGroupProperties {
        /// The limits (default none).
        limits: Option<ThrottleLimits> = "limits",
    }
}

object! {
    /// Limits: rates in bytes or requests a second, 0 for none; lengths of bursts in seconds.
    #[derive(Default)]
    pub struct ThrottleLimits {
        /// Requests.
        iops_total: Option<i64> = "iops-total",
        /// Requests, in a burst.
        iops_total_max: Option<i64> = "iops-total-max",
        /// Requests: seconds of a burst.
        iops_total_max_length: Option<i64> = "iops-total-max-length",
        /// Requests read.
        iops_read: Option<i64> = "iops-read",
        /// Requests read, in a burst.
        iops_read_max: Option<i64> = "iops-read-max",
        /// Requests read: seconds of a burst.
        iops_read_max_length: Option<i64> = "iops-read-max-length",
        /// Requests written.
        iops_write: Option<i64> = "iops-write",
        /// Requests written, in a burst.
        iops_write_max: Option<i64> = "iops-write-max",
        /// Requests written: seconds of a burst.
        iops_write_max_length: Option<i64> = "iops-write-max-length",
        /// Bytes.
        bps_total: Option<i64> = "bps-total",
        /// Bytes, in a burst.
        bps_total_max: Option<i64> = "bps-total-max",
        /// Bytes: seconds of a burst.
        bps_total_max_length: Option<i64> = "bps-total-max-length",
        /// Bytes read.
        bps_read: Option<i64> = "bps-read",
        /// Bytes read, in a burst.
        bps_read_max: Option<i64> = "bps-read-max",
        /// Bytes read: seconds of a burst.
        bps_read_max_length: Option<i64> = "bps-read-max-length",
        /// Bytes written.
        bps_write: Option<i64> = "bps-write",
        /// Bytes written, in a burst.
        bps_write_max: Option<i64> = "bps-write-max",
        /// Bytes written: seconds of a burst.
        bps_write_max_length: Option<i64> = "bps-write-max-length",
        /// A request counts as one for each so many bytes.
        iops_size: Option<i64> = "iops-size",
    }
}

enumeration! {
    /// Sides of a TLS connection.
    pub enum QCryptoTlsCredsEndpoint {
        /// The side that connects.
        Client = "client",
        /// The side that listens.
        Server = "server",
    }
}

object! {
    /// Properties of TLS credentials.
    pub struct TlsCredsX509Properties {
        /// Whether the other side must show a certificate (default true).
        verify_peer: Option<bool> = "verify-peer",
        /// The folder with the certificates.
        dir: Option<String> = "dir",
        /// The side they are for (default client).
        endpoint: Option<QCryptoTlsCredsEndpoint> = "endpoint",
    }
}

object! {
    /// Arguments of `object-del`.
    pub struct ObjectDel {
        /// The object.
        id: String = "id",
    }
}

object! {
    /// Arguments of `qom-get`.
    pub struct QomGet {
        /// The object: its id, or `/objects/` and its id.
        path: String = "path",
        /// The property.
        property: String = "property",
    }
}

object! {
    /// Arguments of `qom-set`.
    pub struct QomSet {
        /// The object: its id, or `/objects/` and its id.
        path: String = "path",
        /// The property.
        property: String = "property",
        /// Its new value.
        value: AnyValue = "value",
    }
}

/// A value of any kind.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct AnyValue(pub Value);

impl Described for AnyValue {
    fn describe() -> Type {
        Type::Any
    }
}
