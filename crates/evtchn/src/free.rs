// SPDX-License-Identifier: MIT OR Apache-2.0
//! The set of ports that are free again, by which a guest gets the lowest of them, as on Xen.
//!
//! One bit for each port and one for each word of these: what is asked for is found in at most three words' bits and the
//! summary (32 words for the most ports there can be), whatever a guest opens and closes.

use alloc::vec::Vec;
use philoxen_abi::{Errno, Result};

/// A set of small numbers.
#[derive(Debug)]
pub(crate) struct PortSet {
    words: Vec<u64>,
    /// Bit n: word n is not empty.
    summary: Vec<u64>,
}

fn zeroes(count: usize) -> Result<Vec<u64>> {
    let mut words = Vec::new();
    words.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    words.resize(count, 0);
    Ok(words)
}

/// Word and bit of a number.
const fn place(number: u32) -> (usize, u64) {
    ((number / 64) as usize, 1 << (number % 64))
}

/// The lowest number from `from` on whose bit is set.
fn lowest(words: &[u64], from: u32) -> Option<u32> {
    let (first, bit) = place(from);
    let mut mask = !bit.wrapping_sub(1);
    for (index, word) in words.iter().enumerate().skip(first) {
        if word & mask != 0 {
            return Some(index as u32 * 64 + (word & mask).trailing_zeros());
        }
        mask = u64::MAX;
    }
    None
}

impl PortSet {
    /// An empty set of numbers up to `max`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(max: u32) -> Result<Self> {
        let words = max as usize / 64 + 1;
        Ok(Self {
            words: zeroes(words)?,
            summary: zeroes(words.div_ceil(64))?,
        })
    }

    /// Adds a number; one beyond the largest is left out.
    pub(crate) fn insert(&mut self, number: u32) {
        let (index, bit) = place(number);
        if let Some(word) = self.words.get_mut(index) {
            *word |= bit;
            let (index, bit) = place(index as u32);
            if let Some(word) = self.summary.get_mut(index) {
                *word |= bit;
            }
        }
    }

    /// Takes a number out.
    pub(crate) fn remove(&mut self, number: u32) {
        let (index, bit) = place(number);
        if let Some(word) = self.words.get_mut(index) {
            *word &= !bit;
            if *word == 0 {
                let (index, bit) = place(index as u32);
                if let Some(word) = self.summary.get_mut(index) {
                    *word &= !bit;
                }
            }
        }
    }

    /// The lowest number in the set that is at least `from`.
    pub(crate) fn next(&self, from: u32) -> Option<u32> {
        let (first, bit) = place(from);
        let rest = self.words.get(first)? & !bit.wrapping_sub(1);
        if rest != 0 {
            return Some(first as u32 * 64 + rest.trailing_zeros());
        }
        let index = lowest(&self.summary, first as u32 + 1)?;
        let word = self.words.get(index as usize)?;
        Some(index * 64 + word.trailing_zeros())
    }

    /// Empties the set.
    pub(crate) fn clear(&mut self) {
        self.words.fill(0);
        self.summary.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn as_an_ordered_set() {
        const MAX: u32 = 131_071;
        let mut set = PortSet::new(MAX).unwrap();
        let mut model = BTreeSet::new();
        let mut random = 1_u64;
        let mut below = |bound: u32| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as u32 % bound
        };
        for round in 0..40_000 {
            let near = if round % 3 == 0 { 200 } else { MAX + 1 };
            let number = below(near);
            if below(2) == 0 {
                set.insert(number);
                model.insert(number);
            } else {
                let number = model.range(number..).next().copied().unwrap_or(number);
                set.remove(number);
                model.remove(&number);
            }
            let from = below(near);
            assert_eq!(set.next(from), model.range(from..).next().copied());
        }
        assert_eq!(set.next(MAX + 1), None);
        set.insert(MAX);
        assert_eq!(set.next(MAX), Some(MAX));
        set.insert(MAX + 1);
        set.clear();
        assert_eq!(set.next(0), None);
    }
}
