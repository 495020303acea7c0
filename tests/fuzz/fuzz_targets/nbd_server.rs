//! What a client may say to the NBD server.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    ferry_block::testing::fuzz_nbd_server(data);
});
