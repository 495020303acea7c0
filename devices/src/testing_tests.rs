use super::*;

#[test]
fn what_a_source_says_is_restored() {
    for seed in device_seeds() {
        assert_eq!(fuzz_devices(&seed), 8);
    }
    assert_eq!(fuzz_devices(&[]), 2, "those that have no state");
}

#[test]
fn the_request_of_a_guest_that_arrives_is_served() {
    let seeds = device_seeds();
    let (mut sections, rest) = read(&seeds[1]);
    let memory = memory(rest);
    let board = Board::new(&executor(), memory.clone());
    for part in board.parts() {
        lock(&part).restore(&mut sections).unwrap();
    }
    board.run();
    let used: u16 = memory.read_obj(GuestAddress(USED + 2)).unwrap();
    assert_eq!(used, 1);
}

#[test]
fn nothing_is_left_of_an_input() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let seeds = device_seeds();
    let before = descriptors();
    assert!((0..100).all(|round| fuzz_devices(&seeds[round % 2]) == 8));
    assert!(descriptors() < before + 50, "a descriptor of each input is left");
}
