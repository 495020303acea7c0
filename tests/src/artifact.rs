//! What the tests need and can make or fetch themselves, kept under `target/artifacts`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The project's root folder.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// A folder `name` that `make` filled once for this `key`; a new key makes it anew. Safe to call from
/// several processes at once: the first one makes it, the others wait.
///
/// # Errors
///
/// When `make` fails: nothing is kept then.
pub fn cached(name: &str, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let all = target().join("artifacts");
    fs::create_dir_all(&all).with_context(|| format!("cannot create {}", all.display()))?;
    let lock = File::create(all.join(format!("{name}.lock")))?;
    lock.lock().with_context(|| format!("cannot lock artifact {name}"))?;
    let done = all.join(name);
    let mark = done.join(".key");
    if fs::read_to_string(&mark).is_ok_and(|kept| kept == key) {
        return Ok(done);
    }
    let scratch = all.join(format!("{name}.new"));
    for stale in [&scratch, &done] {
        if stale.exists() {
            fs::remove_dir_all(stale)
                .with_context(|| format!("cannot clear {}", stale.display()))?;
        }
    }
    fs::create_dir_all(&scratch)?;
    make(&scratch).with_context(|| format!("cannot make artifact {name}"))?;
    fs::write(scratch.join(".key"), key)?;
    fs::rename(&scratch, &done)?;
    Ok(done)
}

/// A short text that changes when one of the files does.
///
/// # Errors
///
/// When a file cannot be read.
pub fn fingerprint(files: &[&Path]) -> Result<String> {
    let mut text = String::new();
    for file in files {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        text.push_str(&format!(
            "{} {} {:08x}\n",
            file.display(),
            bytes.len(),
            crc32fast::hash(&bytes)
        ));
    }
    Ok(text)
}
