// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own page tables.
//!
//! Invariant: tables are frames of the hypervisor that only this module touches, as atomic words through the direct
//! map; a table once linked is never unlinked, and every L3 is linked at boot, so guests' copies of the hypervisor's L4
//! entries stay right. Flags: SDM volume 3, section 4.5.

use super::direct;
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::PAGE_SIZE;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const UNCACHED: u64 = 1 << 3 | 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NX: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// 2 MiB.
pub(super) const LARGE_SIZE: u64 = 1 << 21;
/// 1 GiB.
pub(super) const HUGE_SIZE: u64 = 1 << 30;

/// Rights and cache type of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flags(u64);

impl Flags {
    const fn leaf(bits: u64) -> Self {
        Self(PRESENT | ACCESSED | DIRTY | GLOBAL | bits)
    }
}

/// Read and write.
pub const RW: Flags = Flags::leaf(WRITE | NX);
/// Read.
pub const RO: Flags = Flags::leaf(NX);
/// Read and execute.
pub const RX: Flags = Flags::leaf(0);
/// Device registers: read and write, uncached.
pub const DEVICE: Flags = Flags::leaf(WRITE | NX | UNCACHED);
/// Read, write and execute, for as long as a processor starts; not global, so that it is forgotten with the root.
pub(super) const STARTING: Flags = Flags(PRESENT | ACCESSED | DIRTY | WRITE);
/// Leaf rights of the machine-to-phys table; each view's L4 entry narrows them.
pub(super) const SHARED: Flags = Flags::leaf(WRITE | USER | NX);

/// L4 entry of an ordinary slot of the hypervisor.
const L4_OWN: u64 = PRESENT | WRITE | ACCESSED;
/// L4 entry of the slot that guests may read.
const L4_GUEST: u64 = PRESENT | USER | ACCESSED | NX;
/// Entries between L4 and leaf grant everything; leaf and L4 decide.
const INNER: u64 = PRESENT | WRITE | USER | ACCESSED;

/// The words of a table frame.
fn table(phys: u64) -> &'static [AtomicU64; 512] {
    // SAFETY: the module's invariant; `phys` comes from a table entry or from the allocator given to us.
    unsafe { &*(direct(phys) as *const [AtomicU64; 512]) }
}

fn slot(va: u64, level: u32) -> usize {
    (va >> (3 + 9 * level) & 511) as usize
}

/// A tree of tables, by the physical address of its L4.
#[derive(Clone, Copy, Debug)]
pub(super) struct Root(pub(super) u64);

impl Root {
    /// Entry of L4 slot `index`.
    pub(super) fn l4_entry(self, index: usize) -> u64 {
        table(self.0)
            .get(index)
            .map_or(0, |entry| entry.load(Ordering::Relaxed))
    }

    /// Links an L3 into slot `index`; `guest` makes it readable, and not writable, for guests.
    pub(super) fn link_l3(self, index: usize, l3: u64, guest: bool) {
        let flags = if guest { L4_GUEST } else { L4_OWN };
        table(self.0)[index].store(l3 | flags, Ordering::Relaxed);
    }

    /// Copies the hypervisor's slots from another tree.
    pub(super) fn copy_slots(self, from: Self) {
        for index in 256..272 {
            table(self.0)[index].store(from.l4_entry(index), Ordering::Relaxed);
        }
    }

    /// Links table `l2` as what `va` goes through, whose L3 exists.
    pub(super) fn link_l2(self, va: u64, l2: u64) -> Option<()> {
        let entry = self.entry(va, 3, &mut || None)?;
        entry.store(l2 | INNER, Ordering::Relaxed);
        Some(())
    }
    /// L2 table that `va` goes through.
    pub(super) fn l2_of(self, va: u64) -> Option<u64> {
        let entry = self.entry(va, 3, &mut || None)?.load(Ordering::Relaxed);
        (entry & (PRESENT | LARGE) == PRESENT).then_some(entry & ADDRESS)
    }

    /// The entry for `va` in a table of `level` (1 to 3); `page` gives zeroed frames for tables that are missing.
    /// `None` without one, or if a larger page is in the way.
    fn entry(
        self,
        va: u64,
        level: u32,
        page: &mut dyn FnMut() -> Option<u64>,
    ) -> Option<&'static AtomicU64> {
        let mut at = table(self.0);
        for above in (level + 1..=4).rev() {
            let entry = at.get(slot(va, above))?;
            let mut value = entry.load(Ordering::Acquire);
            if value & PRESENT == 0 {
                if above == 4 {
                    return None;
                }
                value = page()? | INNER;
                entry.store(value, Ordering::Release);
            } else if value & LARGE != 0 && above != 4 {
                return None;
            }
            at = table(value & ADDRESS);
        }
        at.get(slot(va, level))
    }

    /// Maps `[va, va + len)` to `phys` with the largest pages that fit up to `largest`. All multiples of 4 KiB.
    pub(super) fn map(
        self,
        va: u64,
        phys: u64,
        len: u64,
        flags: Flags,
        largest: u64,
        page: &mut dyn FnMut() -> Option<u64>,
    ) -> Option<()> {
        let mut done = 0;
        while done < len {
            let (va, phys) = (va + done, phys + done);
            let fits = |size: u64| {
                size <= largest && (va | phys).is_multiple_of(size) && len - done >= size
            };
            let (size, level) = if fits(HUGE_SIZE) {
                (HUGE_SIZE, 3)
            } else if fits(LARGE_SIZE) {
                (LARGE_SIZE, 2)
            } else {
                (PAGE_SIZE, 1)
            };
            let large = if level == 1 { 0 } else { LARGE };
            self.entry(va, level, page)?
                .store(phys | flags.0 | large, Ordering::Release);
            done += size;
        }
        Some(())
    }

    /// Makes `va`'s 2 MiB go through the L1 table `l1`.
    pub(super) fn link_l1(
        self,
        va: u64,
        l1: u64,
        page: &mut dyn FnMut() -> Option<u64>,
    ) -> Option<()> {
        self.entry(va, 2, page)?
            .store(l1 | INNER, Ordering::Release);
        Some(())
    }

    /// Removes the 4 KiB mapping of `va`, if there is one.
    pub(super) fn unmap(self, va: u64) {
        if let Some(entry) = self.entry(va, 1, &mut || None) {
            entry.store(0, Ordering::Release);
        }
    }

    /// True if a 2 MiB page maps `va`.
    pub(super) fn is_large(self, va: u64) -> bool {
        self.entry(va, 2, &mut || None).is_some_and(|entry| {
            entry.load(Ordering::Acquire) & (PRESENT | LARGE) == PRESENT | LARGE
        })
    }

    /// Physical address that `va` is mapped to.
    pub(super) fn translate(self, va: u64) -> Option<u64> {
        for level in 1..=3 {
            let Some(entry) = self.entry(va, level, &mut || None) else {
                continue;
            };
            let value = entry.load(Ordering::Acquire);
            if value & PRESENT != 0 && (level == 1 || value & LARGE != 0) {
                let offset = (1 << (3 + 9 * level)) - 1;
                return Some(value & ADDRESS & !offset | va & offset);
            }
        }
        None
    }
}

/// Fills the L1 table `l1` with 512 mappings of the one frame `phys`.
pub(super) fn fill_l1(l1: u64, phys: u64, flags: Flags) {
    for entry in table(l1) {
        entry.store(phys | flags.0, Ordering::Relaxed);
    }
}
