// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's memory map: firmware's list made sorted and free of overlaps.
//!
//! Where ranges overlap the more restrictive kind wins, so nothing that firmware keeps is ever used as RAM.

use arrayvec::ArrayVec;

/// Most ranges of a memory map.
pub const MAX_REGIONS: usize = 256;
/// Physical addresses end here (52 bits).
const PHYSICAL_END: u64 = 1 << 52;

/// What a range of physical memory is (ACPI 6, table 15.1; the values are those of E820).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum RegionKind {
    /// RAM for anybody.
    Usable = 1,
    /// Not to be touched.
    Reserved = 2,
    /// RAM with ACPI tables.
    AcpiReclaim = 3,
    /// RAM that firmware keeps over sleep.
    AcpiNvs = 4,
    /// Defective RAM.
    Unusable = 5,
}

impl RegionKind {
    /// The kind for a firmware value; what we do not know is reserved.
    pub const fn from_raw(value: u32) -> Self {
        match value {
            1 => Self::Usable,
            3 => Self::AcpiReclaim,
            4 => Self::AcpiNvs,
            5 => Self::Unusable,
            _ => Self::Reserved,
        }
    }

    /// The E820 value.
    pub const fn e820(self) -> u32 {
        self as u32
    }

    /// True for memory that the direct map shows.
    pub const fn is_ram(self) -> bool {
        matches!(self, Self::Usable | Self::AcpiReclaim | Self::AcpiNvs)
    }

    /// Position in the order of restriction.
    const fn rank(self) -> u8 {
        match self {
            Self::Usable => 0,
            Self::AcpiReclaim => 1,
            Self::AcpiNvs => 2,
            Self::Reserved => 3,
            Self::Unusable => 4,
        }
    }
}

/// A range of physical memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What it is.
    pub kind: RegionKind,
}

impl Region {
    /// The range firmware describes by start, length and kind; `None` if it is empty.
    pub fn from_raw(start: u64, len: u64, kind: u32) -> Option<Self> {
        let end = start.saturating_add(len).min(PHYSICAL_END);
        (start < end).then_some(Self {
            start,
            end,
            kind: RegionKind::from_raw(kind),
        })
    }
}

/// A memory map.
pub type MemoryMap = ArrayVec<Region, MAX_REGIONS>;

/// Sorts `map` and resolves its overlaps; `None` if the result does not fit.
#[inline(never)]
pub fn resolve(map: &mut MemoryMap) -> Option<()> {
    let raw = core::mem::take(map);
    let mut points: ArrayVec<u64, { 2 * MAX_REGIONS }> = ArrayVec::new();
    for region in &raw {
        points.push(region.start);
        points.push(region.end);
    }
    points.sort_unstable();
    for pair in points.windows(2) {
        let (start, end) = (pair[0], pair[1]);
        if start == end {
            continue;
        }
        let covering = raw
            .iter()
            .filter(|region| region.start <= start && end <= region.end);
        let Some(kind) = covering
            .map(|region| region.kind)
            .max_by_key(|kind| kind.rank())
        else {
            continue;
        };
        match map.last_mut() {
            Some(last) if last.end == start && last.kind == kind => last.end = end,
            _ => map.try_push(Region { start, end, kind }).ok()?,
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(ranges: &[(u64, u64, u32)]) -> MemoryMap {
        let raw = ranges
            .iter()
            .filter_map(|&(start, len, kind)| Region::from_raw(start, len, kind));
        let mut map = raw.collect();
        resolve(&mut map).unwrap();
        map
    }

    #[test]
    fn restriction_wins_and_neighbours_merge() {
        let map = map(&[
            (0x1000, 0x3000, 1),
            (0, 0x1000, 1),
            (0x2000, 0x1000, 2),
            (0x9000, 0, 1),
        ]);
        let expected = [
            Region {
                start: 0,
                end: 0x2000,
                kind: RegionKind::Usable,
            },
            Region {
                start: 0x2000,
                end: 0x3000,
                kind: RegionKind::Reserved,
            },
            Region {
                start: 0x3000,
                end: 0x4000,
                kind: RegionKind::Usable,
            },
        ];
        assert_eq!(map.as_slice(), &expected);
    }

    #[test]
    fn lengths_that_wrap_are_cut() {
        let map = map(&[(1 << 51, u64::MAX, 1)]);
        assert_eq!(map[0].end, PHYSICAL_END);
        assert!(Region::from_raw(1 << 53, 1 << 20, 1).is_none());
    }
}
