// SPDX-License-Identifier: MIT OR Apache-2.0
//! The GDT and LDT windows: the running vCPU's descriptor frames, mapped into this processor's area.
//!
//! A window shows frames that hold the segment-descriptor type reference of the vCPU that runs here, so every descriptor
//! the processor can load from it was checked (paging's type rules). Windows change only on their own processor, at a
//! vCPU switch or for the running vCPU.

use super::percpu::{self, CpuId, MAX_CPUS};
use super::tables;
use crate::memory;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use philoxen_abi::{Mfn, PAGE_SIZE};
use spin::Once;

/// Guest pages of a GDT window: up to selector 0xe000.
pub const GDT_PAGES: usize = 14;
/// Pages of an LDT window: 8192 descriptors.
pub const LDT_PAGES: usize = 16;

/// Pages of each processor's GDT window that show guest frames now.
static SHOWN: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];

/// Pages of each processor's LDT window that show guest frames now, by bit.
static LDT_SHOWN: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// Makes the first pages of this processor's GDT show `frames` (segment-descriptor typed); the rest shows empty
/// descriptors, so that a selector behind the table raises #GP as on a shorter one.
pub fn set_gdt(frames: &[Mfn]) {
    let cpu = percpu::cpu_id();
    let base = percpu::gdt_window(cpu);
    let shown = SHOWN.get(cpu).map_or(GDT_PAGES, |shown| {
        shown.swap(frames.len(), Ordering::Relaxed)
    });
    for page in 0..shown.max(frames.len()).min(GDT_PAGES) {
        let va = base + page as u64 * PAGE_SIZE;
        match frames.get(page) {
            Some(mfn) => memory::map_hypervisor_page(va, mfn.addr(), memory::RW),
            None => memory::map_hypervisor_page(va, empty_page(), memory::RO),
        }
    }
}

/// A page of zeroes: descriptors that are not present.
fn empty_page() -> u64 {
    static EMPTY: Once<u64> = Once::new();
    *EMPTY.call_once(memory::alloc_hypervisor_page)
}

/// Makes the whole GDT window of `cpu` show empty descriptors, before its first use.
pub(super) fn init(cpu: CpuId) {
    for page in 0..GDT_PAGES as u64 {
        memory::map_hypervisor_page(
            percpu::gdt_window(cpu) + page * PAGE_SIZE,
            empty_page(),
            memory::RO,
        );
    }
}

/// Makes this processor's LDT `entries` descriptors long, with no page mapped yet; 0 means none.
pub fn set_ldt(entries: u64) {
    let cpu = percpu::cpu_id();
    let mut shown = LDT_SHOWN
        .get(cpu)
        .map_or(0, |shown| shown.swap(0, Ordering::Relaxed));
    while shown != 0 {
        let page = u64::from(shown.trailing_zeros());
        memory::unmap_hypervisor_page(percpu::ldt_window(cpu) + page * PAGE_SIZE);
        shown &= shown - 1;
    }
    tables::set_ldt(cpu, entries.min(8192));
}

/// Shows `frame` (segment-descriptor typed) as page `page` of this processor's LDT.
pub fn map_ldt_page(page: usize, frame: Mfn) {
    let cpu = percpu::cpu_id();
    if let Some(shown) = LDT_SHOWN.get(cpu).filter(|_| page < LDT_PAGES) {
        shown.fetch_or(1 << page, Ordering::Relaxed);
        let va = percpu::ldt_window(cpu) + page as u64 * PAGE_SIZE;
        memory::map_hypervisor_page(va, frame.addr(), memory::RW);
    }
}

/// Address of byte `offset` of this processor's LDT.
pub fn ldt_address(offset: u64) -> u64 {
    percpu::ldt_window(percpu::cpu_id()) + offset
}

/// Page of this processor's LDT that address `va` lies in, if it lies in the LDT window.
pub fn ldt_page_of(va: u64) -> Option<usize> {
    let offset = va.checked_sub(percpu::ldt_window(percpu::cpu_id()))?;
    let page = (offset / PAGE_SIZE) as usize;
    (page < LDT_PAGES).then_some(page)
}
