//! What a server may say to the NBD client driver.
#![no_main]

use ferry_block::testing::{fuzz_nbd_client, nbd_client_seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ferry_fuzz::write_seeds("nbd_client", &nbd_client_seeds()), |data: &[u8]| {
    fuzz_nbd_client(data);
});
