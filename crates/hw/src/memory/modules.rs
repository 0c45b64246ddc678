// SPDX-License-Identifier: MIT OR Apache-2.0
//! The boot loader's modules: kernel and ramdisk of the first domain.
//!
//! A module's frames belong to its [`ModuleMemory`]; whoever has that can read them, and ends the reading by giving
//! the frames away. So no slice outlives them.

use super::{LOW, MODULES, alloc_run, buddy, bulk, direct, frames};
use crate::boot::MAX_MODULES;
use arrayvec::ArrayVec;
use core::ops::Range;
use philoxen_abi::{Mfn, PAGE_SIZE};
use philoxen_paging::word::Class;

/// A module in memory.
#[derive(Debug)]
pub struct ModuleMemory {
    range: Range<u64>,
}

impl ModuleMemory {
    pub(super) const fn new(range: Range<u64>) -> Self {
        Self { range }
    }

    /// Physical addresses of its bytes.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Its bytes; empty if the loader put it anywhere but in RAM.
    pub fn bytes(&self) -> &[u8] {
        let (start, count) = self.pages();
        let ours =
            (start.0..start.0 + count).all(|mfn| frames().class(Mfn(mfn)) == Class::Hypervisor);
        if self.range.is_empty() || !ours {
            return &[];
        }
        let len = (self.range.end - self.range.start) as usize;
        // SAFETY: the frames are RAM that `init` reserved for this object alone; nobody writes to them while it exists.
        unsafe { core::slice::from_raw_parts(direct(self.range.start) as *const u8, len) }
    }

    fn pages(&self) -> (Mfn, u64) {
        let start = self.range.start / PAGE_SIZE;
        (Mfn(start), self.range.end.div_ceil(PAGE_SIZE) - start)
    }

    /// Gives the frames to the caller, still of class `Hypervisor`, as first frame and count. Bytes behind the module in its
    /// last page are cleared.
    ///
    /// A module whose frames cannot be a domain's (in the first MiB, or not on a page boundary) is copied to others.
    /// `None` for an empty module, one outside RAM, or without memory for the copy.
    pub fn into_frames(self) -> Option<(Mfn, u64)> {
        if self.bytes().is_empty() {
            return None;
        }
        if self.range.start.is_multiple_of(PAGE_SIZE) && self.range.start >= LOW {
            let (start, count) = self.pages();
            clear_rest(self.range.end);
            return Some((start, count));
        }
        let count = (self.bytes().len() as u64).div_ceil(PAGE_SIZE);
        let start = alloc_run(count)?;
        let to = direct(start.addr());
        // SAFETY: the frames are ours alone and hold the whole module.
        unsafe { bulk::copy(to, self.bytes().as_ptr() as u64, self.bytes().len()) };
        clear_rest(start.addr() + self.bytes().len() as u64);
        self.release();
        Some((start, count))
    }

    /// Gives the frames to the allocator, but for those in the first MiB.
    pub fn release(self) {
        if self.bytes().is_empty() {
            return;
        }
        let (start, count) = self.pages();
        let end = start.0 + count;
        let start = start.0.max(LOW / PAGE_SIZE);
        buddy()
            .lock()
            .release_boot(&frames(), Mfn(start), end.saturating_sub(start));
    }
}

/// Clears the page that `end` lies in from there on; it belongs to the caller.
fn clear_rest(end: u64) {
    // SAFETY: the caller's own frame, shown by the direct map; nothing if `end` is a page boundary.
    unsafe { bulk::clear(direct(end), end.next_multiple_of(PAGE_SIZE) - end) };
}

/// The modules in the boot loader's order; a second call finds none.
pub fn take_modules() -> ArrayVec<ModuleMemory, MAX_MODULES> {
    core::mem::take(&mut *MODULES.lock())
}
