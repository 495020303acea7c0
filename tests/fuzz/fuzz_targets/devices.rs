//! What a source may say of the state of a machine's devices.
#![no_main]

use ferry_devices::testing::{device_seeds, fuzz_devices};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ferry_fuzz::write_seeds("devices", &device_seeds()), |data: &[u8]| {
    fuzz_devices(data);
});
