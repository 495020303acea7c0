//! What a client may say to the NBD server.
#![no_main]

use ferry_block::testing::{fuzz_nbd_server, nbd_server_seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ferry_fuzz::write_seeds("nbd_server", &nbd_server_seeds()), |data: &[u8]| {
    fuzz_nbd_server(data);
});
