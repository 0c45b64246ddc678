// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one lock guards: up to [`GROUP_CPUS`] processors, the vCPUs that wait for them, and their virtual time.
//!
//! A vCPU that may run on every processor of the group waits in the group's heap, any other in the heap of the processor
//! it is for. So the next vCPU for a processor is the earlier of two heaps' first ones, whatever affinities there are.
//!
//! **Virtual time of a processor**: it follows the effective virtual time of the first in line (running or waiting),
//! never backwards, and no faster than what runs there makes it. The second bound is ours: where the
//! paper takes the minimum, a vCPU that sleeps for a moment would at once lose what another one, which ran ahead of its
//! share, owes it.

use crate::heap::{Heap, Linked};
use crate::mask::CpuMask;
use crate::vcpu::{Place, Vcpu, VcpuKey};
use crate::virtual_time::{BEGINNING, running_for, worth};
use alloc::vec::Vec;
use core::ops::Range;

/// Processors behind one lock.
pub(crate) const GROUP_CPUS: u32 = 16;
/// Allowances by which a running vCPU's claim may be ahead of the virtual time of its processors. A vCPU
/// whose weight asks for more than a processor always runs and still falls behind: without a bound it would keep
/// that claim for when others come.
const OPEN_CLAIM: u32 = 4;
/// The shortest slice, in nanoseconds: vCPUs that wake each other, or all at once, do not displace each other before
/// they have done something.
pub(crate) const MIN_SLICE_NS: u64 = 50_000;
/// How long a vCPU that sends messages runs before those whom they wake up displace it, in nanoseconds: packets and requests come in
/// rows, and a switch after each of them costs more than the rest of the way. So long that a disk request of 1 MiB is handed over
/// whole, even if its bytes are copied one by one.
pub(crate) const SENDER_SLICE_NS: u64 = 2_000_000;

/// Finds the record of a key.
pub(crate) trait Records: Linked {
    fn record(&self, key: VcpuKey) -> Option<&Vcpu>;
    /// The context-switch allowance in nanoseconds.
    fn allowance(&self) -> u64;
}

/// A processor of a group.
#[derive(Debug)]
pub(crate) struct Processor {
    /// The vCPU it runs.
    pub(crate) current: Option<VcpuKey>,
    /// Since when it runs that.
    pub(crate) began: u64,
    /// Until when vCPUs that wake up do not displace it.
    pub(crate) undisturbed: u64,
    /// When it chooses again at the latest.
    pub(crate) slice_end: u64,
    /// `current` asked to give way.
    pub(crate) yielded: bool,
    /// It was told to choose again and has not yet.
    pub(crate) told: bool,
    /// Its virtual time.
    pub(crate) time: u64,
    /// vCPUs that wait for this processor.
    pub(crate) own: Heap,
    /// How many of them may run on others.
    movable: u32,
}

impl Processor {
    /// What is left of the time in which `waiting` does not displace what runs: that has just woken up itself, or sent the
    /// message that `waiting` woke up for.
    fn first_moments(&self, waiting: &Vcpu, now: u64) -> Option<u64> {
        let sent = self.current == Some(VcpuKey(waiting.sender.get()));
        let end = if waiting.woken.get() && sent {
            self.began.saturating_add(SENDER_SLICE_NS)
        } else {
            self.undisturbed
        };
        end.checked_sub(now).filter(|&left| left != 0)
    }
}

/// The state behind a lock.
#[derive(Debug)]
pub(crate) struct Group {
    first: u32,
    processors: Vec<Processor>,
    pub(crate) shared: Heap,
    /// The latest virtual time of its processors.
    time: u64,
}

impl Group {
    /// A group of processors from `first` on; `processors` is empty and has room for `count`.
    pub(crate) fn new(first: u32, count: u32, mut processors: Vec<Processor>) -> Self {
        for _ in 0..count {
            processors.push(Processor {
                current: None,
                began: 0,
                undisturbed: 0,
                slice_end: u64::MAX,
                yielded: false,
                told: false,
                time: BEGINNING,
                own: Heap::new(),
                movable: 0,
            });
        }
        Self {
            first,
            processors,
            shared: Heap::new(),
            time: BEGINNING,
        }
    }

    /// Its processors by number.
    pub(crate) fn cpus(&self) -> Range<u32> {
        self.first..self.first.saturating_add(self.processors.len() as u32)
    }

    pub(crate) fn processor(&self, cpu: u32) -> Option<&Processor> {
        self.processors.get(cpu.checked_sub(self.first)? as usize)
    }

    pub(crate) fn processor_mut(&mut self, cpu: u32) -> Option<&mut Processor> {
        let index = cpu.checked_sub(self.first)? as usize;
        self.processors.get_mut(index)
    }

    /// True if `mask` has every processor of the group.
    pub(crate) fn is_within(&self, mask: &CpuMask) -> bool {
        self.cpus().all(|cpu| mask.contains(cpu))
    }

    pub(crate) fn current<'a>(&self, all: &'a impl Records, cpu: u32) -> Option<&'a Vcpu> {
        all.record(self.processor(cpu)?.current?)
    }

    /// The vCPU that comes next on `cpu`.
    pub(crate) fn first_in_line(&self, all: &impl Records, cpu: u32) -> Option<VcpuKey> {
        let own = self.processor(cpu)?.own.first(all);
        let shared = self.shared.first(all);
        let shared_comes = |own: (_, u64)| shared.is_some_and(|shared| shared.1 < own.1);
        let first = own.filter(|own| !shared_comes(*own)).or(shared);
        first.map(|(key, _)| key)
    }

    /// Puts a vCPU where it waits; its home says for which processor if it is not for all of them.
    pub(crate) fn put(&mut self, all: &impl Records, key: VcpuKey, vcpu: &Vcpu, place: Place) {
        // Nobody waits for another one's allowance before a vCPU that does not have to.
        let ahead = if vcpu.woken.get() {
            worth(all.allowance(), vcpu.time.weight())
        } else {
            0
        };
        let order = vcpu.time.effective().saturating_sub(ahead);
        match place {
            Place::Shared => self.shared.insert(all, key, order),
            Place::Own | Place::Pinned => match self.processor_mut(vcpu.home()) {
                Some(processor) => {
                    processor.own.insert(all, key, order);
                    let movable = u32::from(place == Place::Own);
                    processor.movable = processor.movable.saturating_add(movable);
                }
                None => return,
            },
            Place::Nowhere | Place::Budget => {}
        }
        vcpu.set_place(place);
    }

    /// Takes a vCPU from where it waits.
    pub(crate) fn take(&mut self, all: &impl Records, key: VcpuKey, vcpu: &Vcpu) {
        match vcpu.place() {
            Place::Shared => self.shared.remove(all, key),
            place @ (Place::Own | Place::Pinned) => {
                if let Some(processor) = self.processor_mut(vcpu.home()) {
                    processor.own.remove(all, key);
                    let movable = u32::from(place == Place::Own);
                    processor.movable = processor.movable.saturating_sub(movable);
                }
            }
            Place::Nowhere | Place::Budget => {}
        }
        vcpu.set_place(Place::Nowhere);
    }

    /// A vCPU that waits for one processor of the group and `fits` another. Looks at all that wait so, if any may move.
    pub(crate) fn find_own(
        &self,
        all: &impl Records,
        fits: impl Fn(VcpuKey) -> bool,
    ) -> Option<VcpuKey> {
        self.processors
            .iter()
            .filter(|processor| processor.movable != 0)
            .find_map(|processor| processor.own.find(all, &fits))
    }

    /// Number of vCPUs that wait.
    pub(crate) fn waiting(&self) -> u32 {
        let own = self.processors.iter().map(|processor| processor.own.len());
        own.fold(self.shared.len(), u32::saturating_add)
    }

    /// Brings the accounts of what runs on `cpu`, and its virtual time, up to `now`.
    pub(crate) fn charge(&mut self, all: &impl Records, cpu: u32, now: u64) {
        let Some(vcpu) = self.current(all, cpu) else {
            return;
        };
        let ns = now.saturating_sub(vcpu.since.get());
        if ns == 0 {
            return;
        }
        vcpu.since.set(now);
        let moved = vcpu.time.ran(ns, now);
        if vcpu.bounded.get()
            && let Some(leader) = all.record(VcpuKey(vcpu.leader.get()))
        {
            leader.budget.lock().draw(ns, now);
        }
        let waiting = self
            .first_in_line(all, cpu)
            .and_then(|first| all.record(first))
            .map_or(u64::MAX, |first| first.time.effective());
        let first = waiting.min(vcpu.time.effective());
        if let Some(processor) = self.processor_mut(cpu) {
            let followed = first.min(processor.time.saturating_add(moved));
            processor.time = processor.time.max(followed);
            let latest = processor.time;
            self.time = self.time.max(latest);
        }
        let claim = all.allowance().saturating_mul(OPEN_CLAIM.into());
        let open = worth(claim, vcpu.time.weight());
        let time = self.time_of(&vcpu.hard());
        vcpu.time.not_before(time.saturating_sub(open));
    }

    /// The virtual time at which a vCPU that may use `mask` joins: the latest of its processors, so that it competes fairly where
    /// least is asked for, and gets no more than that anywhere.
    pub(crate) fn time_of(&self, mask: &CpuMask) -> u64 {
        if self.is_within(mask) {
            return self.time;
        }
        let time = |cpu| match self.processor(cpu) {
            Some(processor) if processor.current.is_some() => processor.time,
            // Nothing competes there: what comes is in line with everybody else.
            _ => self.time,
        };
        mask.among(self.cpus()).map(time).max().unwrap_or(self.time)
    }

    /// A vCPU that did not ask to run does: claims from before are gone.
    pub(crate) fn join(&mut self, all: &impl Records, vcpu: &Vcpu, now: u64) {
        for cpu in self.cpus() {
            self.charge(all, cpu, now);
        }
        vcpu.time.not_before(self.time_of(&vcpu.hard()));
    }

    /// An idle processor begins to work: its virtual time stood still meanwhile.
    pub(crate) fn catch_up(&mut self, cpu: u32) {
        let time = self.time;
        if let Some(processor) = self.processor_mut(cpu) {
            processor.time = processor.time.max(time);
        }
    }

    /// Nanoseconds that the vCPU running on `cpu` goes on from `now`, whose account is up to date; `None`: not at all.
    pub(crate) fn remaining(&self, all: &impl Records, cpu: u32, now: u64) -> Option<u64> {
        let (processor, vcpu) = (self.processor(cpu)?, self.current(all, cpu)?);
        let own = bound(all, vcpu, cpu, now)?;
        let Some(first) = self.first_in_line(all, cpu) else {
            return Some(own);
        };
        let first = all.record(first)?;
        if processor.yielded {
            return None;
        }
        let others = until(all, vcpu, first).max(processor.first_moments(first, now))?;
        Some(others.min(own))
    }

    /// How long it takes until `waiting` comes before what runs on `cpu`: 0 for now. `None` if nothing runs there.
    pub(crate) fn due(
        &self,
        all: &impl Records,
        cpu: u32,
        waiting: &Vcpu,
        now: u64,
    ) -> Option<u64> {
        let vcpu = self.current(all, cpu)?;
        if bound(all, vcpu, cpu, now).is_none() {
            return Some(0);
        }
        let others = until(all, vcpu, waiting);
        let least = self.processor(cpu)?.first_moments(waiting, now);
        Some(others.max(least).unwrap_or(0))
    }
}

/// How long `vcpu` may run on `cpu` by what it is allowed itself; `None` if it may not.
pub(crate) fn bound(all: &impl Records, vcpu: &Vcpu, cpu: u32, now: u64) -> Option<u64> {
    if !vcpu.is_ready() || !vcpu.hard().contains(cpu) {
        return None;
    }
    let budget = budget(all, vcpu, now).ok()?;
    let warp = vcpu.time.warp_left().unwrap_or(u64::MAX);
    Some(budget.min(warp.max(1)))
}

/// How long a vCPU may run on its domain's budget.
///
/// # Errors
/// When there will be something again, if there is nothing.
pub(crate) fn budget(all: &impl Records, vcpu: &Vcpu, now: u64) -> Result<u64, u64> {
    if !vcpu.bounded.get() {
        return Ok(u64::MAX);
    }
    match all.record(VcpuKey(vcpu.leader.get())) {
        Some(leader) => leader.budget.lock().left(now),
        None => Ok(u64::MAX),
    }
}

/// Nanoseconds until `waiting` comes before `running`: when that is an allowance past it, or no longer before it if the
/// one that waits has just woken up. `None`: it does already.
fn until(all: &impl Records, running: &Vcpu, waiting: &Vcpu) -> Option<u64> {
    let weight = running.time.weight();
    let allowance = if waiting.woken.get() {
        0
    } else {
        worth(all.allowance(), weight)
    };
    let end = waiting.time.effective().saturating_add(allowance);
    let ahead = end.saturating_sub(running.time.effective());
    (ahead != 0).then(|| running_for(ahead, weight))
}
