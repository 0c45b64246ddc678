// SPDX-License-Identifier: MIT OR Apache-2.0
//! A page of the first MiB for a processor that starts in real mode, and a root that shows it there one to one.
//!
//! The page is borrowed: what firmware had in it comes back afterwards, for Domain 0 may look for it.

use super::tables::{Root, STARTING};
use super::{BUDDY, LOW, bulk, direct, frames, give_frames, root, view};
use crate::boot::{BootInfo, RegionKind};
use alloc::boxed::Box;
use arrayvec::ArrayVec;
use philoxen_abi::{Mfn, PAGE_SIZE};

/// Physical addresses that 32-bit code can load into CR3.
const ROOT_BITS: u32 = 32;

/// A page below 1 MiB with code in it, and the root under which it can go on in 64-bit mode.
#[derive(Debug)]
pub(crate) struct StartPage {
    page: u64,
    saved: Box<[u8; PAGE_SIZE as usize]>,
    /// Tables: the L4 first.
    tables: ArrayVec<u64, 4>,
}

/// A zeroed frame that CR3 can name in 32-bit mode.
fn table() -> Option<u64> {
    let block = BUDDY.lock().alloc_block(&frames(), 0, ROOT_BITS)?;
    let phys = block.start.addr();
    // SAFETY: the frame is ours alone, and the direct map shows it.
    unsafe { bulk::fill(direct(phys), 0, PAGE_SIZE / 8) };
    Some(phys)
}

/// A page of RAM below 1 MiB that holds no module: not the first one, which has the BIOS's data.
fn find_page(info: &BootInfo) -> Option<u64> {
    let usable = |page: u64| {
        let end = page + PAGE_SIZE;
        view::is_ram(page)
            && info.memory.iter().any(|region| {
                region.kind == RegionKind::Usable && region.start <= page && end <= region.end
            })
            && info
                .modules()
                .all(|module| module.range.end <= page || end <= module.range.start)
    };
    (PAGE_SIZE..LOW)
        .step_by(PAGE_SIZE as usize)
        .find(|page| usable(*page))
}

impl StartPage {
    /// Takes a page and makes the tables. Before the first MiB becomes Domain 0's (`open_low_memory`). `None` without a page or
    /// memory.
    pub(crate) fn new(info: &BootInfo) -> Option<Self> {
        let page = find_page(info)?;
        let mut start = Self {
            page,
            saved: Box::new([0; PAGE_SIZE as usize]),
            tables: ArrayVec::new(),
        };
        // SAFETY: RAM of the first MiB is nobody's Rust object, and the direct map shows it; `saved` is ours.
        unsafe {
            bulk::copy(
                start.saved.as_mut_ptr() as u64,
                direct(page),
                start.saved.len(),
            )
        };
        for _ in 0..start.tables.capacity() {
            start.tables.push(table()?);
        }
        let [l4, l3, inner @ ..] = start.tables.as_slice() else {
            return None;
        };
        let new = Root(*l4);
        new.copy_slots(root());
        new.link_l3(0, *l3, false);
        let mut inner = inner.iter().copied();
        new.map(page, page, PAGE_SIZE, STARTING, PAGE_SIZE, &mut || {
            inner.next()
        })?;
        Some(start)
    }

    /// Its physical address.
    pub(crate) const fn page(&self) -> u64 {
        self.page
    }

    /// Physical address of the root, below 4 GiB.
    pub(crate) fn root(&self) -> u64 {
        self.tables.first().copied().unwrap_or(0)
    }

    /// Puts `bytes` at `offset` of the page, as far as they fit.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let room = self.saved.len().saturating_sub(offset);
        let len = bytes.len().min(room);
        // SAFETY: inside the page, which is ours while this lives and shown by the direct map.
        unsafe {
            bulk::copy(
                direct(self.page) + offset as u64,
                bytes.as_ptr() as u64,
                len,
            )
        };
    }
}

impl Drop for StartPage {
    /// No processor is on the page or under the root any more.
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        unsafe {
            bulk::copy(
                direct(self.page),
                self.saved.as_ptr() as u64,
                self.saved.len(),
            )
        };
        for &table in &self.tables {
            give_frames(Mfn::containing(table).0, 1);
        }
    }
}
