//! Bodies of the small frames: CBOR with named fields, so that either side may know more than the other.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Body of StateEnd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateEnd {
    /// How many sections were sent.
    pub(crate) sections: u64,
    /// Did the guest run when it was stopped?
    pub(crate) guest_running: bool,
}

/// Body of Prepared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Prepared {
    /// Microseconds that loading the state took.
    pub(crate) restore: u64,
}

/// Body of Running.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Running {
    /// Microseconds that taking the disks took.
    pub(crate) activate: u64,
}

pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    ciborium::into_writer(message, &mut body)
        .map_err(|e| Error::corrupt("encoding a message").because(e))?;
    Ok(body)
}

pub(crate) fn decode<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T> {
    ciborium::from_reader(body)
        .map_err(|e| Error::corrupt(format!("the peer's {what} message makes no sense")).because(e))
}

/// The text of a Failed or Refused frame, fit for a log line: from a peer that may be anybody.
pub(crate) fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
