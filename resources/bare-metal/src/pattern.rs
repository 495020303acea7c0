//! What the guest writes: every 512-byte sector says where it belongs, how often it was written and a
//! checksum; every page of memory its number and generation. The test rig shares this file.

/// Words of a sector.
pub const SECTOR_WORDS: usize = 64;
/// Words of a page.
pub const PAGE_WORDS: usize = 512;
/// First word of every sector that was ever written.
pub const MAGIC: u64 = 0x6665_7272_792d_3031;

/// Spreads a number over all bits (the finisher of splitmix64).
pub const fn mix(number: u64) -> u64 {
    let a = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let b = (a ^ a >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    b ^ b >> 31
}

/// The body word of a sector.
#[inline]
const fn body(key: u64, index: usize) -> u64 {
    (key ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Fills one sector: magic, sector number, sequence number, body, checksum.
#[inline]
pub fn fill(words: &mut [u64; SECTOR_WORDS], sector: u64, sequence: u32) {
    let key = mix(sector << 32 ^ u64::from(sequence));
    words[0] = MAGIC;
    words[1] = sector;
    words[2] = u64::from(sequence);
    let mut sum = MAGIC ^ sector ^ u64::from(sequence);
    for (index, word) in words.iter_mut().enumerate().take(SECTOR_WORDS - 1).skip(3) {
        *word = body(key, index);
        sum ^= *word;
    }
    words[SECTOR_WORDS - 1] = mix(sum);
}

/// What a sector turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zeroes.
    Zero,
    /// A whole sector of this place with this sequence number.
    Written(u32),
    /// A whole sector, of another place.
    Misplaced(u64, u32),
    /// Nothing of ours.
    Foreign,
    /// Begins like a sector of ours and is not whole.
    Damaged,
}

/// Examines one sector.
pub fn examine(words: &[u64; SECTOR_WORDS], sector: u64) -> Content {
    if words[0] != MAGIC {
        let zero = words.iter().all(|&word| word == 0);
        return if zero { Content::Zero } else { Content::Foreign };
    }
    let (place, Ok(sequence)) = (words[1], u32::try_from(words[2])) else {
        return Content::Damaged;
    };
    let mut whole = [0; SECTOR_WORDS];
    fill(&mut whole, place, sequence);
    match whole == *words {
        true if place == sector => Content::Written(sequence),
        true => Content::Misplaced(place, sequence),
        false => Content::Damaged,
    }
}

/// One step of the digest over (block, sequence) pairs that guest and host both compute; the order of
/// the steps does not matter.
pub const fn digest(block: u64, sequence: u32) -> u64 {
    mix(mix(block.wrapping_add(1)) ^ sequence as u64)
}

/// A word of a page of memory.
#[inline]
pub const fn page_word(page: u64, generation: u32, index: usize) -> u64 {
    mix(page << 32 | generation as u64).wrapping_add(index as u64)
}
