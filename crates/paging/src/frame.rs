// SPDX-License-Identifier: MIT OR Apache-2.0
//! The frame table: sixteen bytes of state for every machine frame, changed only by compare-and-swap.
//!
//! The loops here are small; what they swap in is decided by the pure functions of [`crate::word`].
//! All-zero means "not RAM", so a frame nobody described can only be mapped as device memory.

use crate::word::{Class, Get, Kind, OwnerWord, Put, TypeWord};
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::{DomId, Mfn};

/// State of one frame.
#[derive(Debug, Default)]
#[repr(C, align(16))]
pub struct Frame {
    kind: AtomicU64,
    owner: AtomicU64,
}

const _: () = assert!(size_of::<Frame>() == 16);

impl Frame {
    /// A frame that is not RAM.
    pub const fn new() -> Self {
        Self {
            kind: AtomicU64::new(0),
            owner: AtomicU64::new(0),
        }
    }
    /// Type word now.
    #[inline]
    pub fn kind(&self) -> TypeWord {
        TypeWord(self.kind.load(Ordering::Acquire))
    }
    /// Owner word now.
    #[inline]
    pub fn owner(&self) -> OwnerWord {
        OwnerWord(self.owner.load(Ordering::Acquire))
    }
    /// Writes the type word; for a processor that owns the frame (busy, or not yet given to anyone).
    #[inline]
    pub fn set_kind(&self, word: TypeWord) {
        self.kind.store(word.0, Ordering::Release);
    }
    /// Writes the owner word; for whoever owns the frame alone.
    #[inline]
    pub fn set_owner(&self, word: OwnerWord) {
        self.owner.store(word.0, Ordering::Release);
    }
    #[inline]
    fn swap_kind(&self, old: TypeWord, new: TypeWord) -> bool {
        self.kind
            .compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
    #[inline]
    fn swap_owner(&self, old: OwnerWord, new: OwnerWord) -> bool {
        self.owner
            .compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Takes a general reference for a user of `domain`'s frames; false if the frame is not `domain`'s.
    #[inline]
    pub fn get(&self, domain: DomId) -> bool {
        let mut word = self.owner();
        loop {
            let Some(new) = word.get(domain) else {
                return false;
            };
            if self.swap_owner(word, new) {
                return true;
            }
            word = self.owner();
        }
    }
    /// Takes one more general reference where one is already held, whoever the owner is.
    ///
    /// The caller checks [`Frame::general_room`] before; the margin above the limit is larger than the number of
    /// processors that can be between the two.
    #[inline]
    pub fn get_again(&self) {
        self.owner.fetch_add(1, Ordering::AcqRel);
    }
    /// True if another general reference fits.
    #[inline]
    pub fn general_room(&self) -> bool {
        self.owner().count() < crate::word::MAX_GENERAL
    }
    /// Drops a general reference; true if it was the last, and the caller must free the frame.
    #[inline]
    #[must_use = "the frame must be freed with its last reference"]
    pub fn put(&self) -> bool {
        let old = OwnerWord(self.owner.fetch_sub(1, Ordering::AcqRel));
        debug_assert!(old.count() != 0, "general count underflow");
        old.count() == 1
    }

    /// Takes a typed reference if the frame is already live as `kind`: the hot path, one compare-and-swap.
    #[inline]
    pub fn share(&self, kind: Kind) -> bool {
        let mut word = self.kind();
        loop {
            let Some(new) = word.share(kind) else {
                return false;
            };
            if self.swap_kind(word, new) {
                return true;
            }
            word = self.kind();
        }
    }
    /// Takes a typed reference or claims the frame for validation, as [`TypeWord::get`] decides.
    ///
    /// On [`Get::Claim`] the caller owns the busy frame and must publish a word.
    pub fn claim(&self, kind: Kind) -> Get {
        loop {
            let word = self.kind();
            let decision = word.get(kind);
            let new = match decision {
                Get::Share(new) => new,
                Get::Claim { word: new, .. } => new,
                Get::Busy | Get::Reap | Get::Mismatch | Get::Overflow => return decision,
            };
            if self.swap_kind(word, new) {
                return decision;
            }
        }
    }
    /// Claims a partial frame of whatever kind, to continue its invalidation. Returns kind and `next`.
    pub fn claim_partial(&self) -> Option<(Kind, u32)> {
        let word = self.kind();
        if word.is_partial()
            && word.kind().is_table()
            && self.swap_kind(word, TypeWord::busy(word.kind(), word.next()))
        {
            return Some((word.kind(), word.next()));
        }
        None
    }
    /// Gives a typed reference back; [`Put::Last`] leaves the word alone for [`Frame::retire`].
    #[inline]
    pub fn unshare(&self) -> Put {
        loop {
            let word = self.kind();
            let decision = word.put();
            match decision {
                Put::Shared(new) => {
                    if self.swap_kind(word, new) {
                        return decision;
                    }
                }
                Put::Last | Put::NotHeld => return decision,
            }
        }
    }
    /// Turns the last reference into `new`; false if another reference came meanwhile.
    #[inline]
    pub fn retire(&self, new: TypeWord) -> bool {
        let word = self.kind();
        matches!(word.put(), Put::Last) && self.swap_kind(word, new)
    }
    /// Marks a live frame pinned; false if it is already.
    pub fn pin(&self) -> bool {
        loop {
            let word = self.kind();
            let Some(new) = word.pin() else { return false };
            if self.swap_kind(word, new) {
                return true;
            }
        }
    }
    /// Removes the pin mark; false if there was none. The pin's reference is the caller's now.
    pub fn unpin(&self) -> bool {
        loop {
            let word = self.kind();
            let Some(new) = word.unpin() else {
                return false;
            };
            if self.swap_kind(word, new) {
                return true;
            }
        }
    }
    /// Takes the allocation mark from `domain`'s frame; true if the caller now holds the allocation's reference.
    pub fn unallocate(&self, domain: DomId) -> bool {
        loop {
            let word = self.owner();
            let Some(new) = word.unallocate(domain) else {
                return false;
            };
            if self.swap_owner(word, new) {
                return true;
            }
        }
    }
    /// Takes the sharing mark from a frame; true if the caller now holds the hypervisor's reference.
    pub fn unshare_hypervisor(&self) -> bool {
        loop {
            let word = self.owner();
            if !word.is_guest() || !word.is_shared() {
                return false;
            }
            if self.swap_owner(word, word.unshared()) {
                return true;
            }
        }
    }
    /// Makes a frame that outlives its owner belong to nobody: it can be released but no longer be taken.
    pub fn orphan(&self, domain: DomId) {
        loop {
            let word = self.owner();
            if !word.is_owned_by(domain) || self.swap_owner(word, word.with_owner(DomId::INVALID)) {
                return;
            }
        }
    }
    /// Takes a frame that nobody but the allocation refers to away from `domain`; it is then the hypervisor's.
    ///
    /// One compare-and-swap from "one reference, allocated" leaves no window without an owner (XSA-287). The type
    /// word of a frame with one reference is idle, because a typed use would hold a second one.
    pub fn steal(&self, domain: DomId) -> bool {
        loop {
            let word = self.owner();
            if word.unwritten() != OwnerWord::allocated(domain) {
                return false;
            }
            if self.swap_owner(word, OwnerWord::HYPERVISOR) {
                return true;
            }
        }
    }
    /// Marks a guest's frame as written to.
    pub fn note_written(&self) {
        loop {
            let word = self.owner();
            let Some(new) = word.written() else { return };
            if self.swap_owner(word, new) {
                return;
            }
        }
    }
    /// Takes the mark of a write from a frame of `domain`; false if there was none.
    pub fn take_written(&self, domain: DomId) -> bool {
        loop {
            let word = self.owner();
            if !word.is_owned_by(domain) || !word.is_written() {
                return false;
            }
            if self.swap_owner(word, word.unwritten()) {
                return true;
            }
        }
    }
}

/// All frames of the machine, indexed by MFN.
#[derive(Clone, Copy, Debug)]
pub struct FrameTable {
    frames: &'static [Frame],
}

impl FrameTable {
    /// The table over `frames`, whose index is the MFN. At most 2^30 - 1 frames (4 TiB) are used.
    pub const fn new(frames: &'static [Frame]) -> Self {
        Self { frames }
    }
    /// Number of frames described; every RAM frame is below.
    #[inline]
    pub const fn len(&self) -> u64 {
        self.frames.len() as u64
    }
    /// True for a machine without frames.
    pub const fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
    /// The frame `mfn`, if the table reaches that far.
    #[inline]
    pub fn get(&self, mfn: Mfn) -> Option<&'static Frame> {
        self.frames.get(mfn.0 as usize)
    }
    /// Class of `mfn`; what lies beyond the table is not RAM.
    #[inline]
    pub fn class(&self, mfn: Mfn) -> Class {
        self.get(mfn)
            .map_or(Class::NotRam, |frame| frame.owner().class())
    }
    /// Boot: marks `count` frames from `start` as the hypervisor's own.
    pub fn set_hypervisor(&self, start: Mfn, count: u64) {
        for index in start.0..start.0.saturating_add(count) {
            let Some(frame) = self.get(Mfn(index)) else {
                return;
            };
            frame.set_kind(TypeWord::FRESH);
            frame.set_owner(OwnerWord::HYPERVISOR);
        }
    }
    /// Boot: makes `count` frames from `start`, which nobody uses, as if they were not RAM: device memory.
    pub fn set_not_ram(&self, start: Mfn, count: u64) {
        for index in start.0..start.0.saturating_add(count) {
            let Some(frame) = self.get(Mfn(index)) else {
                return;
            };
            frame.set_kind(TypeWord(0));
            frame.set_owner(OwnerWord(0));
        }
    }
}
