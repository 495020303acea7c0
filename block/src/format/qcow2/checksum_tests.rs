use super::*;

fn bytes() -> Vec<u8> {
    (0..512_u32).flat_map(|word| [0, 0, 0, 0, 0, word.to_le_bytes()[1], 0, 0x40]).collect()
}

#[test]
fn every_flipped_bit_and_every_exchange_of_words_shows() {
    let (mut bytes, whole) = (bytes(), Checksum::of(&bytes()));
    let words: Vec<u64> = bytes
        .chunks(8)
        .map(|word| word.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
        .collect();
    assert_eq!(Checksum::of_words(&words), whole);
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(Checksum::of(&bytes), whole, "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    bytes[8..16].copy_from_slice(&[1; 8]);
    let before = Checksum::of(&bytes);
    for other in (2..512).filter(|other| other % TURN != 1) {
        let (low, high) = bytes.split_at_mut(other * 8);
        low[8..16].swap_with_slice(&mut high[..8]);
        assert_ne!(Checksum::of(&bytes), before, "word {other}");
        let (low, high) = bytes.split_at_mut(other * 8);
        low[8..16].swap_with_slice(&mut high[..8]);
    }
}

#[test]
fn it_follows_changes_word_by_word() {
    let mut bytes = bytes();
    let mut checksum = Checksum::of(&bytes);
    for (first, count) in [(0, 1), (7, 2), (511, 1), (100, 64), (7, 2)] {
        let words = &mut bytes[first * 8..(first + count) * 8];
        checksum = checksum.without(first, words);
        words.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(3).wrapping_add(1));
        checksum = checksum.with(first, words);
        assert_eq!(checksum, Checksum::of(&bytes));
    }
}
