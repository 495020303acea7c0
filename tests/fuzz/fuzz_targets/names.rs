//! What users may name a disk by.
#![no_main]

use ferry_block::testing::{fuzz_names, name_seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ferry_fuzz::write_seeds("names", &name_seeds()), |data: &[u8]| {
    fuzz_names(data);
});
