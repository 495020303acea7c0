//! Commands that a session answers by itself: negotiation and introspection.

use crate::schema::{enumeration, object};

enumeration! {
    /// What a client can switch on when it negotiates.
    pub enum QmpCapability {
        /// Out-of-band execution.
        Oob = "oob",
    }
}

object! {
    /// Arguments of `qmp_capabilities`.
    #[derive(Default)]
    pub struct QmpCapabilities {
        /// What to switch on.
        enable: Option<Vec<QmpCapability>> = "enable",
    }
}

object! {
    /// A version number.
    pub struct VersionTriple {
        /// First number.
        major: i64 = "major",
        /// Second number.
        minor: i64 = "minor",
        /// Third number.
        micro: i64 = "micro",
    }
}

object! {
    /// What `query-version` and the greeting tell.
    pub struct VersionInfo {
        /// The version of the command set. Clients conclude from it what else exists, so it is the
        /// oldest one that has everything offered here.
        qemu: VersionTriple = "qemu",
        /// Who really answers.
        package: String = "package",
    }
}

impl VersionInfo {
    /// What this build reports.
    ///
    /// Up to 5.0 everything is here that clients conclude from a number; a higher one would promise
    /// commands that are not. What is newer they find in the schema.
    pub fn current() -> Self {
        VersionInfo {
            qemu: VersionTriple { major: 5, minor: 0, micro: 0 },
            package: concat!("ferry ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

object! {
    /// One entry of `query-commands`.
    pub struct CommandName {
        /// The command.
        name: String = "name",
    }
}
