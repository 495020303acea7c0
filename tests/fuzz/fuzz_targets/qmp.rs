//! What a client may say to QMP.
#![no_main]

use ferry_api::testing::{fuzz_qmp, qmp_seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ferry_fuzz::write_seeds("qmp", &qmp_seeds()), |data: &[u8]| {
    fuzz_qmp(data);
});
