// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two words of a frame as values, and their transitions as pure functions.
//!
//! Invariants of a [`TypeWord`]:
//! - `VALIDATED` means count >= 1, and neither `BUSY`, `PARTIAL` nor `IDLE`.
//! - `BUSY` means exactly one processor owns the word: it validates, invalidates or retypes the frame. Count is 0.
//! - `PARTIAL` means an interrupted (in)validation: entries `0..next` hold references. Count is 0. The work done so
//!   far belongs to the frame itself and to no reference, so none can be lost or released twice (XSA-299, 309, 310).
//! - `IDLE` means count 0 and nothing held; the same bits then hold the TLB-clock stamp of the last release.
//! - A frame holds one general reference for all its typed ones as long as it is validated, busy or partial.
//!
//! The kind of a word whose count dropped to 0 is kept: taking the same kind again needs no flush.

use philoxen_abi::DomId;

/// What a frame is being used as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Nothing yet.
    None = 0,
    /// Level-1 page table.
    L1 = 1,
    /// Level-2 page table.
    L2 = 2,
    /// Level-3 page table.
    L3 = 3,
    /// Level-4 page table (root).
    L4 = 4,
    /// Segment descriptors (GDT or LDT).
    SegDesc = 5,
    /// Writable by a guest, or by the hypervisor on a guest's behalf.
    Writable = 6,
}

impl Kind {
    /// True for the four page-table kinds.
    #[inline]
    pub const fn is_table(self) -> bool {
        matches!(self, Self::L1 | Self::L2 | Self::L3 | Self::L4)
    }
    /// The kind of the tables that entries of this table point to; `None` for an L1 and for what is no table.
    #[inline]
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
            Self::L4 => Some(Self::L3),
            _ => None,
        }
    }
    const fn bits(self) -> u64 {
        (self as u64) << KIND_SHIFT
    }
}

/// Largest typed count: far above what page tables of a machine can hold, far below the field's end.
pub const MAX_TYPED: u32 = 1 << 30;
/// Largest general count that a new reference may reach.
pub const MAX_GENERAL: u32 = 1 << 31;
/// Largest TLB-clock stamp (48 bits: years of flushes).
pub const MAX_STAMP: u64 = (1 << 48) - 1;
/// Entries in a table, and the `next` of one that is complete.
pub const ENTRIES: u32 = 512;

const COUNT: u64 = 0xffff_ffff;
const NEXT_SHIFT: u32 = 32;
const NEXT: u64 = 0x3ff << NEXT_SHIFT;
const IDLE: u64 = 1 << 48;
const VALIDATED: u64 = 1 << 49;
const PARTIAL: u64 = 1 << 50;
const BUSY: u64 = 1 << 51;
const PINNED: u64 = 1 << 52;
const KIND_SHIFT: u32 = 56;
const KIND: u64 = 7 << KIND_SHIFT;

const LINK_BITS: u32 = 30;
const LINK: u64 = (1 << LINK_BITS) - 1;
/// The previous link is split around the kind field.
const LINK_LOW_BITS: u32 = KIND_SHIFT - LINK_BITS;
const LINK_LOW: u64 = (1 << LINK_LOW_BITS) - 1;
/// The link that leads nowhere; frames above are not used (4 TiB).
pub const NO_LINK: u32 = LINK as u32;

/// Type, typed count and progress of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct TypeWord(pub u64);

/// How a typed reference can be had, given the present word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Get {
    /// One more user of a live type: swap in this word and the reference is taken.
    Share(TypeWord),
    /// Count is 0: swap in this (busy) word, flush what is older than `flush`, validate, then publish.
    Claim {
        /// The busy word.
        word: TypeWord,
        /// Stamp of the last use as another kind, if there was one.
        flush: Option<u64>,
        /// `Some(next)`: continue interrupted work whose entries `0..next` hold references; the frame then already
        /// holds its general reference.
        resume: Option<u32>,
    },
    /// Another processor is working on it: wait or come back.
    Busy,
    /// Interrupted work of another kind must be undone first.
    Reap,
    /// In use as another kind.
    Mismatch,
    /// Too many references.
    Overflow,
}

/// How a typed reference is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// Others remain: swap in this word.
    Shared(TypeWord),
    /// The last one: the frame must become idle (tables by way of a busy word).
    Last,
    /// No reference is held: a bug of the caller.
    NotHeld,
}

impl TypeWord {
    /// A frame that was never used as anything.
    pub const FRESH: Self = Self(0);

    /// The kind.
    #[inline]
    pub const fn kind(self) -> Kind {
        match (self.0 & KIND) >> KIND_SHIFT {
            1 => Kind::L1,
            2 => Kind::L2,
            3 => Kind::L3,
            4 => Kind::L4,
            5 => Kind::SegDesc,
            6 => Kind::Writable,
            _ => Kind::None,
        }
    }
    /// Typed references held.
    #[inline]
    pub const fn count(self) -> u32 {
        if self.0 & IDLE != 0 {
            0
        } else {
            (self.0 & COUNT) as u32
        }
    }
    /// True if the type is in force (count >= 1).
    #[inline]
    pub const fn is_live(self) -> bool {
        self.0 & VALIDATED != 0
    }
    /// True if the frame is validated as `kind`.
    #[inline]
    pub const fn is_live_as(self, kind: Kind) -> bool {
        self.0 & (KIND | VALIDATED) == kind.bits() | VALIDATED
    }
    /// True if a processor is working on it.
    #[inline]
    pub const fn is_busy(self) -> bool {
        self.0 & BUSY != 0
    }
    /// True if interrupted work is stored in it.
    #[inline]
    pub const fn is_partial(self) -> bool {
        self.0 & PARTIAL != 0
    }
    /// True if the guest asked to keep the type.
    #[inline]
    pub const fn is_pinned(self) -> bool {
        self.0 & PINNED != 0
    }
    /// Entries `0..next` hold references (a live table: all).
    #[inline]
    pub const fn next(self) -> u32 {
        if self.0 & IDLE != 0 {
            0
        } else {
            ((self.0 & NEXT) >> NEXT_SHIFT) as u32
        }
    }
    /// True if one general reference is held on behalf of the typed ones.
    #[inline]
    pub const fn holds_general(self) -> bool {
        self.0 & (VALIDATED | BUSY | PARTIAL) != 0
    }
    /// When the last typed reference went, in TLB-clock time, if the word is idle.
    #[inline]
    pub const fn stamp(self) -> Option<u64> {
        if self.0 & IDLE != 0 {
            Some(self.0 & MAX_STAMP)
        } else {
            None
        }
    }

    const fn of(kind: Kind, flags: u64, next: u32, count: u32) -> Self {
        Self(kind.bits() | flags | ((next as u64) << NEXT_SHIFT) & NEXT | count as u64)
    }
    /// The word of a frame that was just released.
    #[inline]
    pub const fn idle(kind: Kind, stamp: u64) -> Self {
        Self(kind.bits() | IDLE | stamp & MAX_STAMP)
    }
    /// The word of a frame this processor works on.
    #[inline]
    pub const fn busy(kind: Kind, next: u32) -> Self {
        Self::of(kind, BUSY, next, 0)
    }
    /// The word of a frame whose work was interrupted with entries `0..next` holding references.
    #[inline]
    pub const fn partial(kind: Kind, next: u32) -> Self {
        Self::of(kind, PARTIAL, next, 0)
    }
    /// The word of a frame just validated, with one reference.
    #[inline]
    pub const fn live(kind: Kind) -> Self {
        Self::of(kind, VALIDATED, 0, 1)
    }

    /// The links of a free block (indices below 2^30). Its kind is one that nothing asks for, so a processor that
    /// looked at the frame's owner too early can neither share nor claim it.
    pub const fn links(prev: u32, next: u32) -> Self {
        let (prev, next) = (prev as u64, next as u64);
        Self(KIND | next & LINK | (prev & LINK_LOW) << LINK_BITS | prev >> LINK_LOW_BITS << 59)
    }
    /// Reads [`TypeWord::links`].
    pub const fn as_links(self) -> (u32, u32) {
        let prev = self.0 >> LINK_BITS & LINK_LOW | self.0 >> 59 << LINK_LOW_BITS;
        ((prev & LINK) as u32, (self.0 & LINK) as u32)
    }

    /// One more reference to a live type, if that is all there is to do.
    #[inline]
    pub const fn share(self, kind: Kind) -> Option<Self> {
        if self.is_live_as(kind) && (self.0 & COUNT) < MAX_TYPED as u64 {
            Some(Self(self.0.wrapping_add(1)))
        } else {
            None
        }
    }

    /// How to get a reference of `kind`.
    pub const fn get(self, kind: Kind) -> Get {
        if let Some(word) = self.share(kind) {
            return Get::Share(word);
        }
        let same = self.0 & KIND == kind.bits();
        if self.is_live() {
            return if same { Get::Overflow } else { Get::Mismatch };
        }
        if self.is_busy() {
            // A busy frame of another kind may be an ancestor in this very walk: never wait for it.
            return if same { Get::Busy } else { Get::Mismatch };
        }
        if self.is_partial() {
            if same {
                let next = self.next();
                let word = Self::busy(kind, next);
                return Get::Claim {
                    word,
                    flush: None,
                    resume: Some(next),
                };
            }
            return Get::Reap;
        }
        let flush = if same { None } else { self.stamp() };
        Get::Claim {
            word: Self::busy(kind, 0),
            flush,
            resume: None,
        }
    }

    /// How to give a reference back.
    #[inline]
    pub const fn put(self) -> Put {
        if !self.is_live() {
            return Put::NotHeld;
        }
        match self.0 & COUNT {
            0 => Put::NotHeld,
            1 => Put::Last,
            _ => Put::Shared(Self(self.0.wrapping_sub(1))),
        }
    }

    /// The word with the pin mark, if the frame is live and not pinned yet.
    #[inline]
    pub const fn pin(self) -> Option<Self> {
        if self.is_live() && !self.is_pinned() {
            Some(Self(self.0 | PINNED))
        } else {
            None
        }
    }
    /// The word without the pin mark, if it was pinned.
    #[inline]
    pub const fn unpin(self) -> Option<Self> {
        if self.is_pinned() {
            Some(Self(self.0 & !PINNED))
        } else {
            None
        }
    }
}

/// What a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Class {
    /// Not RAM that the hypervisor manages: device memory, firmware tables, holes.
    NotRam = 0,
    /// In the frame allocator.
    Free = 1,
    /// The hypervisor's own.
    Hypervisor = 2,
    /// Owned by a domain, under the type rules.
    Guest = 3,
}

const DOM_SHIFT: u32 = 32;
const CLASS_SHIFT: u32 = 48;
const DOM: u64 = 0xffff << DOM_SHIFT;
const CLASS: u64 = 7 << CLASS_SHIFT;
const ALLOCATED: u64 = 1 << 51;
const SHARED: u64 = 1 << 52;
const HEAD: u64 = 1 << 53;
const DIRTY: u64 = 1 << 54;
/// Of a guest frame; see [`OwnerWord::written`].
const WRITTEN: u64 = 1 << 61;
const ORDER_SHIFT: u32 = 56;
const ORDER: u64 = 0x1f << ORDER_SHIFT;

/// Class, owner and general count of a frame; in the allocator: class, order and release stamp of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct OwnerWord(pub u64);

impl OwnerWord {
    /// A frame that is the hypervisor's.
    pub const HYPERVISOR: Self = Self((Class::Hypervisor as u64) << CLASS_SHIFT);

    const fn guest_bits(owner: DomId) -> u64 {
        (Class::Guest as u64) << CLASS_SHIFT | (owner.0 as u64) << DOM_SHIFT
    }
    /// A frame just given to `owner`: one reference, that of the allocation itself.
    pub const fn allocated(owner: DomId) -> Self {
        Self(Self::guest_bits(owner) | ALLOCATED | 1)
    }
    /// A frame the hypervisor shares with `owner`: one reference, which stays the hypervisor's; the guest may map
    /// the frame but cannot free or exchange it, and it does not count as the domain's memory.
    pub const fn shared(owner: DomId) -> Self {
        Self(Self::guest_bits(owner) | SHARED | 1)
    }
    /// Head of a free block.
    pub const fn free_head(order: u32, dirty: bool, stamp: u64) -> Self {
        let dirty = if dirty { DIRTY } else { 0 };
        Self(
            (Class::Free as u64) << CLASS_SHIFT
                | HEAD
                | dirty
                | ((order as u64) << ORDER_SHIFT) & ORDER
                | stamp & MAX_STAMP,
        )
    }
    /// A frame inside a free block.
    pub const FREE: Self = Self((Class::Free as u64) << CLASS_SHIFT);

    /// The class.
    #[inline]
    pub const fn class(self) -> Class {
        match (self.0 & CLASS) >> CLASS_SHIFT {
            1 => Class::Free,
            2 => Class::Hypervisor,
            3 => Class::Guest,
            _ => Class::NotRam,
        }
    }
    /// True if the frame is a guest frame.
    #[inline]
    pub const fn is_guest(self) -> bool {
        self.0 & CLASS == (Class::Guest as u64) << CLASS_SHIFT
    }
    /// True if the frame belongs to `domain`.
    #[inline]
    pub const fn is_owned_by(self, domain: DomId) -> bool {
        self.0 & (CLASS | DOM) == Self::guest_bits(domain)
    }
    /// The owner of a guest frame.
    #[inline]
    pub const fn owner(self) -> Option<DomId> {
        if self.is_guest() {
            Some(DomId(((self.0 & DOM) >> DOM_SHIFT) as u16))
        } else {
            None
        }
    }
    /// General references.
    #[inline]
    pub const fn count(self) -> u32 {
        if self.is_guest() {
            (self.0 & COUNT) as u32
        } else {
            0
        }
    }
    /// True while the owner has not given the frame back.
    #[inline]
    pub const fn is_allocated(self) -> bool {
        self.0 & ALLOCATED != 0
    }
    /// True for a frame that somebody wrote to since the mark was last taken; kept only while a log wants it
    /// ([`crate::log`]).
    #[inline]
    pub const fn is_written(self) -> bool {
        self.0 & WRITTEN != 0
    }
    /// The word of a guest's frame with the mark of a write; `None` if there is nothing to change.
    #[inline]
    pub const fn written(self) -> Option<Self> {
        if self.is_guest() && !self.is_written() {
            Some(Self(self.0 | WRITTEN))
        } else {
            None
        }
    }
    /// The word without the mark of a write.
    #[inline]
    pub const fn unwritten(self) -> Self {
        Self(self.0 & !WRITTEN)
    }
    /// True for a frame that the hypervisor shares with its owner.
    #[inline]
    pub const fn is_shared(self) -> bool {
        self.0 & SHARED != 0
    }
    /// One more general reference for a user of `domain`'s frames.
    #[inline]
    pub const fn get(self, domain: DomId) -> Option<Self> {
        let count = (self.0 & COUNT) as u32;
        if self.is_owned_by(domain) && count != 0 && count < MAX_GENERAL {
            Some(Self(self.0.wrapping_add(1)))
        } else {
            None
        }
    }
    /// The word once the owner has given the frame back; the allocation's reference is still to be dropped.
    pub const fn unallocate(self, domain: DomId) -> Option<Self> {
        if self.is_owned_by(domain) && self.is_allocated() {
            Some(Self(self.0 & !ALLOCATED))
        } else {
            None
        }
    }
    /// The word once the hypervisor no longer shares the frame; its reference is still to be dropped.
    pub const fn unshared(self) -> Self {
        Self(self.0 & !SHARED)
    }
    /// The word with another owner.
    pub const fn with_owner(self, owner: DomId) -> Self {
        Self(self.0 & !DOM | (owner.0 as u64) << DOM_SHIFT)
    }
    /// Order, dirty mark and stamp, if this is the head of a free block.
    pub const fn as_free_head(self) -> Option<(u32, bool, u64)> {
        if self.0 & (CLASS | HEAD) == (Class::Free as u64) << CLASS_SHIFT | HEAD {
            Some((
                ((self.0 & ORDER) >> ORDER_SHIFT) as u32,
                self.0 & DIRTY != 0,
                self.0 & MAX_STAMP,
            ))
        } else {
            None
        }
    }
}
