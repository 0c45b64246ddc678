// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pseudo-random numbers that are the same in every run.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Copy, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    #[allow(
        clippy::should_implement_trait,
        reason = "a stream without an end is simpler than an iterator"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }
    /// A number below `limit` (not 0).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
