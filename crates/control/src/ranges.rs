// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sets of numbers in ranges: the I/O ports, device frames and interrupts that tools gave to a domain.
//!
//! Invariant: ranges are sorted, not empty, and neither overlap nor touch.

use alloc::vec::Vec;
use philoxen_abi::{Errno, Result};

/// Most ranges of a set: a tool cannot make the hypervisor's memory grow without end.
const MAX_RANGES: usize = 256;

/// A set of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// The empty set.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds (`allow`) or removes the `count` numbers from `first`.
    ///
    /// # Errors
    /// `EINVAL` for no numbers or too large ones, `ENOSPC` if the set becomes too scattered, `ENOMEM`.
    pub fn set(&mut self, first: u64, count: u64, allow: bool) -> Result<()> {
        let end = first.checked_add(count).ok_or(Errno::EINVAL)?;
        if count == 0 {
            return Err(Errno::EINVAL);
        }
        let mut new = Vec::new();
        new.try_reserve(self.0.len().saturating_add(2))
            .map_err(|_| Errno::ENOMEM)?;
        let (mut low, mut high) = (first, end);
        for &(start, stop) in &self.0 {
            let apart = stop < first || start > end;
            if apart {
                new.push((start, stop));
            } else if allow {
                (low, high) = (low.min(start), high.max(stop));
            } else {
                new.extend([(start, stop.min(first)), (start.max(end), stop)]);
            }
        }
        if allow {
            let place = new.partition_point(|&(start, _)| start < low);
            new.insert(place, (low, high));
        }
        new.retain(|(start, stop)| start < stop);
        if new.len() > MAX_RANGES {
            return Err(Errno::ENOSPC);
        }
        self.0 = new;
        Ok(())
    }

    /// True if all `count` numbers from `first` are in the set.
    pub fn contains(&self, first: u64, count: u64) -> bool {
        let end = first.saturating_add(count);
        self.0
            .iter()
            .any(|&(start, stop)| start <= first && end <= stop)
    }
}

/// What of the machine's devices a domain may use.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// I/O ports.
    pub ports: Ranges,
    /// Frames of device memory.
    pub frames: Ranges,
    /// Interrupts.
    pub irqs: Ranges,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn like_a_set() {
        let mut ranges = Ranges::new();
        let mut model = BTreeSet::new();
        let mut seed = 1u32;
        let mut random = |limit: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u64::from((seed >> 8) % limit)
        };
        for _ in 0..5000 {
            let (first, count, allow) = (random(60), random(9) + 1, random(2) == 0);
            ranges.set(first, count, allow).unwrap();
            for number in first..first + count {
                if allow {
                    model.insert(number);
                } else {
                    model.remove(&number);
                }
            }
            for number in 0..70 {
                assert_eq!(ranges.contains(number, 1), model.contains(&number));
            }
            assert!(ranges.0.windows(2).all(|pair| pair[0].1 < pair[1].0));
        }
    }

    #[test]
    fn bounds() {
        let mut ranges = Ranges::new();
        assert_eq!(ranges.set(5, 0, true), Err(Errno::EINVAL));
        assert_eq!(ranges.set(u64::MAX, 2, true), Err(Errno::EINVAL));
        for index in 0..MAX_RANGES as u64 {
            assert_eq!(ranges.set(index * 4, 2, true), Ok(()));
        }
        assert_eq!(ranges.set(1 << 20, 1, true), Err(Errno::ENOSPC));
        assert!(ranges.contains(4, 2) && !ranges.contains(4, 3));
    }
}
