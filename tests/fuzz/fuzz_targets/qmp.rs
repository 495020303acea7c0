//! What a client may say to QMP.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    ferry_api::testing::fuzz_qmp(data);
});
