// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's heap, on top of the buddy allocator.
//!
//! Requests up to 2 KiB come from slab pages of one size class; what a slab page has is kept in its entry of the frame table
//! (the words are free for the user of a hypervisor frame), so a page holds objects only, aligned to their size. Larger
//! requests take whole frames, exactly as many as needed, but not the machine's last ones: those are for small objects, whose
//! allocation few callers expect to fail. A slab page without objects goes back at once: freeing
//! everything restores the number of free frames.
//!
//! Lock: the heap's own, outside the buddy's; neither is held while TLBs are flushed.

use super::{alloc_frames, alloc_more, direct, frames, give_frames};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::null_mut;
use philoxen_abi::{Mfn, PAGE_SIZE};
use philoxen_paging::frame::Frame;
use philoxen_paging::word::{NO_LINK, OwnerWord, TypeWord};
use spin::Mutex;

/// Object sizes: 16 << class.
const CLASSES: usize = 8;
const SMALLEST: usize = 16;
const LARGEST: usize = SMALLEST << (CLASSES - 1);
/// No page, no object.
const END: u64 = NO_LINK as u64;
const NO_OBJECT: u64 = 0x3ff;

/// The size class of a request, `None` if it takes whole frames.
fn class_of(layout: &Layout) -> Option<usize> {
    let size = layout.size().max(layout.align()).max(SMALLEST);
    (size <= LARGEST).then(|| (size.next_power_of_two() / SMALLEST).trailing_zeros() as usize)
}

/// State of a slab page: objects in use and the first free object, in the low bits of the owner word.
#[derive(Clone, Copy)]
struct Slab {
    used: u64,
    first: u64,
}

impl Slab {
    fn load(frame: &Frame) -> Self {
        let word = frame.owner().0;
        Self {
            used: word & 0x3ff,
            first: word >> 10 & 0x3ff,
        }
    }
    fn store(self, frame: &Frame) {
        frame.set_owner(OwnerWord(
            OwnerWord::HYPERVISOR.0 | self.first << 10 | self.used,
        ));
    }
}

fn links(frame: &Frame) -> (u64, u64) {
    let (prev, next) = frame.kind().as_links();
    (prev.into(), next.into())
}

fn set_links(frame: &Frame, prev: u64, next: u64) {
    frame.set_kind(TypeWord::links(prev as u32, next as u32));
}

/// Figures of the heap.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Frames that hold small objects.
    pub slab_pages: u64,
    /// Small objects in use.
    pub objects: u64,
    /// Frames of large requests.
    pub large_pages: u64,
}

/// Pages with room, by class, and the figures.
struct State {
    partial: [u64; CLASSES],
    stats: Stats,
}

static STATE: Mutex<State> = Mutex::new(State {
    partial: [END; CLASSES],
    stats: Stats {
        slab_pages: 0,
        objects: 0,
        large_pages: 0,
    },
});

/// Figures of the heap now.
pub fn stats() -> Stats {
    STATE.lock().stats
}

impl State {
    fn push(&mut self, class: usize, mfn: u64, frame: &Frame) {
        let next = core::mem::replace(&mut self.partial[class], mfn);
        set_links(frame, END, next);
        if let Some(after) = frames().get(Mfn(next)) {
            set_links(after, mfn, links(after).1);
        }
    }

    fn unlink(&mut self, class: usize, frame: &Frame) {
        let (prev, next) = links(frame);
        if let Some(after) = frames().get(Mfn(next)) {
            set_links(after, prev, links(after).1);
        }
        match frames().get(Mfn(prev)) {
            Some(before) => set_links(before, links(before).0, next),
            None => self.partial[class] = next,
        }
    }

    /// Makes the frame `mfn` a page of free objects of `class`.
    fn add_page(&mut self, class: usize, mfn: Mfn) {
        let Some(frame) = frames().get(mfn) else {
            return;
        };
        let count = PAGE_SIZE / (SMALLEST << class) as u64;
        for object in 0..count {
            let next = if object + 1 == count {
                NO_OBJECT
            } else {
                object + 1
            };
            // SAFETY: an object of a frame that the allocator just gave us.
            unsafe { object_at(mfn, class, object).write(next) };
        }
        Slab { used: 0, first: 0 }.store(frame);
        self.push(class, mfn.0, frame);
        self.stats.slab_pages += 1;
    }

    /// An object from a page with room.
    fn take(&mut self, class: usize) -> Option<*mut u8> {
        let mfn = Mfn(self.partial[class]);
        let frame = frames().get(mfn)?;
        let Slab { used, first } = Slab::load(frame);
        let object = object_at(mfn, class, first);
        // SAFETY: a free object of a slab page holds the number of the next.
        let next = unsafe { object.read() };
        Slab {
            used: used + 1,
            first: next,
        }
        .store(frame);
        if next == NO_OBJECT {
            self.unlink(class, frame);
        }
        self.stats.objects += 1;
        Some(object.cast())
    }

    /// Takes an object back; gives the page if that was its last.
    fn give(&mut self, class: usize, at: *mut u8) -> Option<Mfn> {
        let phys = (at as u64).wrapping_sub(direct(0));
        let mfn = Mfn::containing(phys);
        let frame = frames().get(mfn)?;
        let Slab { used, first } = Slab::load(frame);
        // SAFETY: the object is not used any more (contract of `dealloc`), and at least 16 bytes long.
        unsafe { at.cast::<u64>().write(first) };
        let object = phys % PAGE_SIZE / (SMALLEST << class) as u64;
        Slab {
            used: used.saturating_sub(1),
            first: object,
        }
        .store(frame);
        if first == NO_OBJECT {
            self.push(class, mfn.0, frame);
        }
        self.stats.objects = self.stats.objects.saturating_sub(1);
        if used != 1 {
            return None;
        }
        self.unlink(class, frame);
        self.stats.slab_pages = self.stats.slab_pages.saturating_sub(1);
        Some(mfn)
    }
}

fn object_at(mfn: Mfn, class: usize, object: u64) -> *mut u64 {
    (direct(mfn.addr()) + object * (SMALLEST << class) as u64) as *mut u64
}

fn alloc_small(class: usize) -> Option<*mut u8> {
    if let Some(object) = STATE.lock().take(class) {
        return Some(object);
    }
    let mfn = alloc_frames(0)?;
    let mut state = STATE.lock();
    state.add_page(class, mfn);
    state.take(class)
}

/// Frames of a large request and the order of the block they are cut from.
fn frames_of(layout: &Layout) -> (u64, u32) {
    let pages = (layout.size() as u64).div_ceil(PAGE_SIZE).max(1);
    let block = pages
        .max(layout.align() as u64 / PAGE_SIZE)
        .next_power_of_two();
    (pages, block.trailing_zeros())
}

fn alloc_large(layout: &Layout) -> Option<*mut u8> {
    let (pages, order) = frames_of(layout);
    let start = alloc_more(pages, order)?;
    STATE.lock().stats.large_pages += pages;
    Some(direct(start.addr()) as *mut u8)
}

/// The global allocator.
#[derive(Debug)]
pub struct Heap;

// SAFETY: objects come from frames that the buddy allocator gave to the heap alone, are disjoint, and as large and as
// aligned as asked for (a class is a power of two at least as large as the alignment; blocks are aligned to their order).
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let at = match class_of(&layout) {
            Some(class) => alloc_small(class),
            None => alloc_large(&layout),
        };
        at.unwrap_or(null_mut())
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if let Some(class) = class_of(&layout) {
            let empty = STATE.lock().give(class, at);
            if let Some(mfn) = empty {
                give_frames(mfn.0, 1);
            }
            return;
        }
        let (pages, _) = frames_of(&layout);
        let start = Mfn::containing((at as u64).wrapping_sub(direct(0)));
        give_frames(start.0, pages);
        let mut state = STATE.lock();
        state.stats.large_pages = state.stats.large_pages.saturating_sub(pages);
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract: `size` is not zero and does not overflow when rounded up to the alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        let same = match (class_of(&layout), class_of(&new)) {
            (Some(old), Some(new)) => old == new,
            (None, None) => frames_of(&layout).0 == frames_of(&new).0,
            _ => false,
        };
        if same {
            return at;
        }
        // SAFETY: a valid layout of non-zero size.
        let to = unsafe { self.alloc(new) };
        if !to.is_null() {
            // SAFETY: both objects are at least that long and distinct.
            unsafe { super::bulk::copy(to as u64, at as u64, size.min(layout.size())) };
            // SAFETY: `at` was allocated with `layout` and is not used any more.
            unsafe { self.dealloc(at, layout) };
        }
        to
    }
}

#[cfg(not(test))]
#[global_allocator]
static HEAP: Heap = Heap;
