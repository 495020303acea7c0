//! Feature bits, their names, and the table of names for readers that do not know them.

use crate::error::{Error, ErrorKind, Result};

macro_rules! feature_set {
    ($(#[$doc:meta])* $set:ident { $($(#[$bit_doc:meta])* $name:ident = $bit:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $set(pub u64);

        impl $set {
            /// No features.
            pub const NONE: $set = $set(0);
            $($(#[$bit_doc])* pub const $name: $set = $set(1 << $bit);)*
            /// All that this program knows.
            pub const KNOWN: $set = $set($(1 << $bit)|*);

            /// Whether all of `other` is in it.
            pub fn contains(self, other: $set) -> bool {
                self.0 & other.0 == other.0
            }

            /// The same with those of `other` set or cleared.
            #[must_use]
            pub fn with(self, other: $set, set: bool) -> $set {
                $set(if set { self.0 | other.0 } else { self.0 & !other.0 })
            }
        }
    };
}

feature_set! {
    /// Features that a reader must know.
    Incompatible {
        /// Refcounts may be wrong: they are rebuilt before the image is written.
        DIRTY = 0,
        /// Any structure may be wrong: the image may only be read, or repaired.
        CORRUPT = 1,
        /// Guest data is in a file of its own.
        EXTERNAL_DATA = 2,
        /// Compressed clusters are not deflated, but as the header's `compression_type` says.
        COMPRESSION = 3,
        /// L2 entries of 128 bits, with subclusters.
        EXTENDED_L2 = 4,
    }
}

feature_set! {
    /// Features that a reader may ignore.
    Compatible {
        /// Refcounts may be written late, with [`Incompatible::DIRTY`] set meanwhile.
        LAZY_REFCOUNTS = 0,
    }
}

feature_set! {
    /// Features that a writer must know, or else clear their bits.
    Autoclear {
        /// The bitmaps extension is consistent.
        BITMAPS = 0,
        /// The external data file can be read as a raw image.
        RAW_EXTERNAL_DATA = 1,
    }
}

/// Bytes of an entry of the feature name table.
const ENTRY: usize = 48;

/// What this program writes into the table: the kind of set, the bit and the name, the words that
/// QEMU uses.
const NAMES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

/// The feature name table of the features that this program knows.
pub(super) fn name_table() -> Vec<u8> {
    let mut table = Vec::with_capacity(NAMES.len() * ENTRY);
    for (kind, bit, name) in NAMES {
        table.extend([kind, bit]);
        table.extend(name.bytes());
        table.resize(table.len().next_multiple_of(ENTRY), 0);
    }
    table
}

/// Refuses features that this program does not know, by the names that the image's own table
/// has for them.
pub(super) fn check_incompatible(found: Incompatible, names: &[u8]) -> Result<()> {
    let unknown = found.0 & !Incompatible::KNOWN.0;
    if unknown == 0 {
        return Ok(());
    }
    let mut nameless = 0;
    let mut listed = Vec::new();
    for bit in (0..64_u8).filter(|bit| unknown >> bit & 1 != 0) {
        match name_of(names, bit) {
            Some(name) => listed.push(name),
            None => nameless |= 1_u64 << bit,
        }
    }
    if nameless != 0 {
        listed.push(format!("Unknown incompatible feature: {nameless:x}"));
    }
    let context = format!("Unsupported qcow2 feature(s): {}", listed.join(", "));
    Err(Error::new(ErrorKind::Unsupported, context))
}

/// The name of an incompatible feature in a feature name table, whose last entry may be cut short.
fn name_of(table: &[u8], bit: u8) -> Option<String> {
    let name = table.chunks(ENTRY).find_map(|entry| entry.strip_prefix(&[0, bit]))?;
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    // The name is the image's, so it may contain anything.
    Some(String::from_utf8_lossy(name).escape_debug().to_string())
}
