//! What a source may send to a machine that waits for a guest.
#![no_main]

use ferry_migration::testing::{destination_seeds, fuzz_destination};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ferry_fuzz::write_seeds("migration", &destination_seeds()), |data: &[u8]| {
    fuzz_destination(data);
});
