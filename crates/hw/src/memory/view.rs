// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames as atomic words and bytes.
//!
//! The second line of defence after the frame types: whatever MFN policy code comes with, a frame that is not RAM or is the
//! hypervisor's own is refused, so it can never reach a page table, the heap or the frame table through here.

use super::{FRAME_COUNT, FRAMES, RO, bulk, direct, frames, map_device};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::{Mfn, PAGE_SIZE};
use philoxen_paging::frame::Frame;
use philoxen_paging::word::Class;
use spin::Mutex;

#[repr(C, align(4096))]
struct Page([AtomicU64; 512]);

/// Stands in for a frame that is refused; holds nothing anybody relies on.
static SCRATCH: Page = Page([const { AtomicU64::new(0) }; 512]);

/// Class of a frame, by one load.
#[inline(always)]
fn class(mfn: Mfn) -> Class {
    if mfn.0 >= FRAME_COUNT.load(Ordering::Relaxed) {
        return Class::NotRam;
    }
    let frame = (FRAMES as *const Frame).wrapping_add(mfn.0 as usize);
    // SAFETY: `init` mapped the frame table for every frame below the count.
    unsafe { &*frame }.owner().class()
}

/// True if `mfn` is RAM that the hypervisor manages.
#[inline]
pub(super) fn is_ram_frame(mfn: Mfn) -> bool {
    class(mfn) != Class::NotRam
}

/// True if the page at physical address `address` is RAM that the hypervisor manages.
pub fn is_ram(address: u64) -> bool {
    is_ram_frame(Mfn::containing(address))
}

/// True if one of the pages from `start` up to `end` is such RAM.
pub(super) fn holds_ram(start: u64, end: u64) -> bool {
    let end = end.min(frames().len() * PAGE_SIZE);
    (start..end).step_by(PAGE_SIZE as usize).any(is_ram)
}

/// A domain's frame as words; `None` if it is not a domain's.
///
/// The words stay valid as memory for ever; whether they still are the domain's is what frame references are for.
#[inline(always)]
pub fn words(mfn: Mfn) -> Option<&'static [AtomicU64; 512]> {
    if class(mfn) != Class::Guest {
        return None;
    }
    // SAFETY: RAM below the frame count is in the direct map, and a domain's frame is only seen as atomics.
    Some(unsafe { &*(direct(mfn.addr()) as *const [AtomicU64; 512]) })
}

/// As [`words`], with a page of no meaning in place of a frame that is refused.
#[inline(always)]
pub fn words_or_scratch(mfn: Mfn) -> &'static [AtomicU64; 512] {
    words(mfn).unwrap_or(&SCRATCH.0)
}

/// True if every frame that `len` bytes from `offset` into `start` touch satisfies `allowed`.
fn all_frames(start: Mfn, offset: u64, len: u64, allowed: impl Fn(Class) -> bool) -> bool {
    let Some(first) = start
        .0
        .checked_mul(PAGE_SIZE)
        .and_then(|base| base.checked_add(offset))
    else {
        return false;
    };
    let Some(end) = first.checked_add(len) else {
        return false;
    };
    (first / PAGE_SIZE..end.div_ceil(PAGE_SIZE)).all(|mfn| allowed(class(Mfn(mfn))))
}

/// Copies `bytes` into a domain's consecutive frames, from `offset` bytes into `start` on; false, with nothing done, if
/// one of the frames is not a domain's.
pub fn copy_to_frames(start: Mfn, offset: u64, bytes: &[u8]) -> bool {
    if !all_frames(start, offset, bytes.len() as u64, |class| {
        class == Class::Guest
    }) {
        return false;
    }
    // SAFETY: the target is a domain's RAM, in the direct map without gaps, and no Rust reference but atomics covers it.
    unsafe {
        bulk::copy(
            direct(start.addr() + offset),
            bytes.as_ptr() as u64,
            bytes.len(),
        )
    };
    true
}

/// Copies out of a domain's consecutive frames; false, with nothing done, if one of the frames is not a domain's.
pub fn copy_from_frames(start: Mfn, offset: u64, out: &mut [u8]) -> bool {
    if !all_frames(start, offset, out.len() as u64, |class| {
        class == Class::Guest
    }) {
        return false;
    }
    // SAFETY: the source is a domain's RAM, in the direct map without gaps; `out` is ours.
    unsafe {
        bulk::copy(
            out.as_mut_ptr() as u64,
            direct(start.addr() + offset),
            out.len(),
        )
    };
    true
}

/// Copies `len` bytes within domains' frames, each side a frame and an offset in it; false, with nothing done, if a side is
/// not within one frame of a domain. Sides that overlap are copied in rising order.
pub fn copy_between_frames(to: (Mfn, u64), from: (Mfn, u64), len: u64) -> bool {
    let inside = |(mfn, offset): (Mfn, u64)| {
        offset.saturating_add(len) <= PAGE_SIZE && class(mfn) == Class::Guest
    };
    if !inside(to) || !inside(from) {
        return false;
    }
    // SAFETY: both sides are a domain's RAM, in the direct map, and no Rust reference but atomics covers them.
    unsafe {
        bulk::copy(
            direct(to.0.addr() + to.1),
            direct(from.0.addr() + from.1),
            len as usize,
        )
    };
    true
}

/// Clears `len` bytes of a domain's consecutive frames from `offset` bytes into `start` on; false, with nothing done, if
/// one of the frames is not a domain's.
pub fn clear_in_frames(start: Mfn, offset: u64, len: u64) -> bool {
    if !all_frames(start, offset, len, |class| class == Class::Guest) {
        return false;
    }
    // SAFETY: a domain's RAM, in the direct map without gaps, and no Rust reference but atomics covers it.
    unsafe { bulk::clear(direct(start.addr() + offset), len) };
    true
}

/// Fills a domain's consecutive frames with zeroes; false, with nothing done, if one of them is neither a domain's nor
/// just allocated.
///
/// A frame from the allocator is of class `Hypervisor` until it is assigned; the image and what `init` laid out are told
/// apart by not having come from the allocator, which the caller vouches for by holding the block.
pub fn zero_frames(start: Mfn, count: u64) -> bool {
    let Some(len) = count.checked_mul(PAGE_SIZE) else {
        return false;
    };
    if !all_frames(start, 0, len, |class| {
        matches!(class, Class::Guest | Class::Hypervisor)
    }) {
        return false;
    }
    // SAFETY: RAM in the direct map without gaps; a domain's frames are seen as atomics only.
    unsafe { bulk::fill(direct(start.addr()), 0, len / 8) };
    true
}

/// A piece of non-RAM mapped for reading.
#[derive(Clone)]
struct Piece {
    phys: Range<u64>,
    va: u64,
}

static PIECES: Mutex<arrayvec::ArrayVec<Piece, 64>> = Mutex::new(arrayvec::ArrayVec::new_const());

/// Bytes that firmware left: its tables, and the first MiB. `None` for memory that is or may become somebody's.
pub fn phys_bytes(phys: u64, len: usize) -> Option<&'static [u8]> {
    let end = phys.checked_add(len as u64)?;
    let va = if end <= 1 << 20 && low_is_shown(phys, end) {
        direct(phys)
    } else if holds_ram(phys & !(PAGE_SIZE - 1), end) {
        return None;
    } else {
        firmware(phys, end)?
    };
    // SAFETY: mapped for good, and written by nobody while firmware's tables are read at boot.
    Some(unsafe { core::slice::from_raw_parts(va as *const u8, len) })
}

/// True if the direct map shows all of a part of the first MiB.
fn low_is_shown(start: u64, end: u64) -> bool {
    (start / PAGE_SIZE..end.div_ceil(PAGE_SIZE)).all(|mfn| is_ram_frame(Mfn(mfn)))
}

/// Where a range that is not RAM is mapped for reading, cached; ranges once mapped are kept.
fn firmware(phys: u64, end: u64) -> Option<u64> {
    let mut pieces = PIECES.lock();
    let known = pieces
        .iter()
        .find(|piece| piece.phys.start <= phys && end <= piece.phys.end);
    if let Some(piece) = known {
        return Some(piece.va + (phys - piece.phys.start));
    }
    let start = phys & !(PAGE_SIZE - 1);
    let pages = start..end.next_multiple_of(PAGE_SIZE);
    let va = map_device(start, pages.end - start, RO)?;
    pieces.try_push(Piece { phys: pages, va }).ok()?;
    Some(va + (phys - start))
}
