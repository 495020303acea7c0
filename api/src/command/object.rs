//! Objects beside the nodes: TLS credentials, throttle groups, secrets and I/O threads.

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
        /// A thread for I/O: kept for scripts that ask for one, all disks share one thread.
        Iothread(IothreadProperties) = "iothread",
        /// A password or key.
        Secret(SecretProperties) = "secret",
        /// Limits that throttle nodes share.
        ThrottleGroup(Box<ThrottleGroupProperties>) = "throttle-group",
        /// Keys that both sides know beforehand: refused, with what to use instead.
        TlsCredsPsk(TlsCredsPskProperties) = "tls-creds-psk",
        /// Certificates.
        TlsCredsX509(TlsCredsX509Properties) = "tls-creds-x509",
    }
}

object! {
    /// Properties of an I/O thread.
    #[derive(Default)]
    pub struct IothreadProperties {
        /// Longest time of polling, in nanoseconds.
        poll_max_ns: Option<i64> = "poll-max-ns",
        /// By what the time of polling is multiplied when it was too short.
        poll_grow: Option<i64> = "poll-grow",
        /// By what it is divided when it was too long.
        poll_shrink: Option<i64> = "poll-shrink",
        /// Most requests that are handed to the kernel together.
        aio_max_batch: Option<i64> = "aio-max-batch",
        /// Fewest threads for work that blocks.
        thread_pool_min: Option<i64> = "thread-pool-min",
        /// Most threads for work that blocks.
        thread_pool_max: Option<i64> = "thread-pool-max",
    }
}

object! {
    /// One entry of `query-iothreads`.
    pub struct IoThreadInfo {
        /// Its id.
        id: String = "id",
        /// Its number on the host: that of the thread which does the work of all of them.
        thread_id: i64 = "thread-id",
        /// Longest time of polling, in nanoseconds.
        poll_max_ns: i64 = "poll-max-ns",
        /// By what the time of polling is multiplied when it was too short.
        poll_grow: i64 = "poll-grow",
        /// By what it is divided when it was too long.
        poll_shrink: i64 = "poll-shrink",
        /// Most requests that are handed to the kernel together.
        aio_max_batch: i64 = "aio-max-batch",
    }
}

object! {
    /// Properties of a secret.
    pub struct SecretProperties {
        /// What it is.
        data: Option<String> = "data",
        /// The file that it is in.
        file: Option<String> = "file",
        /// How it is written (default raw).
        format: Option<QCryptoSecretFormat> = "format",
        /// The secret that it is encrypted with.
        keyid: Option<String> = "keyid",
        /// How that encryption begins, in base 64.
        iv: Option<String> = "iv",
    }
}

enumeration! {
    /// How a secret is written.
    pub enum QCryptoSecretFormat {
        /// As it is.
        Raw = "raw",
        /// In base 64.
        Base64 = "base64",
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
    /// Properties of keys that both sides know beforehand.
    pub struct TlsCredsPskProperties {
        /// The folder with the keys.
        dir: Option<String> = "dir",
        /// The side they are for (default client).
        endpoint: Option<QCryptoTlsCredsEndpoint> = "endpoint",
        /// Whose key a client shows (default `qemu`).
        username: Option<String> = "username",
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
    /// Arguments of `qom-list`.
    pub struct QomList {
        /// `/objects`.
        path: String = "path",
    }
}

object! {
    /// One entry of `qom-list`.
    pub struct ObjectPropertyInfo {
        /// The object's id.
        name: String = "name",
        /// Its type: `child<..>`.
        kind: String = "type",
        /// What it is for.
        description: Option<String> = "description",
        /// Its value without a choice.
        default_value: Option<AnyValue> = "default-value",
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
