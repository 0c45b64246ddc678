// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a processor runs next.

use crate::group::{GROUP_CPUS, Group, MIN_SLICE_NS, Records};
use crate::scheduler::{Decision, Kick, Scheduler};
use crate::sync::Ordering;
use crate::vcpu::{NONE, Place, State, VcpuKey};

/// Nothing to run.
const fn idle(prev: Option<VcpuKey>) -> Decision {
    Decision {
        prev,
        next: None,
        slice_ns: u64::MAX,
        kick: Kick::None,
    }
}

impl Scheduler {
    /// True if `cpu` should call [`Scheduler::pick_next`]: what it runs has to give way, or nothing runs and something
    /// waits.
    pub fn tick(&self, cpu: u32, now: u64) -> bool {
        let Some(shared) = self.group_of(cpu) else {
            return false;
        };
        let mut group = shared.state.lock();
        group.charge(self, cpu, now);
        match group.current(self, cpu) {
            Some(_) => group.remaining(self, cpu, now).is_none(),
            None => group.first_in_line(self, cpu).is_some(),
        }
    }

    /// Chooses what processor `cpu` runs from `now` on.
    pub fn pick_next(&self, cpu: u32, now: u64) -> Decision {
        let (Some(shared), Some(announced)) = (self.group_of(cpu), self.cpus.get(cpu as usize))
        else {
            return idle(None);
        };
        let mut group = shared.state.lock();
        group.charge(self, cpu, now);
        if let Some(processor) = group.processor_mut(cpu) {
            processor.told = false;
        }
        let prev = group.processor(cpu).and_then(|cpu| cpu.current);
        if let Some(key) = prev {
            if let Some(left) = group.remaining(self, cpu, now) {
                return self.keep(&mut group, cpu, key, left, now);
            }
            self.put_aside(&mut group, cpu, key, now);
        }
        let mut fetched = false;
        let key = loop {
            if let Some(key) = self.next(&mut group, cpu) {
                break key;
            }
            // Announce first, look second: whoever queues something after we looked finds us idle.
            announced.idle.store(true, Ordering::SeqCst);
            drop(group);
            let Some(key) = self.fetch(cpu) else {
                return idle(prev);
            };
            fetched = true;
            self.take_in(key);
            group = shared.state.lock();
        };
        announced.idle.store(false, Ordering::SeqCst);
        if prev.is_none() {
            group.catch_up(cpu);
        }
        self.start(&mut group, cpu, key, now);
        let left = group.remaining(self, cpu, now).unwrap_or(1);
        Decision {
            prev,
            next: Some(key),
            slice_ns: Self::arm(&mut group, cpu, left, now),
            kick: if fetched {
                self.pass_on(&group, cpu)
            } else {
                Kick::None
            },
        }
    }

    /// The vCPU that runs goes on.
    fn keep(&self, group: &mut Group, cpu: u32, key: VcpuKey, left: u64, now: u64) -> Decision {
        if let Some(processor) = group.processor_mut(cpu) {
            processor.yielded = false;
        }
        if let Some(vcpu) = self.record(key) {
            // It may have blocked and been woken up before its processor looked.
            vcpu.set_state(State::Running, now);
            vcpu.woken.set(false);
        }
        Decision {
            prev: Some(key),
            next: Some(key),
            slice_ns: Self::arm(group, cpu, left, now),
            kick: Kick::None,
        }
    }

    /// Notes when `cpu` chooses again; in how many nanoseconds.
    fn arm(group: &mut Group, cpu: u32, left: u64, now: u64) -> u64 {
        let slice = left.max(MIN_SLICE_NS);
        if let Some(processor) = group.processor_mut(cpu) {
            processor.slice_end = now.saturating_add(slice);
        }
        slice
    }

    /// The vCPU that ran stops; it waits somewhere when its registers are saved.
    fn put_aside(&self, group: &mut Group, cpu: u32, key: VcpuKey, now: u64) {
        let first = group.first_in_line(self, cpu);
        let Some(processor) = group.processor_mut(cpu) else {
            return;
        };
        let yielded = core::mem::replace(&mut processor.yielded, false);
        processor.current = None;
        processor.slice_end = u64::MAX;
        let Some(vcpu) = self.record(key) else { return };
        if let (true, Some(first)) = (yielded, first.and_then(|first| self.record(first))) {
            // It lets that one go first, and does not come back before it has run.
            let ahead = first.time.effective().saturating_sub(vcpu.time.effective());
            vcpu.time
                .not_before(vcpu.time.actual().saturating_add(ahead));
        }
        if vcpu.state() == State::Running {
            vcpu.set_state(State::Runnable, now);
        }
    }

    /// Makes a vCPU that waits nowhere the one that `cpu` runs.
    fn start(&self, group: &mut Group, cpu: u32, key: VcpuKey, now: u64) {
        let vcpu = self.record(key);
        if let Some(processor) = group.processor_mut(cpu) {
            let woken = vcpu.is_some_and(|vcpu| vcpu.woken.get());
            processor.current = Some(key);
            processor.began = now;
            processor.undisturbed = now.saturating_add(if woken { MIN_SLICE_NS } else { 0 });
        }
        if let Some(vcpu) = vcpu {
            vcpu.home.store(cpu, Ordering::Release);
            vcpu.on_cpu.store(cpu, Ordering::Release);
            vcpu.set_state(State::Running, now);
            vcpu.since.set(now);
            vcpu.woken.set(false);
        }
    }

    /// Takes the vCPU that `cpu` runs next from where it waits: the first in line, or else one that waits for another
    /// processor of the group and may run here.
    fn next(&self, group: &mut Group, cpu: u32) -> Option<VcpuKey> {
        let first = group.first_in_line(self, cpu);
        let key = first.or_else(|| group.find_own(self, |key| self.may_run(key, cpu)))?;
        self.withdraw(group, key, self.record(key)?);
        Some(key)
    }

    fn may_run(&self, key: VcpuKey, cpu: u32) -> bool {
        self.record(key)
            .is_some_and(|vcpu| vcpu.hard().contains(cpu))
    }

    /// Takes a vCPU that waits in another group and may run on `cpu`; it waits nowhere then, and its home is `cpu`.
    fn fetch(&self, cpu: u32) -> Option<VcpuKey> {
        let groups = self.groups.len();
        let own = (cpu / GROUP_CPUS) as usize;
        let others = (1..groups).filter_map(|step| self.groups.get((own + step) % groups));
        for other in others.filter(|other| other.waiting.load(Ordering::SeqCst) != 0) {
            let mut group = other.state.lock();
            let fits = |key| self.may_run(key, cpu);
            let found = group.shared.find(self, fits);
            let found = found.or_else(|| group.find_own(self, fits));
            if let Some((key, vcpu)) = found.and_then(|key| Some((key, self.record(key)?))) {
                self.withdraw(&mut group, key, vcpu);
                self.send(vcpu, group, cpu);
                return Some(key);
            }
        }
        None
    }

    /// Queues a fetched vCPU unless it was paused, stopped or moved on meanwhile.
    fn take_in(&self, key: VcpuKey) {
        if let Some((vcpu, mut group)) = self.lock(key)
            && vcpu.state() == State::Runnable
            && !vcpu.is_paused()
            && vcpu.place() == Place::Nowhere
            && vcpu.on_cpu.load(Ordering::Relaxed) == NONE
        {
            let place = self.place_for(vcpu, &group, &self.wanted(vcpu, &group));
            group.put(self, key, vcpu, place);
            self.note_waiting(&group);
        }
    }

    /// Something was queued here while a vCPU was fetched, and told this processor, which has found its work: another
    /// idle one is told instead.
    fn pass_on(&self, group: &Group, cpu: u32) -> Kick {
        group
            .first_in_line(self, cpu)
            .and_then(|key| self.record(key))
            .and_then(|vcpu| self.find_idle(&vcpu.hard(), group))
            .map_or(Kick::None, Kick::Reschedule)
    }
}
