//! What a qcow2 image may hold, while its disk is used.
#![no_main]

use ferry_block::testing::{fuzz_qcow2, qcow2_seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ferry_fuzz::write_seeds("qcow2", &qcow2_seeds()), |data: &[u8]| {
    fuzz_qcow2(data);
});
