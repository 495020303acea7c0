//! Secrets: passwords and keys that options refer to by id, as QEMU's `secret` objects are. A secret
//! may be encrypted with another one, so that a command line does not show it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;

use aes::Aes256;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cbc::Decryptor;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::graph::BlockGraph;

/// Longest file with a secret, bytes.
const MAX_FILE: u64 = 1 << 20;
/// Bytes of a block of AES.
const BLOCK: usize = 16;
/// Bytes of a key of AES-256.
const KEY: usize = 32;

/// Base 64 as QEMU takes it, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// How a secret is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretFormat {
    /// As it is.
    #[default]
    Raw,
    /// In base 64.
    Base64,
}

/// The properties of a `secret` object.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretOptions {
    /// The secret.
    pub data: Option<String>,
    /// The file that it is in.
    pub file: Option<String>,
    /// How it is written.
    #[serde(default)]
    pub format: SecretFormat,
    /// Id of the secret that it is encrypted with, by AES-256 in CBC mode.
    pub keyid: Option<String>,
    /// The initialisation vector of that encryption, in base 64.
    pub iv: Option<String>,
}

/// What is secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// Those of one graph, by id.
#[derive(Default)]
struct Secrets(RefCell<BTreeMap<String, Secret>>);

impl Secret {
    /// Reads a secret and decrypts it.
    ///
    /// # Errors
    /// In QEMU's words: properties that do not go together, a file that cannot be read, another
    /// secret that is not there, or data that is not encrypted with it.
    pub async fn load(graph: &BlockGraph, options: &SecretOptions) -> Result<Secret> {
        let input = match (&options.data, &options.file) {
            (Some(_), Some(_)) => return refuse("'file' and 'data' are mutually exclusive"),
            (None, None) => return refuse("Either 'file' or 'data' must be provided"),
            (Some(data), None) => data.clone().into_bytes(),
            (None, Some(path)) => read(graph, path).await?,
        };
        let input = match options.format {
            SecretFormat::Raw => input,
            SecretFormat::Base64 => decode(&input)?,
        };
        let Some(id) = &options.keyid else { return Ok(Secret(input)) };
        let known = graph.extension(Secrets::default).0.borrow().get(id).cloned();
        let Some(key) = known else { return refuse(format!("No secret with id '{id}'")) };
        let Some(iv) = &options.iv else { return refuse("IV is required to decrypt secret") };
        decrypt(&key, &decode(iv.as_bytes())?, input)
    }

    /// Makes it known under an id.
    pub fn register(self, graph: &BlockGraph, id: &str) {
        graph.extension(Secrets::default).0.borrow_mut().insert(id.to_owned(), self);
    }

    /// Forgets one; whether there was any.
    pub fn unregister(graph: &BlockGraph, id: &str) -> bool {
        graph.extension(Secrets::default).0.borrow_mut().remove(id).is_some()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

async fn read(graph: &BlockGraph, path: &str) -> Result<Vec<u8>> {
    let owned = path.to_owned();
    let read = move || {
        let mut bytes = Vec::new();
        File::open(owned)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = graph.executor().engine().blocking(read).await;
    match bytes.map_err(|error| Error::from_io(error, format!("Unable to read {path}")))? {
        bytes if bytes.len() as u64 > MAX_FILE => {
            refuse(format!("Unable to read {path}: it is longer than {MAX_FILE} bytes"))
        }
        bytes => Ok(bytes),
    }
}

fn decode(text: &[u8]) -> Result<Vec<u8>> {
    let text: Vec<u8> = text.iter().copied().filter(|byte| *byte != b'\n').collect();
    BASE64.decode(text).or_else(|_| refuse("Base64 data contains invalid characters"))
}

/// AES-256 in CBC mode, and as many bytes of padding as each of them says.
fn decrypt(key: &Secret, iv: &[u8], mut data: Vec<u8>) -> Result<Secret> {
    let Ok(key) = <&[u8; KEY]>::try_from(&key.0[..]) else {
        return refuse("Key should be 32 bytes in length");
    };
    let Ok(iv) = <&[u8; BLOCK]>::try_from(iv) else {
        return refuse(format!("IV should be 16 bytes in length not {}", iv.len()));
    };
    let mut cipher = Decryptor::<Aes256>::new(key.into(), iv.into());
    let (blocks, rest) = data.as_chunks_mut::<BLOCK>();
    if !rest.is_empty() {
        let len = data.len();
        return refuse(format!("Length {len} must be a multiple of block size {BLOCK}"));
    }
    for block in blocks {
        cipher.decrypt_block(block.into());
    }
    let padding = data.last().copied().unwrap_or(0);
    if usize::from(padding) > BLOCK {
        let text = "Incorrect number of padding bytes";
        return refuse(format!("{text} ({padding}) found on decrypted data"));
    }
    data.truncate(data.len() - usize::from(padding));
    Ok(Secret(data))
}

fn refuse<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidArgument, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::executor::Executor;

    const IV: &str = "aWlpaWlpaWlpaWlpaWlpaQ==";
    /// What `openssl enc -aes-256-cbc` makes of "hello world" with 32 times `k` and 16 times `i`.
    const HELLO: &str = "ioKNFMhJ1U5QPG7Ri3bZnA==";

    fn options(json: &str) -> SecretOptions {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn secrets_are_read_as_qemu_reads_them() {
        let executor = Executor::new(Clock::real()).unwrap();
        let graph = BlockGraph::new(executor.clone());
        let load = |json: &str| executor.block_on(Secret::load(&graph, &options(json)));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, [b'k'; KEY]).unwrap();
        let key = load(&format!(r#"{{"file": {file:?}}}"#)).unwrap();
        assert_eq!(key, Secret(vec![b'k'; KEY]));
        key.register(&graph, "k");
        Secret(vec![1]).register(&graph, "short");
        let coded = |keyid: &str, iv: &str, data: &str| {
            format!(r#"{{"keyid": "{keyid}", "iv": "{iv}", "data": "{data}", "format": "base64"}}"#)
        };
        assert_eq!(load(&coded("k", IV, HELLO)).unwrap(), Secret(b"hello world".to_vec()));
        assert_eq!(load(r#"{"data": "YWI=", "format": "base64"}"#).unwrap(), Secret(b"ab".into()));
        assert_eq!(load(&coded("k", IV, "")).unwrap(), Secret(Vec::new()));
        for (json, text) in [
            (coded("nosuch", IV, HELLO), "No secret with id 'nosuch'"),
            (coded("short", IV, HELLO), "Key should be 32 bytes in length"),
            (coded("k", "AAAA", HELLO), "IV should be 16 bytes in length not 3"),
            (coded("k", IV, "AAAA"), "Length 3 must be a multiple of block size 16"),
            (
                coded("k", IV, "AAAAAAAAAAAAAAAAAAAAAA=="),
                "Incorrect number of padding bytes (24) found on decrypted data",
            ),
            (r#"{"data": "x", "keyid": "k"}"#.into(), "IV is required to decrypt secret"),
            (r#"{"data": "x", "file": "y"}"#.into(), "'file' and 'data' are mutually exclusive"),
            ("{}".into(), "Either 'file' or 'data' must be provided"),
            (
                r#"{"data": "a!b", "format": "base64"}"#.into(),
                "Base64 data contains invalid characters",
            ),
        ] {
            assert_eq!(load(&json).unwrap_err().to_string(), text, "{json}");
        }
        assert!(load(r#"{"file": "/nosuch"}"#).unwrap_err().to_string().contains("/nosuch"));
        assert!(Secret::unregister(&graph, "k") && load(&coded("k", IV, HELLO)).is_err());
    }
}
