// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the scheduler knows of a vCPU.
//!
//! Invariant: all fields change only under the run-queue lock of the processor named by `home`, and `home` itself only
//! under the lock of its old value. They are atomics because the lock is not around the record.

use crate::mask::CpuMask;
use crate::{DEFAULT_WEIGHT, SLICE_NS};
use core::array::from_fn;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// A vCPU, as numbered by [`crate::Scheduler::add`]; small and dense, good for indexing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VcpuKey(pub u32);

/// No vCPU or no processor.
pub(crate) const NONE: u32 = u32::MAX;

/// The scheduling state proper; `Running` is from being picked to being switched away from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Slot not in use.
    Vacant,
    /// Not brought up.
    Offline,
    /// Waits for an event.
    Blocked,
    /// Wants to run.
    Runnable,
    /// Runs on its home processor.
    Running,
}

/// Time account of a vCPU in the terms of `vcpu_runstate_info` (xen/vcpu.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Runstate {
    /// `RUNSTATE_*`: 0 running, 1 runnable, 2 blocked, 3 offline or paused.
    pub state: u32,
    /// When the state was entered, in nanoseconds of system time.
    pub entered: u64,
    /// Nanoseconds spent in each state so far.
    pub time: [u64; 4],
}

#[derive(Debug)]
pub(crate) struct Vcpu {
    /// Processor whose queue lock guards this record.
    pub(crate) home: AtomicU32,
    state: AtomicU8,
    /// Pauses not undone yet.
    pub(crate) pauses: AtomicU32,
    /// True while on a run queue.
    pub(crate) queued: AtomicBool,
    /// Woken up lately: goes to the queue that is served first.
    pub(crate) boosted: AtomicBool,
    /// Processor that may still hold the vCPU's registers, or `NONE`.
    pub(crate) on_cpu: AtomicU32,
    /// What is left of its slice, in nanoseconds; 0: a full one.
    pub(crate) left: AtomicU64,
    pub(crate) weight: AtomicU32,
    affinity: [AtomicU64; 4],
    /// Neighbours on the run queue.
    pub(crate) next: AtomicU32,
    pub(crate) prev: AtomicU32,
    runstate: AtomicU32,
    entered: AtomicU64,
    time: [AtomicU64; 4],
}

impl Vcpu {
    pub(crate) fn vacant() -> Self {
        Self {
            home: AtomicU32::new(0),
            state: AtomicU8::new(State::Vacant as u8),
            pauses: AtomicU32::new(0),
            queued: AtomicBool::new(false),
            boosted: AtomicBool::new(false),
            on_cpu: AtomicU32::new(NONE),
            left: AtomicU64::new(0),
            weight: AtomicU32::new(DEFAULT_WEIGHT),
            affinity: from_fn(|_| AtomicU64::new(u64::MAX)),
            next: AtomicU32::new(NONE),
            prev: AtomicU32::new(NONE),
            runstate: AtomicU32::new(3),
            entered: AtomicU64::new(0),
            time: from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Starts a new life of the slot: offline, unpaused, nothing accounted.
    pub(crate) fn reset(&self, now: u64) {
        self.pauses.store(0, Ordering::Relaxed);
        self.boosted.store(false, Ordering::Relaxed);
        self.left.store(0, Ordering::Relaxed);
        self.runstate.store(3, Ordering::Relaxed);
        self.entered.store(now, Ordering::Relaxed);
        for time in &self.time {
            time.store(0, Ordering::Relaxed);
        }
        self.state.store(State::Offline as u8, Ordering::Relaxed);
    }

    pub(crate) fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            1 => State::Offline,
            2 => State::Blocked,
            3 => State::Runnable,
            4 => State::Running,
            _ => State::Vacant,
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.pauses.load(Ordering::Relaxed) != 0
    }

    /// Changes the state and keeps the time account.
    pub(crate) fn set_state(&self, state: State, now: u64) {
        self.state.store(state as u8, Ordering::Relaxed);
        self.account(now);
    }

    /// Closes the account of the state so far and opens that of the state now.
    pub(crate) fn account(&self, now: u64) {
        let new = match self.state() {
            State::Running => 0,
            State::Blocked => 2,
            State::Runnable if !self.is_paused() => 1,
            _ => 3,
        };
        let old = self.runstate.load(Ordering::Relaxed);
        if new == old {
            return;
        }
        let since = self.entered.load(Ordering::Relaxed);
        if let Some(time) = self.time.get(old as usize) {
            // One writer at a time, under the home lock; sums of real time do not overflow.
            time.fetch_add(now.saturating_sub(since), Ordering::Relaxed);
        }
        self.runstate.store(new, Ordering::Relaxed);
        self.entered.store(now.max(since), Ordering::Relaxed);
    }

    /// The time account up to `now`.
    pub(crate) fn runstate(&self, now: u64) -> Runstate {
        let state = self.runstate.load(Ordering::Relaxed);
        let entered = self.entered.load(Ordering::Relaxed);
        let mut time: [u64; 4] = from_fn(|i| {
            self.time
                .get(i)
                .map_or(0, |time| time.load(Ordering::Relaxed))
        });
        if let Some(current) = time.get_mut(state as usize) {
            *current = current.saturating_add(now.saturating_sub(entered));
        }
        Runstate {
            state,
            entered,
            time,
        }
    }

    pub(crate) fn affinity(&self) -> CpuMask {
        let words: [u64; 4] = from_fn(|i| {
            self.affinity
                .get(i)
                .map_or(0, |word| word.load(Ordering::Relaxed))
        });
        CpuMask::from_words(&words)
    }

    pub(crate) fn set_affinity(&self, mask: &CpuMask) {
        for (to, from) in self.affinity.iter().zip(mask.words()) {
            to.store(*from, Ordering::Relaxed);
        }
    }

    /// Length of a full slice: in proportion to the weight, between 1 and 100 milliseconds.
    pub(crate) fn slice(&self) -> u64 {
        let weight = u64::from(self.weight.load(Ordering::Relaxed));
        (SLICE_NS.saturating_mul(weight) / u64::from(DEFAULT_WEIGHT))
            .clamp(SLICE_NS / 10, SLICE_NS * 10)
    }
}
