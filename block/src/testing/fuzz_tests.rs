use super::*;

#[test]
fn seeds_of_images_go_deep() {
    // Three requests for each of 17 places, three lengths, a flush, closing, and two checks. Version
    // 2 keeps the length of a disk with snapshots.
    let used: Vec<u32> = qcow2_seeds().iter().map(|seed| fuzz_qcow2(seed)).collect();
    assert_eq!(used, [58, 55, 58, 58, 58, 58]);
    let at_rest: Vec<u32> = qcow2_seeds().iter().map(|seed| fuzz_qcow2_at_rest(seed)).collect();
    assert_eq!(at_rest, [14, 48, 48, 48, 48, 14]);
    assert_eq!(fuzz_qcow2(&[]), 0);
    assert_eq!(fuzz_qcow2_at_rest(&[]), 0);
}

#[test]
fn seeds_of_names_go_deep() {
    let named: Vec<u32> = name_seeds().iter().map(|seed| fuzz_names(seed)).collect();
    assert_eq!(named, [1; 8]);
    assert_eq!(fuzz_names(b"driver"), 0);
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
