// SPDX-License-Identifier: MIT OR Apache-2.0
//! Deadlines of one processor in an indexed binary heap.
//!
//! Memory is bounded: one place per key, reserved when a vCPU is made ([`TimerQueue::reserve`]); afterwards nothing is
//! allocated. Invariant: `place[key]` is the index of `key` in the heap, and no parent is later than its children.

use crate::VcpuKey;
use alloc::vec::Vec;
use philoxen_abi::{Errno, Result};

/// What a deadline of a vCPU is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimerKind {
    /// `VCPUOP_set_singleshot_timer` and `set_timer_op`.
    Singleshot = 0,
    /// `VCPUOP_set_periodic_timer`.
    Periodic = 1,
    /// Timeout of `SCHEDOP_poll`.
    Poll = 2,
    /// End of the scheduler's slice.
    Slice = 3,
    /// A watchdog of the domain (kept by its first vCPU).
    Watchdog = 4,
    /// The domain's budget is filled up ([`crate::Kick::Later`]).
    Budget = 5,
}

/// Places kept for each vCPU.
const KINDS: u32 = 8;

/// A deadline's owner: a vCPU and a kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TimerKey(u32);

impl TimerKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::Singleshot,
        Self::Periodic,
        Self::Poll,
        Self::Slice,
        Self::Watchdog,
        Self::Budget,
    ];
}

impl TimerKey {
    /// The deadline `kind` of `vcpu`.
    pub const fn new(vcpu: VcpuKey, kind: TimerKind) -> Self {
        Self(vcpu.0.wrapping_mul(KINDS).wrapping_add(kind as u32))
    }

    /// The vCPU.
    pub const fn vcpu(self) -> VcpuKey {
        VcpuKey(self.0 / KINDS)
    }

    /// The kind.
    pub const fn kind(self) -> TimerKind {
        match self.0 % KINDS {
            0 => TimerKind::Singleshot,
            1 => TimerKind::Periodic,
            2 => TimerKind::Poll,
            3 => TimerKind::Slice,
            4 => TimerKind::Watchdog,
            _ => TimerKind::Budget,
        }
    }
}

const ABSENT: u32 = u32::MAX;

/// The pending deadlines of one processor.
#[derive(Debug, Default)]
pub struct TimerQueue {
    /// (deadline in nanoseconds of system time, key).
    heap: Vec<(u64, TimerKey)>,
    /// Heap index of each key, or `ABSENT`.
    place: Vec<u32>,
}

impl TimerQueue {
    /// An empty queue without room for any vCPU.
    pub const fn new() -> Self {
        Self {
            heap: Vec::new(),
            place: Vec::new(),
        }
    }

    /// Makes room for the deadlines of vCPUs `0..=vcpu`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn reserve(&mut self, vcpu: VcpuKey) -> Result<()> {
        let keys = (vcpu.0 as usize)
            .saturating_add(1)
            .saturating_mul(KINDS as usize);
        let more = keys.saturating_sub(self.place.len());
        self.place.try_reserve(more).map_err(|_| Errno::ENOMEM)?;
        let missing = keys.saturating_sub(self.heap.len());
        self.heap.try_reserve(missing).map_err(|_| Errno::ENOMEM)?;
        if more != 0 {
            self.place.resize(keys, ABSENT);
        }
        Ok(())
    }

    fn at(&self, index: usize) -> Option<(u64, TimerKey)> {
        self.heap.get(index).copied()
    }

    fn place_of(&self, key: TimerKey) -> Option<usize> {
        self.place
            .get(key.0 as usize)
            .filter(|&&place| place != ABSENT)
            .map(|&place| place as usize)
    }

    fn put(&mut self, index: usize, entry: (u64, TimerKey)) {
        if let (Some(slot), Some(place)) = (
            self.heap.get_mut(index),
            self.place.get_mut(entry.1.0 as usize),
        ) {
            *slot = entry;
            *place = index as u32;
        }
    }

    /// Moves the entry at `index` up or down to where it belongs.
    fn sift(&mut self, mut index: usize) {
        let Some(entry) = self.at(index) else { return };
        while index > 0 {
            let parent = (index - 1) / 2;
            let Some(above) = self.at(parent).filter(|above| above.0 > entry.0) else {
                break;
            };
            self.put(index, above);
            index = parent;
        }
        loop {
            let left = 2 * index + 1;
            let earlier = |&child: &usize| self.at(child).map_or(u64::MAX, |child| child.0);
            let child = if earlier(&(left + 1)) < earlier(&left) {
                left + 1
            } else {
                left
            };
            let Some(below) = self.at(child).filter(|below| below.0 < entry.0) else {
                break;
            };
            self.put(index, below);
            index = child;
        }
        self.put(index, entry);
    }

    /// Sets or moves a deadline. A key without room ([`TimerQueue::reserve`]) is ignored.
    pub fn set(&mut self, key: TimerKey, deadline: u64) {
        if self.place.len() <= key.0 as usize {
            return;
        }
        let index = match self.place_of(key) {
            Some(index) => index,
            None => {
                self.heap.push((deadline, key));
                self.heap.len().saturating_sub(1)
            }
        };
        self.put(index, (deadline, key));
        self.sift(index);
    }

    /// Cancels a deadline; it, if it was set.
    pub fn cancel(&mut self, key: TimerKey) -> Option<u64> {
        let index = self.place_of(key)?;
        let (deadline, _) = self.at(index)?;
        if let Some(place) = self.place.get_mut(key.0 as usize) {
            *place = ABSENT;
        }
        let last = self.heap.pop()?;
        if index < self.heap.len() {
            self.put(index, last);
            self.sift(index);
        }
        Some(deadline)
    }

    /// Takes one deadline that is not after `now`, the earliest first.
    pub fn pop_expired(&mut self, now: u64) -> Option<TimerKey> {
        let (deadline, key) = self.at(0)?;
        if deadline > now {
            return None;
        }
        self.cancel(key);
        Some(key)
    }

    /// The earliest deadline.
    #[inline]
    pub fn next_deadline(&self) -> Option<u64> {
        self.at(0).map(|(deadline, _)| deadline)
    }

    /// The deadline of a key, if set.
    pub fn deadline(&self, key: TimerKey) -> Option<u64> {
        self.place_of(key)
            .and_then(|index| self.at(index))
            .map(|(deadline, _)| deadline)
    }

    /// Number of deadlines set.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// True if no deadline is set.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}
