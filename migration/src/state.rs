//! Saved state: versioned structs, the sections that carry them, and the set a machine is made of.
//!
//! A device describes itself with a plain struct that implements [`State`]. Its payload is CBOR with
//! **named** fields, so that an optional field can be added without breaking anybody; anything else
//! is a new struct with the next version number and a `From` the older one. [`Section::load`] walks
//! that chain, so that every version ever released loads for ever.
//!
//! ```
//! use ferry_migration::state::{Sections, State};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct LampV1 { lit: bool }
//! impl State for LampV1 {
//!     const KIND: &'static str = "lamp";
//!     const VERSION: u16 = 1;
//!     type Older = Self; // the first version has no older one
//! }
//!
//! #[derive(Serialize, Deserialize)]
//! struct LampV2 { brightness: u8 }
//! impl State for LampV2 {
//!     const KIND: &'static str = "lamp";
//!     const VERSION: u16 = 2;
//!     type Older = LampV1;
//! }
//! impl From<LampV1> for LampV2 {
//!     fn from(old: LampV1) -> Self {
//!         LampV2 { brightness: if old.lit { 255 } else { 0 } }
//!     }
//! }
//!
//! let mut saved = Sections::new();
//! saved.save("desk", &LampV1 { lit: true })?;
//! let lamp: LampV2 = saved.load("desk")?;
//! assert_eq!(lamp.brightness, 255);
//! saved.finish()?;
//! # Ok::<(), ferry_migration::Error>(())
//! ```
//!
//! A section on the wire is, little endian:
//!
//! | bytes | field |
//! |---|---|
//! | 2 + n | kind, length first, UTF-8, 1..=64 bytes |
//! | 2 + n | instance, length first, UTF-8, at most 256 bytes |
//! | 2 | version |
//! | 2 | flags: bit 0 optional (who does not know it may skip it), others must be 0 |
//! | 4 | payload length, at most 16 MiB |
//! | 4 | CRC-32 of everything of this section before this field, then of the payload |
//! | n | payload, CBOR |

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

mod bytes;
pub mod golden;
mod sections;

pub use bytes::Bytes;
pub use sections::{MAX_SECTIONS, MAX_TOTAL_LEN, Sections};

/// Longest `kind`, in bytes.
pub const MAX_KIND_LEN: usize = 64;
/// Longest `instance`, in bytes.
pub const MAX_INSTANCE_LEN: usize = 256;
/// Longest payload of one section, in bytes.
pub const MAX_PAYLOAD_LEN: usize = 16 << 20;

/// Flag bit 0: a reader that does not know this section may skip it.
const FLAG_OPTIONAL: u16 = 1;

/// One version of the saved state of one kind of device.
///
/// Saved types are not runtime types: write a plain struct, and check every value in it when you
/// restore from it as if an attacker had sent it, because one may have.
pub trait State: Serialize + DeserializeOwned {
    /// What this is the state of, such as `"virtio-blk"`; the same in every version.
    const KIND: &'static str;
    /// This version, from 1. A field that is added with `#[serde(default)]` and whose absence means
    /// "as before" needs no new version; everything else does.
    const VERSION: u16;
    /// The version before this one; `Self` in the first version.
    type Older: State + Into<Self>;
}

/// Something that has state which must move with the guest.
///
/// Neither method has a default: "I have nothing to save" must be written down by somebody.
pub trait Migrate {
    /// Adds this thing's sections. Called with all vCPUs stopped and all requests drained.
    fn save(&self, out: &mut Sections) -> Result<()>;

    /// Takes this thing's sections out of `from` and becomes what they say, or changes nothing that
    /// a guest could ever see and says why not. Called before any vCPU has run.
    fn restore(&mut self, from: &mut Sections) -> Result<()>;
}

/// One named, versioned, checksummed piece of state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    kind: String,
    instance: String,
    version: u16,
    flags: u16,
    payload: Vec<u8>,
}

impl Section {
    /// Encodes `state` for the thing called `instance`.
    pub fn save<S: State>(instance: &str, state: &S) -> Result<Section> {
        let mut payload = Vec::new();
        ciborium::into_writer(state, &mut payload).map_err(|source| {
            Error::state(format!("saving '{}' of '{instance}'", S::KIND)).because(source)
        })?;
        let section = Section {
            kind: S::KIND.to_owned(),
            instance: instance.to_owned(),
            version: S::VERSION,
            flags: 0,
            payload,
        };
        section.check_limits()?;
        Ok(section)
    }

    /// A section from its parts, as the stream decoder and tests make them.
    pub fn from_parts(
        kind: &str,
        instance: &str,
        version: u16,
        optional: bool,
        payload: Vec<u8>,
    ) -> Result<Section> {
        let flags = if optional { FLAG_OPTIONAL } else { 0 };
        let section = Section {
            kind: kind.to_owned(),
            instance: instance.to_owned(),
            version,
            flags,
            payload,
        };
        section.check_limits()?;
        Ok(section)
    }

    /// Lets a reader that does not know this section skip it.
    #[must_use]
    pub fn optional(mut self) -> Section {
        self.flags |= FLAG_OPTIONAL;
        self
    }

    /// Decodes into today's struct, through older versions where that is what was saved.
    pub fn load<S: State>(&self) -> Result<S> {
        if self.kind != S::KIND {
            return Err(Error::state(format!(
                "section '{}' of '{}' read as '{}'",
                self.kind,
                self.instance,
                S::KIND
            )));
        }
        if self.version > S::VERSION {
            return Err(Error::state(format!(
                "section '{}' of '{}' has version {}, newer than {}, the newest known here",
                self.kind,
                self.instance,
                self.version,
                S::VERSION
            )));
        }
        self.load_version::<S>()
    }

    /// Steps down the chain to the version that was saved, and up again through `From`.
    fn load_version<S: State>(&self) -> Result<S> {
        if self.version == S::VERSION {
            return self.parse();
        }
        if S::Older::VERSION >= S::VERSION {
            return Err(Error::state(format!(
                "section '{}' of '{}' has version {}, older than {}, the oldest known here",
                self.kind,
                self.instance,
                self.version,
                S::VERSION
            )));
        }
        self.load_version::<S::Older>().map(Into::into)
    }

    fn parse<S: State>(&self) -> Result<S> {
        let mut rest = self.payload.as_slice();
        let context = || format!("reading '{}' of '{}'", self.kind, self.instance);
        let state =
            ciborium::from_reader(&mut rest).map_err(|e| Error::state(context()).because(e))?;
        if !rest.is_empty() {
            return Err(Error::state(format!("{}: {} bytes too many", context(), rest.len())));
        }
        Ok(state)
    }

    /// What kind of thing this is the state of.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Which of that kind, such as a device id.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The version that was saved.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// May a reader that does not know it skip it?
    pub fn is_optional(&self) -> bool {
        self.flags & FLAG_OPTIONAL != 0
    }

    /// The CBOR.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    fn check_limits(&self) -> Result<()> {
        let (kind, instance) = (self.kind.len(), self.instance.len());
        if kind == 0 || kind > MAX_KIND_LEN || instance > MAX_INSTANCE_LEN {
            return Err(Error::state(format!(
                "section name out of bounds: kind {kind} of 1..={MAX_KIND_LEN} bytes, \
                 instance {instance} of at most {MAX_INSTANCE_LEN}"
            )));
        }
        if self.payload.len() > MAX_PAYLOAD_LEN {
            return Err(Error::state(format!(
                "section '{}' of '{}' is {} bytes long, more than {MAX_PAYLOAD_LEN}",
                self.kind,
                self.instance,
                self.payload.len()
            )));
        }
        Ok(())
    }

    /// Bytes of the wire form.
    pub fn encoded_len(&self) -> usize {
        16 + self.kind.len() + self.instance.len() + self.payload.len()
    }

    /// Appends the wire form.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        self.check_limits()?;
        let start = out.len();
        put_text(out, &self.kind);
        put_text(out, &self.instance);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        let len = u32::try_from(self.payload.len()).expect("limits were checked");
        out.extend_from_slice(&len.to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&out[start..]);
        crc.update(&self.payload);
        out.extend_from_slice(&crc.finalize().to_le_bytes());
        out.extend_from_slice(&self.payload);
        Ok(())
    }

    /// Reads one section from the front of `from` and moves it on.
    pub fn decode(from: &mut &[u8]) -> Result<Section> {
        let whole = *from;
        let kind = take_text(from, MAX_KIND_LEN)?;
        let instance = take_text(from, MAX_INSTANCE_LEN)?;
        let version = u16::from_le_bytes(take_array(from)?);
        let flags = u16::from_le_bytes(take_array(from)?);
        let len = u32::from_le_bytes(take_array(from)?) as usize;
        if flags & !FLAG_OPTIONAL != 0 {
            return Err(Error::corrupt(format!("section '{kind}' has unknown flags {flags:#x}")));
        }
        if len > MAX_PAYLOAD_LEN {
            return Err(Error::corrupt(format!(
                "section '{kind}' claims {len} bytes, more than {MAX_PAYLOAD_LEN}"
            )));
        }
        let head = &whole[..whole.len() - from.len()];
        let expected = u32::from_le_bytes(take_array(from)?);
        let payload = take(from, len)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(head);
        crc.update(payload);
        let found = crc.finalize();
        if found != expected {
            return Err(Error::corrupt(format!(
                "section '{kind}' of '{instance}' is damaged: checksum {found:#010x}, \
                 {expected:#010x} announced"
            )));
        }
        let section = Section { kind, instance, version, flags, payload: payload.to_vec() };
        section.check_limits()?;
        Ok(section)
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let len = u16::try_from(text.len()).expect("limits were checked");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn take_text(from: &mut &[u8], max: usize) -> Result<String> {
    let len = usize::from(u16::from_le_bytes(take_array(from)?));
    if len > max {
        return Err(Error::corrupt(format!("section name of {len} bytes, more than {max}")));
    }
    let bytes = take(from, len)?;
    String::from_utf8(bytes.to_vec())
        .map_err(|source| Error::corrupt("section name is not UTF-8").because(source))
}

fn take_array<const N: usize>(from: &mut &[u8]) -> Result<[u8; N]> {
    let (head, rest) = from.split_first_chunk::<N>().ok_or_else(cut_short)?;
    *from = rest;
    Ok(*head)
}

fn take<'a>(from: &mut &'a [u8], len: usize) -> Result<&'a [u8]> {
    let (head, rest) = from.split_at_checked(len).ok_or_else(cut_short)?;
    *from = rest;
    Ok(head)
}

fn cut_short() -> Error {
    Error::corrupt("section is cut short")
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
