// SPDX-License-Identifier: MIT OR Apache-2.0
//! The run queue of one processor: two lists of vCPUs, linked through the records, so that nothing is allocated.
//!
//! Invariant: a vCPU is on at most one list (`queued`), and only on the queue of its home processor.

use crate::vcpu::{NONE, Vcpu, VcpuKey};
use core::sync::atomic::Ordering::Relaxed;

/// Boosted vCPUs served in a row before a waiting unboosted one gets a turn.
const BOOSTS_IN_A_ROW: u32 = 4;
/// How long that turn is safe from boosted vCPUs, in nanoseconds.
const PROTECTED_NS: u64 = 1_000_000;

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
}

impl List {
    const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
    };

    const fn is_empty(self) -> bool {
        self.head == NONE
    }
}

/// State of a processor, behind its lock.
#[derive(Debug)]
pub(crate) struct Queue {
    boosted: List,
    normal: List,
    /// The vCPU it runs.
    pub(crate) current: Option<VcpuKey>,
    /// When the slice of `current` ends.
    pub(crate) slice_end: u64,
    /// Until when `current` is not preempted by boosted vCPUs.
    pub(crate) protected_until: u64,
    /// `current` asked to give way.
    pub(crate) yielded: bool,
    boosts: u32,
}

/// Finds the record of a key.
pub(crate) trait Records {
    fn record(&self, key: VcpuKey) -> Option<&Vcpu>;
}

impl Queue {
    pub(crate) const fn new() -> Self {
        Self {
            boosted: List::EMPTY,
            normal: List::EMPTY,
            current: None,
            slice_end: 0,
            protected_until: 0,
            yielded: false,
            boosts: 0,
        }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.boosted.is_empty() && self.normal.is_empty()
    }

    pub(crate) const fn has_boosted(&self) -> bool {
        !self.boosted.is_empty()
    }

    fn list(&mut self, vcpu: &Vcpu) -> &mut List {
        if vcpu.boosted.load(Relaxed) {
            &mut self.boosted
        } else {
            &mut self.normal
        }
    }

    /// Puts a vCPU on its list, at the front if it was interrupted within its slice.
    pub(crate) fn push(&mut self, records: &impl Records, key: VcpuKey, front: bool) {
        let Some(vcpu) = records.record(key) else {
            return;
        };
        if vcpu.queued.swap(true, Relaxed) {
            return;
        }
        let list = self.list(vcpu);
        let neighbour = if front { list.head } else { list.tail };
        let other = records.record(VcpuKey(neighbour));
        if front {
            vcpu.prev.store(NONE, Relaxed);
            vcpu.next.store(neighbour, Relaxed);
            match other {
                Some(other) => other.prev.store(key.0, Relaxed),
                None => list.tail = key.0,
            }
            list.head = key.0;
        } else {
            vcpu.next.store(NONE, Relaxed);
            vcpu.prev.store(neighbour, Relaxed);
            match other {
                Some(other) => other.next.store(key.0, Relaxed),
                None => list.head = key.0,
            }
            list.tail = key.0;
        }
    }

    /// Takes a vCPU off its list; false if it was on none.
    pub(crate) fn remove(&mut self, records: &impl Records, key: VcpuKey) -> bool {
        let Some(vcpu) = records.record(key) else {
            return false;
        };
        if !vcpu.queued.swap(false, Relaxed) {
            return false;
        }
        let (prev, next) = (vcpu.prev.load(Relaxed), vcpu.next.load(Relaxed));
        let list = self.list(vcpu);
        match records.record(VcpuKey(prev)) {
            Some(prev) => prev.next.store(next, Relaxed),
            None => list.head = next,
        }
        match records.record(VcpuKey(next)) {
            Some(next) => next.prev.store(prev, Relaxed),
            None => list.tail = prev,
        }
        true
    }

    /// Takes the vCPU that runs next: boosted ones first, but not for ever.
    pub(crate) fn pop(&mut self, records: &impl Records, now: u64) -> Option<VcpuKey> {
        let waiting = !self.normal.is_empty();
        let turn = waiting && self.boosts >= BOOSTS_IN_A_ROW;
        let boost = !self.boosted.is_empty() && !turn;
        self.protected_until = now;
        if boost {
            self.boosts = if waiting {
                self.boosts.saturating_add(1)
            } else {
                0
            };
        } else {
            if !self.boosted.is_empty() {
                self.protected_until = now.saturating_add(PROTECTED_NS);
            }
            self.boosts = 0;
        }
        let list = if boost { self.boosted } else { self.normal };
        let key = Some(VcpuKey(list.head)).filter(|_| !list.is_empty())?;
        self.remove(records, key);
        Some(key)
    }

    /// The first waiting vCPU that `fits`.
    pub(crate) fn find(
        &self,
        records: &impl Records,
        fits: impl Fn(&Vcpu) -> bool,
    ) -> Option<VcpuKey> {
        for list in [self.boosted, self.normal] {
            let mut at = VcpuKey(list.head);
            while let Some(vcpu) = records.record(at) {
                if fits(vcpu) {
                    return Some(at);
                }
                at = VcpuKey(vcpu.next.load(Relaxed));
            }
        }
        None
    }
}
