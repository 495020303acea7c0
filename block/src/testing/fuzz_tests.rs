use super::*;

#[test]
fn seeds_of_images_go_deep() {
    for seed in qcow2_seeds() {
        // Three requests for each of 17 places, a flush, closing, and two checks.
        assert_eq!(fuzz_qcow2(&seed), 17 * 3 + 4);
    }
    assert_eq!(fuzz_qcow2(&[]), 0);
}

#[test]
fn seeds_of_conversations_go_deep() {
    for seed in nbd_server_seeds() {
        assert!(fuzz_nbd_server(&seed) > 32 << 10, "two reads were not answered");
        assert!(fuzz_nbd_server(&seed[..4]) < 64, "more than a greeting");
    }
    let passed: Vec<u32> = nbd_client_seeds().iter().map(|seed| fuzz_nbd_client(seed)).collect();
    assert!(passed.iter().all(|passed| *passed > 0), "{passed:?}");
}
