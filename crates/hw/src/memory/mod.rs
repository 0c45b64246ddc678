// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's address space (docs/design.md has the map) and the machine's frames.
//!
//! Invariants the `unsafe` here rests on:
//! - RAM is visible in the direct map at [`direct`]`(address)` at all times, writable and never executable;
//! - a frame of class `Hypervisor` belongs to exactly one user of this crate (page table, heap, array, module); only
//!   that user makes references to it;
//! - frames of a domain are reached as atomic words only ([`words`]), or by the bulk copies here, which make no reference.

mod bulk;
pub mod heap;
mod init;
mod modules;
mod ranges;
mod start;
mod tables;
mod view;

pub(crate) use init::image;
pub use init::init;
pub use modules::{ModuleMemory, take_modules};
pub(crate) use start::StartPage;
pub use tables::{DEVICE, Flags, RO, RW, RX};
pub use view::{
    clear_in_frames, copy_between_frames, copy_from_frames, copy_to_frames, is_ram, phys_bytes,
    words, words_or_scratch, zero_frames,
};

use crate::boot::stop;
use crate::cpu::asm;
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::{Mfn, PAGE_SIZE};
use philoxen_paging::buddy::{Block, Buddy, MAX_ORDER};
use philoxen_paging::frame::{Frame, FrameTable};
use spin::{Mutex, Once};
use tables::{LARGE_SIZE, Root};

/// Machine-to-phys table as guests see it.
const M2P: u64 = 0xffff_8000_0000_0000;
/// The image: this plus its physical address.
const IMAGE: u64 = 0xffff_8080_0000_0000;
/// Frame table.
const FRAMES: u64 = 0xffff_8100_0000_0000;
/// Machine-to-phys table as the hypervisor writes it.
const M2P_WRITE: u64 = 0xffff_8140_0000_0000;
/// Device memory; its first page is for short-lived mappings.
const DEVICES: u64 = 0xffff_8200_0000_0000;
const DEVICES_END: u64 = 0xffff_8280_0000_0000;
/// Frames that domains never get: the hypervisor's own needs come from them when domains have all others.
const RESERVE: u64 = 512;
/// Frames below which a request that needs more than a few small objects is refused before it begins.
const SCARCE: u64 = RESERVE / 2;
/// Frames that only small objects of the heap may use: their allocation is not expected to fail.
const LAST: u64 = RESERVE / 4;
/// What is below belongs to firmware, and to the code that starts other processors; the allocator never has it.
const LOW: u64 = 1 << 20;
/// Slot that nothing uses.
const UNUSED_SLOT: usize = 261;
/// Direct map of RAM.
const DIRECT: u64 = 0xffff_8300_0000_0000;
/// RAM that the direct map can show.
const DIRECT_SIZE: u64 = 0xffff_8800_0000_0000 - DIRECT;
/// Machine-to-phys entry of a frame without one (`INVALID_M2P_ENTRY` of the reference, which guests know).
pub const INVALID_M2P: u64 = 0x5555_5555_5555_5555;

static ROOT: AtomicU64 = AtomicU64::new(0);
static FRAME_COUNT: AtomicU64 = AtomicU64::new(0);
static TOTAL_RAM: AtomicU64 = AtomicU64::new(0);
static BUDDY: Mutex<Buddy> = Mutex::new(Buddy::new());
static MODULES: Mutex<ArrayVec<ModuleMemory, { crate::boot::MAX_MODULES }>> =
    Mutex::new(ArrayVec::new_const());
/// Held while the tables change; also protects the page at [`DEVICES`]. The buddy's lock comes inside.
static MAPPING: Mutex<u64> = Mutex::new(DEVICES + PAGE_SIZE);
static FLUSH: Once<fn(u64)> = Once::new();

const fn slot_of(va: u64) -> usize {
    (va >> 39 & 511) as usize
}

/// Where the direct map shows physical address `phys`.
pub(crate) const fn direct(phys: u64) -> u64 {
    DIRECT.wrapping_add(phys)
}

fn root() -> Root {
    Root(ROOT.load(Ordering::Relaxed))
}

/// Physical address of the hypervisor's own L4, which maps no guest.
#[inline]
pub fn hypervisor_root() -> u64 {
    ROOT.load(Ordering::Relaxed)
}

/// The L4 entry of slot `slot` (256..272) that every root has. It never changes after [`init`].
pub fn hypervisor_l4_entry(slot: usize) -> u64 {
    if (256..272).contains(&slot) {
        root().l4_entry(slot)
    } else {
        0
    }
}

/// The entries of slots 256 to 271.
pub fn hypervisor_l4_entries() -> [u64; 16] {
    core::array::from_fn(|index| root().l4_entry(256 + index))
}

/// The frame table; empty before [`init`].
#[inline(always)]
pub fn frames() -> FrameTable {
    let count = FRAME_COUNT.load(Ordering::Acquire) as usize;
    // SAFETY: `init` mapped the table for every frame below the count and made the entries, which are only seen as atomics,
    // before it set the count; with none of them the slice is empty, and the address is aligned.
    FrameTable::new(unsafe { core::slice::from_raw_parts(FRAMES as *const Frame, count) })
}

/// The frame allocator. Its lock is a leaf but for the console's.
pub fn buddy() -> &'static Mutex<Buddy> {
    &BUDDY
}

/// Frames that domains may still be given.
pub fn free_for_domains() -> u64 {
    BUDDY.lock().free_frames().saturating_sub(RESERVE)
}

/// A block of 2^`order` frames for a domain, below 2^`max_bits` unless that is 0.
pub fn alloc_for_domain(order: u32, max_bits: u32) -> Option<Block> {
    let mut buddy = BUDDY.lock();
    if buddy.free_frames() < RESERVE.saturating_add(1 << order) {
        return None;
    }
    buddy.alloc_block(&frames(), order, max_bits)
}

/// True if the hypervisor is short of memory for itself: what needs more than small objects is to be refused.
pub fn is_scarce() -> bool {
    BUDDY.lock().free_frames() < SCARCE
}

/// Treats the first MiB as device memory from now on: firmware left things there that Domain 0 looks for, such as the iBFT.
/// Once, after the modules were taken (some may lie there).
pub fn open_low_memory() {
    frames().set_not_ram(Mfn(0), LOW / PAGE_SIZE);
}

/// Bytes of RAM for general use that firmware reported.
pub fn total_ram() -> u64 {
    TOTAL_RAM.load(Ordering::Relaxed)
}

/// Bits of physical addresses (CPUID 0x80000008).
pub fn address_bits() -> u32 {
    static BITS: Once<u32> = Once::new();
    *BITS.call_once(|| {
        let known = asm::cpuid(0x8000_0000, 0)[0] >= 0x8000_0008;
        if known {
            (asm::cpuid(0x8000_0008, 0)[0] & 0xff).clamp(32, 52)
        } else {
            36
        }
    })
}

/// Tells how to make every processor flush its TLB after a stamp (`Machine::flush_since`): frames that a domain
/// had are used by the hypervisor only after that. Before the first domain runs there is nothing to flush.
pub fn set_flush_since(flush: fn(u64)) {
    FLUSH.call_once(|| flush);
}

/// A block of 2^`order` frames for the hypervisor, no longer reachable by any TLB; its content is arbitrary.
fn alloc_frames(order: u32) -> Option<Mfn> {
    alloc_cut(1 << order, order)
}

/// The first `count` frames of a block of 2^`order` for the hypervisor; the others go back at once, as dirty as they came.
fn alloc_cut(count: u64, order: u32) -> Option<Mfn> {
    let block = BUDDY.lock().alloc_block(&frames(), order, 0)?;
    if let Some(flush) = FLUSH.get() {
        flush(block.stamp);
    }
    give_back(block.start.0 + count, (1 << order) - count, block.dirty);
    Some(block.start)
}

/// As [`alloc_cut`], but not of the last frames once domains can run.
fn alloc_more(count: u64, order: u32) -> Option<Mfn> {
    if FLUSH.get().is_some() && BUDDY.lock().free_frames() < LAST.saturating_add(1 << order) {
        return None;
    }
    alloc_cut(count, order)
}

/// `count` consecutive frames for the hypervisor.
fn alloc_run(count: u64) -> Option<Mfn> {
    alloc_cut(count, count.checked_next_power_of_two()?.trailing_zeros())
}

/// Gives `count` frames of the hypervisor's from `start` to the allocator, in the largest pieces that alignment allows.
fn give_frames(start: u64, count: u64) {
    give_back(start, count, false);
}

/// As [`give_frames`], with whether a domain's data may be in them.
fn give_back(start: u64, count: u64, dirty: bool) {
    let mut buddy = BUDDY.lock();
    let (mut at, end) = (start, start + count);
    while at < end {
        let order = at.trailing_zeros().min((end - at).ilog2()).min(MAX_ORDER);
        buddy.free_block(&frames(), Mfn(at), order, dirty, 0);
        at += 1 << order;
    }
}

/// A zeroed frame for the hypervisor, by its physical address, if there is one.
pub fn try_alloc_hypervisor_page() -> Option<u64> {
    let phys = alloc_frames(0)?.addr();
    // SAFETY: the frame is ours alone, and the direct map shows it.
    unsafe { bulk::fill(direct(phys), 0, PAGE_SIZE / 8) };
    Some(phys)
}

/// A zeroed frame for the hypervisor, by its physical address; without one the machine is stopped.
pub fn alloc_hypervisor_page() -> u64 {
    try_alloc_hypervisor_page()
        .unwrap_or_else(|| stop(format_args!("The hypervisor is out of memory.")))
}

/// Maps one page of the hypervisor's slots 259 and 260; the machine is stopped if there is no memory for a table.
pub fn map_hypervisor_page(va: u64, phys: u64, flags: Flags) {
    let mapping = MAPPING.lock();
    map_locked(va, phys, flags);
    drop(mapping);
}

fn map_locked(va: u64, phys: u64, flags: Flags) {
    let mapped = root().map(
        va,
        phys,
        PAGE_SIZE,
        flags,
        PAGE_SIZE,
        &mut try_alloc_hypervisor_page,
    );
    if mapped.is_none() {
        stop(format_args!("The hypervisor cannot map a page at {va:#x}."));
    }
    asm::invlpg(va);
}

/// Removes a page of the hypervisor's slots 259 and 260, on this processor at once.
pub fn unmap_hypervisor_page(va: u64) {
    let mapping = MAPPING.lock();
    root().unmap(va);
    asm::invlpg(va);
    drop(mapping);
}

/// Maps `len` bytes of device memory at `phys` uncached, for good; `None` for RAM or if space or memory run out.
/// Gives the virtual address of `phys`.
pub fn map_mmio(phys: u64, len: u64) -> Option<u64> {
    map_device(phys, len, DEVICE)
}

fn map_device(phys: u64, len: u64, flags: Flags) -> Option<u64> {
    let end = phys.checked_add(len)?;
    let start = phys & !(PAGE_SIZE - 1);
    if len == 0 || end > 1 << address_bits() || view::holds_ram(start, end) {
        return None;
    }
    let size = (end - start).next_multiple_of(PAGE_SIZE);
    let mut next = MAPPING.lock();
    // A long window gets the alignment that lets it use large pages.
    let va = if size < LARGE_SIZE {
        *next
    } else {
        next.next_multiple_of(LARGE_SIZE) + start % LARGE_SIZE
    };
    if va.checked_add(size)? >= DEVICES_END {
        return None;
    }
    // The page behind stays unmapped.
    *next = va + size + PAGE_SIZE;
    root().map(
        va,
        start,
        size,
        flags,
        LARGE_SIZE,
        &mut try_alloc_hypervisor_page,
    )?;
    Some(va + (phys - start))
}

/// Writes `bytes` over the hypervisor's own code at `site`, for instruction choices at boot; false outside the code.
pub fn patch_text(site: u64, bytes: &[u8]) -> bool {
    let phys = site.wrapping_sub(IMAGE);
    let text = init::text();
    let inside = phys
        .checked_add(bytes.len() as u64)
        .is_some_and(|end| end <= text.end);
    if phys < text.start || !inside {
        return false;
    }
    let mapping = MAPPING.lock();
    for (address, &byte) in (phys..).zip(bytes) {
        map_locked(DEVICES, address & !(PAGE_SIZE - 1), RW);
        // SAFETY: the page was just mapped writable under the lock; code bytes are nobody's Rust object.
        unsafe { ((DEVICES + address % PAGE_SIZE) as *mut u8).write_volatile(byte) };
    }
    root().unmap(DEVICES);
    asm::invlpg(DEVICES);
    drop(mapping);
    // CPUID serialises: stale bytes are not executed.
    asm::cpuid(0, 0);
    true
}

/// The machine-to-phys entry of `mfn`.
#[inline]
pub fn m2p_get(mfn: Mfn) -> u64 {
    m2p_entry(mfn).map_or(INVALID_M2P, |entry| entry.load(Ordering::Relaxed))
}

/// Sets the machine-to-phys entry of `mfn`, which is RAM.
#[inline]
pub fn m2p_set(mfn: Mfn, pfn: u64) {
    if view::is_ram_frame(mfn)
        && let Some(entry) = m2p_entry(mfn)
    {
        entry.store(pfn, Ordering::Relaxed);
    }
}

#[inline]
fn m2p_entry(mfn: Mfn) -> Option<&'static AtomicU64> {
    if mfn.0 >= FRAME_COUNT.load(Ordering::Relaxed) {
        return None;
    }
    let entry = (M2P_WRITE as *const AtomicU64).wrapping_add(mfn.0 as usize);
    // SAFETY: `init` mapped the table for every frame below the count; guests can only read it.
    Some(unsafe { &*entry })
}

/// Number of frames that frame table and machine-to-phys table describe: one more than the highest RAM frame.
pub fn frame_count() -> u64 {
    FRAME_COUNT.load(Ordering::Relaxed)
}

/// First frame of the 2 MiB piece `index` of the machine-to-phys table; `None` after its end, or if the piece is not
/// one run of frames (a hole in RAM, or the table's last piece).
pub fn m2p_extent(index: u64) -> Option<Mfn> {
    let offset = index.checked_mul(LARGE_SIZE)?;
    if offset >= frame_count().checked_mul(8)? {
        return None;
    }
    root().translate(M2P + offset).map(Mfn::containing)
}

/// True if `mfn` is one of the frames that hold the machine-to-phys table.
pub fn is_m2p_frame(mfn: Mfn) -> bool {
    // Rare (a toolstack mapping the table), so a search by piece is good enough.
    let end = frame_count() * 8;
    (0..end).step_by(LARGE_SIZE as usize).any(|offset| {
        let Some(start) = root().translate(M2P + offset).map(Mfn::containing) else {
            return false;
        };
        let pages = (end - offset).min(LARGE_SIZE).div_ceil(PAGE_SIZE);
        if root().is_large(M2P + offset) {
            return (start.0..start.0 + pages).contains(&mfn.0);
        }
        (0..pages).any(|page| root().translate(M2P + offset + page * PAGE_SIZE) == Some(mfn.addr()))
    })
}
