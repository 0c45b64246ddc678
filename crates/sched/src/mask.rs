// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sets of processors.

use core::fmt;
use core::ops::Range;

/// Processors that a set can name.
pub const MAX_CPUS: u32 = 256;
const WORDS: usize = MAX_CPUS as usize / 64;

/// A set of processors by number; numbers from [`MAX_CPUS`] on are never in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuMask([u64; WORDS]);

impl CpuMask {
    /// Every processor.
    pub const ALL: Self = Self([u64::MAX; WORDS]);
    /// No processor.
    pub const NONE: Self = Self([0; WORDS]);

    /// The set whose first processors are the bits of `words`; missing words are zero.
    pub fn from_words(words: &[u64]) -> Self {
        let mut mask = Self::NONE;
        for (to, from) in mask.0.iter_mut().zip(words) {
            *to = *from;
        }
        mask
    }

    /// Its bits, 64 processors to a word.
    pub const fn words(&self) -> &[u64; WORDS] {
        &self.0
    }

    /// The set of the processors below `count`.
    pub(crate) fn below(count: u32) -> Self {
        let mut mask = Self::NONE;
        for (word, first) in mask.0.iter_mut().zip((0u32..).step_by(64)) {
            let bits = count.saturating_sub(first).min(64);
            *word = u64::MAX.checked_shr(64 - bits).unwrap_or(0);
        }
        mask
    }

    /// The set of one processor.
    pub fn one(cpu: u32) -> Self {
        let mut mask = Self::NONE;
        mask.insert(cpu);
        mask
    }

    /// Adds a processor.
    pub(crate) fn insert(&mut self, cpu: u32) {
        if let Some(word) = self.0.get_mut((cpu / 64) as usize) {
            *word |= 1 << (cpu % 64);
        }
    }

    /// Takes a processor out.
    pub(crate) fn remove(&mut self, cpu: u32) {
        if let Some(word) = self.0.get_mut((cpu / 64) as usize) {
            *word &= !(1 << (cpu % 64));
        }
    }

    /// True if processor `cpu` is in the set.
    #[inline]
    pub fn contains(&self, cpu: u32) -> bool {
        self.0
            .get((cpu / 64) as usize)
            .is_some_and(|word| word >> (cpu % 64) & 1 != 0)
    }

    /// What is in both sets.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let mut both = *self;
        for (word, other) in both.0.iter_mut().zip(other.0) {
            *word &= other;
        }
        both
    }

    /// Number of members.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The members among `cpus`, in order.
    pub(crate) fn among(self, cpus: Range<u32>) -> impl Iterator<Item = u32> + Clone {
        cpus.filter(move |&cpu| self.contains(cpu))
    }
}

/// As `xl vcpu-list` shows them: `all`, or numbers and ranges.
impl fmt::Display for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("all");
        }
        let mut comma = "";
        let mut next = 0;
        while let Some(first) = (next..MAX_CPUS).find(|&cpu| self.contains(cpu)) {
            let end = (first..MAX_CPUS)
                .find(|&cpu| !self.contains(cpu))
                .unwrap_or(MAX_CPUS);
            write!(f, "{comma}{first}")?;
            if end - first > 1 {
                write!(f, "-{}", end - 1)?;
            }
            (comma, next) = (",", end);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate alloc;

    use super::*;
    use alloc::string::ToString as _;

    #[test]
    fn masks_are_shown_as_ranges() {
        assert_eq!(CpuMask::ALL.to_string(), "all");
        assert_eq!(CpuMask::NONE.to_string(), "");
        assert_eq!(CpuMask::one(7).to_string(), "7");
        let mask = CpuMask::from_words(&[0b1101_0011, 0, 0, 7 << 61]);
        assert_eq!(mask.to_string(), "0-1,4,6-7,253-255");
    }
}
