//! What a qcow2 image may hold.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    ferry_block::testing::fuzz_qcow2(data);
});
