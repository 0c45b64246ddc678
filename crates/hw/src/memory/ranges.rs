// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sets of physical memory as sorted lists of page-aligned ranges; used while memory is laid out at boot.

use arrayvec::ArrayVec;
use core::ops::Range;
use philoxen_abi::PAGE_SIZE;

const CAPACITY: usize = 320;

/// Page-aligned ranges in ascending order, without overlaps.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges(ArrayVec<Range<u64>, CAPACITY>);

impl Ranges {
    pub(super) const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    /// Adds the whole pages of a range that lies behind all others; drops it if there is no room.
    pub(super) fn append(&mut self, range: Range<u64>) {
        let start = range.start.next_multiple_of(PAGE_SIZE);
        let end = range.end & !(PAGE_SIZE - 1);
        if start < end {
            // What does not fit is memory that stays unused.
            let _ = self.0.try_push(start..end);
        }
    }

    /// Takes a range away, with the pages that it touches.
    pub(super) fn remove(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        let hole = range.start & !(PAGE_SIZE - 1)..range.end.next_multiple_of(PAGE_SIZE);
        let mut at = 0;
        while let Some(have) = self.0.get(at).cloned() {
            if have.end <= hole.start || hole.end <= have.start {
                at += 1;
                continue;
            }
            self.0.remove(at);
            for piece in [have.start..hole.start, hole.end..have.end] {
                // A piece that does not fit is memory that stays unused.
                if piece.start < piece.end && self.0.try_insert(at, piece).is_ok() {
                    at += 1;
                }
            }
        }
    }

    /// Takes `bytes` from the highest place that ends at or below `limit`; `align` is a power of two.
    pub(super) fn take(&mut self, bytes: u64, align: u64, limit: u64) -> Option<u64> {
        let start = self.0.iter().rev().find_map(|range| {
            let start = range.end.min(limit).checked_sub(bytes)? & !(align - 1);
            (start >= range.start).then_some(start)
        })?;
        self.remove(&(start..start + bytes));
        Some(start)
    }

    /// True if some page of `range` is in the set.
    pub(super) fn touches(&self, range: &Range<u64>) -> bool {
        self.0
            .iter()
            .any(|have| have.start < range.end && range.start < have.end)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }

    /// End of the last range.
    pub(super) fn end(&self) -> u64 {
        self.0.last().map_or(0, |range| range.end)
    }

    /// Bytes in all ranges.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn list(ranges: &Ranges) -> Vec<(u64, u64)> {
        ranges
            .iter()
            .map(|range| (range.start, range.end))
            .collect()
    }

    #[test]
    fn holes_split_and_round_outwards() {
        let mut ranges = Ranges::new();
        ranges.append(0x1001..0xa0ff);
        assert_eq!(list(&ranges), [(0x2000, 0xa000)]);
        ranges.remove(&(0x4001..0x4002));
        ranges.remove(&(0x9000..0x20000));
        assert_eq!(list(&ranges), [(0x2000, 0x4000), (0x5000, 0x9000)]);
        ranges.remove(&(0x3000..0x6000));
        assert_eq!(list(&ranges), [(0x2000, 0x3000), (0x6000, 0x9000)]);
        assert_eq!(ranges.bytes(), 0x4000);
    }

    #[test]
    fn takes_from_the_top_below_the_limit() {
        let mut ranges = Ranges::new();
        ranges.append(0x10_0000..0x80_0000);
        ranges.append(0x100_0000..0x101_0000);
        assert_eq!(ranges.take(0x1000, 0x1000, u64::MAX), Some(0x100_f000));
        assert_eq!(ranges.take(0x20_0000, 0x20_0000, u64::MAX), Some(0x60_0000));
        assert_eq!(ranges.take(0x1000, 0x1000, 0x20_0000), Some(0x1f_f000));
        assert_eq!(ranges.take(0x100_0000, 0x1000, u64::MAX), None);
    }

    #[test]
    fn random_operations_equal_a_bitmap() {
        let mut seed = 12345u64;
        let mut next = |limit: u64| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) % limit
        };
        for _ in 0..200 {
            let mut ranges = Ranges::new();
            ranges.append(0..64 * 4096);
            let mut model = [true; 64];
            for _ in 0..20 {
                let start = next(64);
                let end = start + next(64 - start) + 1;
                ranges.remove(&(start * 4096..end * 4096));
                model[start as usize..end as usize].fill(false);
                if let Some(place) = ranges.take(2 * 4096, 2 * 4096, u64::MAX) {
                    let page = (place / 4096) as usize;
                    assert!(page.is_multiple_of(2) && model[page] && model[page + 1]);
                    model[page..page + 2].fill(false);
                }
                let count = model.iter().filter(|&&page| page).count() as u64;
                assert_eq!(ranges.bytes(), count * 4096);
            }
        }
    }
}
