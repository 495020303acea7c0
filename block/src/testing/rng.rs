//! Numbers that look random and are the same for the same seed.

/// A seeded generator (splitmix64). A seed and a commit reproduce a test run.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator for `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 when there is none.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits().checked_rem(bound).unwrap_or(0)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A range within `0..len`, starting and ending at multiples of `align`, of at most `longest` bytes
    /// and at least `align`. `len` is at least `align`.
    pub fn range(&mut self, len: u64, align: u64, longest: u64) -> std::ops::Range<u64> {
        let start = self.below(len / align) * align;
        let most = longest.min(len - start) / align;
        start..start + (1 + self.below(most)) * align
    }
}
