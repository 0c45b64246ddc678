// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the scheduler knows of a vCPU.
//!
//! Invariant: all fields change only under the lock of the group of the processor named by `home`, and `home` itself only
//! under the lock of its old value. They are atomics because the lock is not around the record. (The budget has its own
//! lock: the vCPUs of a domain may be in different groups.)

use crate::cap::Budget;
use crate::field::{Byte, Flag, Long, Word};
use crate::heap::Links;
use crate::mask::CpuMask;
use crate::sync::{AtomicU32, Mutex, Ordering};
use crate::virtual_time::VirtualTime;
use core::array::from_fn;

/// A vCPU, as numbered by [`crate::Scheduler::add`]; small and dense, good for indexing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VcpuKey(pub u32);

/// The largest weight.
pub const MAX_WEIGHT: u32 = 65535;
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
    /// Taken down and will be removed.
    Retired,
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

/// Where a vCPU waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Nowhere: it does not want to run, runs, or is between two places.
    Nowhere,
    /// In the heap of its group.
    Shared,
    /// In the heap of its home processor.
    Own,
    /// The same, and there is no other it may run on.
    Pinned,
    /// For its domain's budget ([`crate::Kick::Later`]).
    Budget,
}

#[derive(Debug)]
pub(crate) struct Vcpu {
    /// The processor it runs or ran on, or waits for; the lock of its group guards this record.
    pub(crate) home: AtomicU32,
    /// Processor that may still hold the vCPU's registers, or `NONE`.
    pub(crate) on_cpu: AtomicU32,
    state: Byte,
    place: Byte,
    /// Pauses not undone yet.
    pub(crate) pauses: Word,
    /// It woke up and has not run since: the context-switch allowance does not hold against it.
    pub(crate) woken: Flag,
    /// Whose message woke it up, or `NONE`; says something while `woken` does.
    pub(crate) sender: Word,
    pub(crate) time: VirtualTime,
    /// Between two groups: `time` begins anew, with its debt only, until it is set right ([`crate::Scheduler`]'s `lock`).
    pub(crate) adrift: Flag,
    /// Up to when its running is accounted, while it runs.
    pub(crate) since: Long,
    /// The vCPU whose budget it draws on; its own, if not another of its domain.
    pub(crate) leader: Word,
    /// True if that budget has a bound.
    pub(crate) bounded: Flag,
    pub(crate) budget: Mutex<Budget>,
    asked: [Long; 4],
    pool: [Long; 4],
    hard: [Long; 4],
    soft: [Long; 4],
    pub(crate) links: Links,
    runstate: Word,
    entered: Long,
    spent: [Long; 4],
}

fn mask(words: &[Long; 4]) -> CpuMask {
    CpuMask::from_words(&words.each_ref().map(Long::get))
}

fn set_mask(words: &[Long; 4], mask: &CpuMask) {
    for (to, from) in words.iter().zip(mask.words()) {
        to.set(*from);
    }
}

impl Vcpu {
    pub(crate) fn vacant() -> Self {
        Self {
            home: AtomicU32::new(0),
            on_cpu: AtomicU32::new(NONE),
            state: Byte::new(State::Vacant as u8),
            place: Byte::new(Place::Nowhere as u8),
            pauses: Word::new(0),
            woken: Flag::new(false),
            sender: Word::new(NONE),
            time: VirtualTime::new(),
            adrift: Flag::new(false),
            since: Long::new(0),
            leader: Word::new(NONE),
            bounded: Flag::new(false),
            budget: Mutex::new(Budget::UNBOUNDED),
            asked: from_fn(|_| Long::new(u64::MAX)),
            pool: from_fn(|_| Long::new(u64::MAX)),
            hard: from_fn(|_| Long::new(u64::MAX)),
            soft: from_fn(|_| Long::new(u64::MAX)),
            links: Links::new(),
            runstate: Word::new(3),
            entered: Long::new(0),
            spent: from_fn(|_| Long::new(0)),
        }
    }

    /// Starts a new life of the slot: offline, unpaused, nothing accounted.
    pub(crate) fn reset(&self, key: VcpuKey, hard: &CpuMask, weight: u32, now: u64) {
        self.pauses.set(0);
        self.woken.set(false);
        self.time.reset(weight.clamp(1, MAX_WEIGHT));
        self.adrift.set(false);
        self.leader.set(key.0);
        self.bounded.set(false);
        *self.budget.lock() = Budget::UNBOUNDED;
        self.restrict(hard, &CpuMask::ALL);
        self.set_soft(&CpuMask::ALL);
        self.runstate.set(3);
        self.entered.set(now);
        for time in &self.spent {
            time.set(0);
        }
        self.state.set(State::Offline as u8);
    }

    pub(crate) fn state(&self) -> State {
        match self.state.get() {
            1 => State::Offline,
            2 => State::Blocked,
            3 => State::Runnable,
            4 => State::Running,
            5 => State::Retired,
            _ => State::Vacant,
        }
    }

    pub(crate) fn place(&self) -> Place {
        match self.place.get() {
            1 => Place::Shared,
            2 => Place::Own,
            3 => Place::Pinned,
            4 => Place::Budget,
            _ => Place::Nowhere,
        }
    }

    /// True if it waits in a heap.
    pub(crate) fn is_queued(&self) -> bool {
        !matches!(self.place(), Place::Nowhere | Place::Budget)
    }

    pub(crate) fn set_place(&self, place: Place) {
        self.place.set(place as u8);
    }

    pub(crate) fn home(&self) -> u32 {
        self.home.load(Ordering::Relaxed)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.pauses.get() != 0
    }

    /// True unless it was taken down, or not brought up yet.
    pub(crate) fn is_up(&self) -> bool {
        !matches!(self.state(), State::Offline | State::Retired)
    }

    /// True if it wants to run, or does.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.state(), State::Runnable | State::Running) && !self.is_paused()
    }

    /// Changes the state and keeps the time account.
    pub(crate) fn set_state(&self, state: State, now: u64) {
        self.state.set(state as u8);
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
        let old = self.runstate.get();
        if new == old {
            return;
        }
        let since = self.entered.get();
        if let Some(time) = self.spent.get(old as usize) {
            time.set(time.get().saturating_add(now.saturating_sub(since)));
        }
        self.runstate.set(new);
        self.entered.set(now.max(since));
    }

    /// The time account up to `now`.
    pub(crate) fn runstate(&self, now: u64) -> Runstate {
        let (state, entered) = (self.runstate.get(), self.entered.get());
        let mut time = self.spent.each_ref().map(Long::get);
        if let Some(current) = time.get_mut(state as usize) {
            *current = current.saturating_add(now.saturating_sub(entered));
        }
        Runstate {
            state,
            entered,
            time,
        }
    }

    /// The processors it may run on: those it is restricted to that are in its pool.
    pub(crate) fn hard(&self) -> CpuMask {
        mask(&self.hard)
    }

    /// The processors it is restricted to, in its pool or not.
    pub(crate) fn asked(&self) -> CpuMask {
        mask(&self.asked)
    }

    /// The processors of its pool.
    pub(crate) fn pool(&self) -> CpuMask {
        mask(&self.pool)
    }

    pub(crate) fn restrict(&self, asked: &CpuMask, pool: &CpuMask) {
        set_mask(&self.asked, asked);
        set_mask(&self.pool, pool);
        set_mask(&self.hard, &asked.and(pool));
    }

    /// The processors it had better run on.
    pub(crate) fn soft(&self) -> CpuMask {
        mask(&self.soft)
    }

    pub(crate) fn set_soft(&self, wanted: &CpuMask) {
        set_mask(&self.soft, wanted);
    }
}
