// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a vCPU that wants to run waits, and which processor is told.
//!
//! In this order: an idle processor that it would like (soft affinity), an idle one that it may use, here or in
//! another group; else the processor of its group that it will displace first.

use crate::group::{self, Group};
use crate::mask::CpuMask;
use crate::scheduler::{Kick, Scheduler};
use crate::sync::{MutexGuard, Ordering};
use crate::vcpu::{NONE, Place, State, Vcpu, VcpuKey};
use crate::virtual_time::BEGINNING;

impl Scheduler {
    /// Queues a vCPU that wants to run and waits nowhere; who must be told.
    pub(crate) fn settle<'a>(
        &'a self,
        key: VcpuKey,
        mut vcpu: &'a Vcpu,
        mut group: MutexGuard<'a, Group>,
        now: u64,
    ) -> Kick {
        loop {
            if let Some(kick) = Self::settled(key, vcpu, &group) {
                return kick;
            }
            let hard = vcpu.hard();
            if group.cpus().any(|cpu| hard.contains(cpu)) {
                return self.queue(key, vcpu, group, now);
            }
            let Some(home) = self.allowed(&hard, key.0) else {
                return Kick::None;
            };
            self.send(vcpu, group, home);
            match self.lock(key) {
                Some(locked) => (vcpu, group) = locked,
                None => return Kick::None,
            }
        }
    }

    /// Who must be told where there is nothing to queue.
    fn settled(key: VcpuKey, vcpu: &Vcpu, group: &Group) -> Option<Kick> {
        if vcpu.state() != State::Runnable || vcpu.is_paused() || vcpu.place() != Place::Nowhere {
            return Some(Kick::None);
        }
        let on_cpu = vcpu.on_cpu.load(Ordering::Relaxed);
        if on_cpu == NONE {
            return None;
        }
        // It waits from `context_saved` on, unless its processor has not chosen another one yet.
        let stays = group
            .processor(on_cpu)
            .is_some_and(|cpu| cpu.current == Some(key));
        Some(if stays {
            Kick::Reschedule(on_cpu)
        } else {
            Kick::None
        })
    }

    /// Queues a vCPU in the group of its home, where it may run.
    fn queue(&self, key: VcpuKey, vcpu: &Vcpu, mut group: MutexGuard<'_, Group>, now: u64) -> Kick {
        if let Err(later) = group::budget(self, vcpu, now) {
            vcpu.set_place(Place::Budget);
            return Kick::Later(key, later);
        }
        let hard = vcpu.hard();
        let wanted = self.wanted(vcpu, &group);
        let idle = self
            .claim_idle(vcpu.home(), &wanted)
            .or_else(|| self.find_idle(&wanted, &group))
            .or_else(|| self.find_idle(&hard, &group));
        let place = self.place_for(vcpu, &group, &wanted);
        if place != Place::Shared {
            let home = self.home_for(vcpu, &mut group, &wanted, idle, now);
            vcpu.home.store(home, Ordering::Release);
        }
        group.put(self, key, vcpu, place);
        self.note_waiting(&group);
        match idle {
            Some(cpu) => Kick::Reschedule(cpu),
            None => self.displace(vcpu, &mut group, now),
        }
    }

    /// Where a vCPU waits that would like to run on `wanted`.
    pub(crate) fn place_for(&self, vcpu: &Vcpu, group: &Group, wanted: &CpuMask) -> Place {
        if group.is_within(wanted) {
            Place::Shared
        } else if vcpu.hard().and(&self.all).count() == 1 {
            Place::Pinned
        } else {
            Place::Own
        }
    }

    /// The processors of the group that a vCPU would like, or those it may use if it may use none of them.
    pub(crate) fn wanted(&self, vcpu: &Vcpu, group: &Group) -> CpuMask {
        let hard = vcpu.hard();
        let wanted = hard.and(&vcpu.soft());
        if group.cpus().any(|cpu| wanted.contains(cpu)) {
            wanted
        } else {
            hard
        }
    }

    /// The processor of the group that a vCPU waits for if it does not wait for all: the idle one that is told, or that which it will
    /// displace first.
    fn home_for(
        &self,
        vcpu: &Vcpu,
        group: &mut Group,
        wanted: &CpuMask,
        idle: Option<u32>,
        now: u64,
    ) -> u32 {
        if let Some(idle) = idle
            && wanted.contains(idle)
            && group.cpus().contains(&idle)
        {
            return idle;
        }
        let mut best = None;
        for cpu in wanted.among(group.cpus()) {
            group.charge(self, cpu, now);
            let waiting = group.processor(cpu).map_or(0, |cpu| cpu.own.len());
            let cost = (waiting, group.due(self, cpu, vcpu, now).unwrap_or(0));
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, cpu));
            }
        }
        best.map_or_else(|| vcpu.home(), |(_, cpu)| cpu)
    }

    /// Nobody idles: tells the processor that the waiting `vcpu` displaces first, if it would not notice in time.
    fn displace(&self, vcpu: &Vcpu, group: &mut Group, now: u64) -> Kick {
        let only = (vcpu.place() != Place::Shared).then(|| vcpu.home());
        let mut best: Option<(u64, u32)> = None;
        for cpu in group.cpus() {
            // One that was told looks at everything that waits, this vCPU included.
            let skip = only.is_some_and(|only| only != cpu)
                || group.processor(cpu).is_none_or(|cpu| cpu.told);
            if skip {
                continue;
            }
            group.charge(self, cpu, now);
            let Some(due) = group.due(self, cpu, vcpu, now) else {
                continue;
            };
            let nearer = |(least, at): (u64, u32)| {
                due < least || due == least && cpu == vcpu.home() && at != cpu
            };
            if best.is_none_or(nearer) {
                best = Some((due, cpu));
            }
        }
        let Some((due, cpu)) = best else {
            return Kick::None;
        };
        match group.processor_mut(cpu) {
            Some(processor) if now.saturating_add(due) < processor.slice_end => {
                processor.told = true;
                Kick::Reschedule(cpu)
            }
            _ => Kick::None,
        }
    }

    /// `cpu` if it is idle and in `mask`; it is not taken for idle again until it has looked.
    pub(crate) fn claim_idle(&self, cpu: u32, mask: &CpuMask) -> Option<u32> {
        let idle = &self.cpus.get(cpu as usize)?.idle;
        let claimed =
            mask.contains(cpu) && idle.load(Ordering::SeqCst) && idle.swap(false, Ordering::SeqCst);
        claimed.then_some(cpu)
    }

    /// An idle processor of `mask`, those of `group` first.
    pub(crate) fn find_idle(&self, mask: &CpuMask, group: &Group) -> Option<u32> {
        group
            .cpus()
            .chain(0..self.cpus())
            .find_map(|cpu| self.claim_idle(cpu, mask))
    }

    /// Sends a vCPU that waits nowhere to the group of `home`. What it owes goes along, claims do not: they were
    /// against others.
    pub(crate) fn send(&self, vcpu: &Vcpu, group: MutexGuard<'_, Group>, home: u32) {
        vcpu.time.transfer(group.time_of(&vcpu.hard()), BEGINNING);
        vcpu.adrift.set(true);
        vcpu.home.store(home, Ordering::Release);
    }

    /// The registers of a vCPU that was switched away from are saved: from now on it may run elsewhere.
    pub fn context_saved(&self, key: VcpuKey, now: u64) -> Kick {
        let Some((vcpu, group)) = self.lock(key) else {
            return Kick::None;
        };
        if vcpu.state() == State::Running {
            return Kick::None;
        }
        vcpu.on_cpu.store(NONE, Ordering::Release);
        self.settle(key, vcpu, group, now)
    }
}
