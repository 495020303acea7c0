//! What a qcow2 image may hold, when tools change it as a whole.
#![no_main]

use ferry_block::testing::{fuzz_qcow2_at_rest, qcow2_seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ferry_fuzz::write_seeds("qcow2_at_rest", &qcow2_seeds()), |data: &[u8]| {
    fuzz_qcow2_at_rest(data);
});
