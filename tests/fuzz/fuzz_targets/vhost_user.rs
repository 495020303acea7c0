//! What a vhost-user front end may send, and its guest put into its rings.
#![no_main]

use ferry_vhost_user::testing::{front_end_seeds, fuzz_front_end};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ferry_fuzz::write_seeds("vhost_user", &front_end_seeds()), |data: &[u8]| {
    fuzz_front_end(data);
});
