//! The set of sections that a machine is made of.

use super::{Section, State};
use crate::error::{Error, Result};

/// Most sections one machine may have: a bound on what a hostile stream can make us keep.
pub const MAX_SECTIONS: usize = 4096;
/// Most payload bytes of all sections together.
pub const MAX_TOTAL_LEN: usize = 256 << 20;

/// All saved state of one machine: at most one section per kind and instance.
///
/// Whoever restores takes its own out; [`Sections::finish`] then refuses what nobody took, so that
/// neither side can silently know more than the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sections {
    list: Vec<Section>,
    payload_len: usize,
}

impl Sections {
    /// An empty set.
    pub fn new() -> Sections {
        Sections::default()
    }

    /// Encodes and adds the state of `instance`.
    pub fn save<S: State>(&mut self, instance: &str, state: &S) -> Result<()> {
        self.put(Section::save(instance, state)?)
    }

    /// Adds a section; a second one for the same kind and instance is an error.
    pub fn put(&mut self, section: Section) -> Result<()> {
        if self.position(section.kind(), section.instance()).is_some() {
            return Err(Error::state(format!(
                "two sections '{}' of '{}'",
                section.kind(),
                section.instance()
            )));
        }
        let total = self.payload_len.saturating_add(section.payload().len());
        if self.list.len() >= MAX_SECTIONS || total > MAX_TOTAL_LEN {
            return Err(Error::state(format!(
                "too much device state: more than {MAX_SECTIONS} sections or {MAX_TOTAL_LEN} bytes"
            )));
        }
        self.payload_len = total;
        self.list.push(section);
        Ok(())
    }

    /// Takes out and decodes the state of `instance`; missing is an error.
    pub fn load<S: State>(&mut self, instance: &str) -> Result<S> {
        self.take(S::KIND, instance)?.load()
    }

    /// Takes a section out; missing is an error that names it.
    pub fn take(&mut self, kind: &str, instance: &str) -> Result<Section> {
        self.take_if_present(kind, instance).ok_or_else(|| {
            Error::state(format!("section '{kind}' of '{instance}' is missing from the stream"))
        })
    }

    /// Takes a section out where it is there: for state that older sides do not send.
    pub fn take_if_present(&mut self, kind: &str, instance: &str) -> Option<Section> {
        let section = self.list.remove(self.position(kind, instance)?);
        self.payload_len -= section.payload().len();
        Some(section)
    }

    /// Refuses what is left over, naming all of it; optional sections are logged and dropped.
    pub fn finish(self) -> Result<()> {
        let mut unknown = Vec::new();
        for section in &self.list {
            let name = format!("'{}' of '{}'", section.kind(), section.instance());
            if section.is_optional() {
                tracing::info!("skipped optional state section {name}, unknown here");
            } else {
                unknown.push(name);
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        Err(Error::state(format!(
            "the stream has state for devices that do not exist here: {}",
            unknown.join(", ")
        )))
    }

    /// The sections, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Section> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Bytes of all payloads together.
    pub fn payload_len(&self) -> usize {
        self.payload_len
    }

    /// All sections in wire form, one after the other.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(self.payload_len + 64 * self.list.len());
        for section in &self.list {
            section.encode(&mut out)?;
        }
        Ok(out)
    }

    /// Reads sections until the bytes end.
    pub fn decode(bytes: &[u8]) -> Result<Sections> {
        let mut sections = Sections::new();
        sections.append(bytes)?;
        Ok(sections)
    }

    /// Reads sections until the bytes end, and adds them.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            self.put(Section::decode(&mut bytes)?)?;
        }
        Ok(())
    }

    fn position(&self, kind: &str, instance: &str) -> Option<usize> {
        self.list.iter().position(|s| s.instance() == instance && s.kind() == kind)
    }
}
