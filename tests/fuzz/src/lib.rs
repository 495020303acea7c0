//! What the targets have in common.

use std::fs;
use std::path::Path;

/// Writes what a target begins with to `seeds/TARGET`, where libFuzzer is told to look.
///
/// # Panics
/// There is no room for it.
pub fn write_seeds(target: &str, seeds: &[Vec<u8>]) {
    let folder = Path::new("seeds").join(target);
    fs::create_dir_all(&folder).expect("room for a folder");
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(folder.join(number.to_string()), seed).expect("room for a seed");
    }
}
