// SPDX-License-Identifier: MIT OR Apache-2.0
//! The frame allocator: a buddy system whose lists live in the frame table.
//!
//! Free blocks are kept per address width (the number of bits of the block's last MFN) and order, so that a device
//! that reaches few address bits can be served, and everybody else is given high memory first. A block's head
//! holds its links (type word) and order, dirty mark and TLB stamp (owner word).
//!
//! The stamp is the newest TLB-clock time at which a frame of the block was released: before the block is used
//! again every processor must have flushed since. The dirty mark says that a domain's data may still be in it.
//!
//! The caller holds the allocator's lock; it is a leaf but for heap and console.

use crate::frame::{Frame, FrameTable};
use crate::word::{Class, OwnerWord, TypeWord};
use philoxen_abi::{Mfn, PAGE_SHIFT};

/// Largest block: 2^18 frames, 1 GiB.
pub const MAX_ORDER: u32 = 18;
const ORDERS: usize = MAX_ORDER as usize + 1;
/// Address widths of MFNs: 0 (frame 0) to 32 bits.
const ZONES: usize = 33;
const END: u32 = crate::word::NO_LINK;

/// A block that was allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// First frame.
    pub start: Mfn,
    /// Every processor must have flushed its TLB after this time before the block is used.
    pub stamp: u64,
    /// A domain's data may be in it.
    pub dirty: bool,
}

/// The allocator.
#[derive(Debug)]
pub struct Buddy {
    heads: [[u32; ORDERS]; ZONES],
    /// Bit `order` set: the zone has a block of that order.
    present: [u32; ZONES],
    free: u64,
}

impl Default for Buddy {
    fn default() -> Self {
        Self::new()
    }
}

const fn width(value: u64) -> usize {
    (64 - value.leading_zeros()) as usize
}

impl Buddy {
    /// An allocator that owns nothing.
    pub const fn new() -> Self {
        Self {
            heads: [[END; ORDERS]; ZONES],
            present: [0; ZONES],
            free: 0,
        }
    }
    /// Frames available.
    pub const fn free_frames(&self) -> u64 {
        self.free
    }

    /// Boot: gives `count` RAM frames from `start` to the allocator. They are taken as holding no domain's data.
    ///
    /// Frames beyond the table are left out, and so is frame 0, which stays the hypervisor's: MFN 0 means none.
    pub fn release_boot(&mut self, frames: &FrameTable, start: Mfn, count: u64) {
        let end = start
            .0
            .saturating_add(count)
            .min(frames.len())
            .min(u64::from(END));
        let mut at = start.0;
        if at == 0 && end != 0 {
            frames.set_hypervisor(Mfn(0), 1);
            at = 1;
        }
        while at < end {
            let aligned = at.trailing_zeros().min(MAX_ORDER);
            let order = aligned.min(63 - (end - at).leading_zeros());
            self.insert_free(frames, at, order, false, 0);
            at += 1 << order;
        }
    }

    /// A block of 2^`order` frames whose addresses fit in `max_bits` bits (0 or more than 63: anywhere).
    ///
    /// For the hypervisor's own use at boot, before any domain ran; later use [`Buddy::alloc_block`], whose stamp
    /// must be honoured.
    pub fn alloc(&mut self, frames: &FrameTable, order: u32, max_bits: u32) -> Option<Mfn> {
        self.alloc_block(frames, order, max_bits)
            .map(|block| block.start)
    }

    /// As [`Buddy::alloc`], with what must be done before use. All frames of the block become the hypervisor's.
    pub fn alloc_block(&mut self, frames: &FrameTable, order: u32, max_bits: u32) -> Option<Block> {
        if order > MAX_ORDER {
            return None;
        }
        let top = match max_bits {
            0 | 64.. => ZONES - 1,
            bits => (bits.saturating_sub(PAGE_SHIFT) as usize).min(ZONES - 1),
        };
        let zone = (0..=top)
            .rev()
            .find(|&zone| self.present.get(zone).is_some_and(|p| p >> order != 0))?;
        let present = self.present.get(zone)? >> order;
        let mut have = order + present.trailing_zeros();
        let index = *self.heads.get(zone)?.get(have as usize)?;
        let frame = frames.get(Mfn(u64::from(index)))?;
        let (_, dirty, stamp) = frame.owner().as_free_head()?;
        self.unlink(frames, index, frame, zone, have);
        // Keep the upper half at each split: high memory goes first.
        let mut start = u64::from(index);
        while have > order {
            have -= 1;
            self.link(frames, start, have, dirty, stamp);
            start += 1 << have;
        }
        self.free = self.free.saturating_sub(1 << order);
        frames.set_hypervisor(Mfn(start), 1 << order);
        Some(Block {
            start: Mfn(start),
            stamp,
            dirty,
        })
    }

    /// Takes back a block of 2^`order` of the hypervisor's own frames that no guest could see.
    pub fn free(&mut self, frames: &FrameTable, start: Mfn, order: u32) {
        self.free_block(frames, start, order, false, 0);
    }

    /// Takes back a block: `stamp` is the TLB-clock time of its release, `dirty` that a domain's data is in it.
    ///
    /// A block that is out of range, misaligned or already free is left alone (a bug of the caller).
    pub fn free_block(
        &mut self,
        frames: &FrameTable,
        start: Mfn,
        order: u32,
        dirty: bool,
        stamp: u64,
    ) {
        let sound = order <= MAX_ORDER
            && start.0 & ((1u64 << order.min(63)) - 1) == 0
            && start.0.saturating_add(1 << order.min(63)) <= frames.len()
            && !matches!(frames.class(start), Class::Free | Class::NotRam);
        debug_assert!(sound, "bad free of {start:?} order {order}");
        if sound {
            self.insert_free(frames, start.0, order, dirty, stamp);
        }
    }

    /// Marks the frames free, merges the block with its free buddies and links it.
    fn insert_free(
        &mut self,
        frames: &FrameTable,
        start: u64,
        order: u32,
        dirty: bool,
        stamp: u64,
    ) {
        for index in start..start.saturating_add(1 << order) {
            if let Some(frame) = frames.get(Mfn(index)) {
                frame.set_kind(TypeWord::FRESH);
                frame.set_owner(OwnerWord::FREE);
            }
        }
        self.free = self.free.saturating_add(1 << order);
        let (mut start, mut order, mut dirty, mut stamp) = (start, order, dirty, stamp);
        while order < MAX_ORDER {
            let other = start ^ (1 << order);
            // Blocks never straddle two zones, or a width limit could not be promised.
            if zone_of(other, order) != zone_of(start, order) {
                break;
            }
            let Some(frame) = frames.get(Mfn(other)) else {
                break;
            };
            let Some((other_order, other_dirty, other_stamp)) = frame.owner().as_free_head() else {
                break;
            };
            if other_order != order {
                break;
            }
            self.unlink(frames, other as u32, frame, zone_of(other, order), order);
            frame.set_owner(OwnerWord::FREE);
            start = start.min(other);
            order += 1;
            dirty |= other_dirty;
            stamp = stamp.max(other_stamp);
        }
        self.link(frames, start, order, dirty, stamp);
    }

    fn link(&mut self, frames: &FrameTable, start: u64, order: u32, dirty: bool, stamp: u64) {
        let zone = zone_of(start, order);
        let Some(frame) = frames.get(Mfn(start)) else {
            return;
        };
        let Some(head) = self
            .heads
            .get_mut(zone)
            .and_then(|z| z.get_mut(order as usize))
        else {
            return;
        };
        let next = core::mem::replace(head, start as u32);
        frame.set_owner(OwnerWord::free_head(order, dirty, stamp));
        set_links(frame, END, next);
        if let Some(frame) = at(frames, next) {
            let (_, after) = links(frame);
            set_links(frame, start as u32, after);
        }
        if let Some(present) = self.present.get_mut(zone) {
            *present |= 1 << order;
        }
    }

    fn unlink(&mut self, frames: &FrameTable, index: u32, frame: &Frame, zone: usize, order: u32) {
        let (prev, next) = links(frame);
        debug_assert!(prev != index && next != index, "free list cycle");
        if let Some(frame) = at(frames, next) {
            let (_, after) = links(frame);
            set_links(frame, prev, after);
        }
        if let Some(frame) = at(frames, prev) {
            let (before, _) = links(frame);
            set_links(frame, before, next);
            return;
        }
        if let Some(head) = self
            .heads
            .get_mut(zone)
            .and_then(|z| z.get_mut(order as usize))
        {
            *head = next;
        }
        if next == END
            && let Some(present) = self.present.get_mut(zone)
        {
            *present &= !(1 << order);
        }
    }
}

/// Width of the last MFN of a block.
const fn zone_of(start: u64, order: u32) -> usize {
    let zone = width(start + ((1 << order) - 1));
    if zone < ZONES { zone } else { ZONES - 1 }
}

fn at(frames: &FrameTable, index: u32) -> Option<&'static Frame> {
    if index == END {
        None
    } else {
        frames.get(Mfn(u64::from(index)))
    }
}

fn links(frame: &Frame) -> (u32, u32) {
    frame.kind().as_links()
}

fn set_links(frame: &Frame, prev: u32, next: u32) {
    frame.set_kind(TypeWord::links(prev, next));
}
