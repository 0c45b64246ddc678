// SPDX-License-Identifier: MIT OR Apache-2.0
//! The TLB clock: who may still hold translations that were removed.
//!
//! A removal takes a *stamp*, which advances the clock. A processor *notes* the clock before it drops its translations: when it
//! loads a root, and when somebody asks it to (the answer is kept apart, because the question may come between the two
//! halves of a note and must not be undone by the second). While it uses the hypervisor's own root it holds
//! nothing of any guest and is *away*. What a processor noted or answered above a stamp, it said after the removal.
//!
//! A note promises more than it needs to: whatever the processor did through older translations is done, and until its
//! TLB is empty it does nothing through them. So nobody waits for the emptying itself.
//!
//! Loading a root is a full fence (a serialising instruction). The model in `tests/tlb_model.rs` puts fences where this
//! text says that they are.

use super::atomics::{AtomicU64, Ordering, fence};

/// The note of a processor that is away.
const AWAY: u64 = u64::MAX;

/// What one processor said.
#[derive(Debug)]
pub struct CpuNotes {
    /// Clock at its last load of a root; 0: it is not in use.
    pub noted: AtomicU64,
    /// Clock at its last answer.
    pub answered: AtomicU64,
}

/// The clock.
#[derive(Debug)]
pub struct TlbClock {
    /// Advanced by every stamp; starts at 1, above the notes of processors that are not in use.
    pub now: AtomicU64,
}

impl TlbClock {
    /// A stamp for translations that were removed before this call.
    #[inline]
    pub fn stamp(&self) -> u64 {
        self.now.fetch_add(1, Ordering::SeqCst)
    }

    /// The processor with these notes, which calls this, loads a root next.
    #[inline(always)]
    pub fn note(&self, notes: &CpuNotes) {
        let now = self.now.load(Ordering::Relaxed);
        notes.noted.store(now, Ordering::Release);
    }

    /// The processor with these notes, which calls this, was asked, and drops its translations next. May come at any instruction.
    pub fn answer(&self, notes: &CpuNotes) {
        let now = self.now.load(Ordering::Relaxed);
        notes.answered.fetch_max(now, Ordering::AcqRel);
    }

    /// Comes between taking a stamp and the first [`CpuNotes::may_hold`].
    pub fn settle(&self) {
        fence(Ordering::SeqCst);
    }
}

impl CpuNotes {
    /// The processor, which calls this, has loaded the hypervisor's own root. Its next note, and the load that follows, end
    /// that: what is removed after the note it is asked for, what was removed before it does not find any more.
    pub fn go_away(&self) {
        self.noted.store(AWAY, Ordering::Release);
    }

    /// True if the processor may still hold translations that were removed before `stamp` was taken.
    pub fn may_hold(&self, stamp: u64) -> bool {
        let noted = self.noted.load(Ordering::Acquire);
        noted != 0 && noted <= stamp && self.answered.load(Ordering::Acquire) <= stamp
    }
}
