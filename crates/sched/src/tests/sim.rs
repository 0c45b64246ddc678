// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine under a simulated clock: processors that obey the scheduler at once, vCPUs that compute and sleep.

use crate::{CpuMask, DEFAULT_WEIGHT, Kick, Scheduler, VcpuKey};
use std::vec::Vec;

pub const US: u64 = 1_000;
pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000_000_000;
const NEVER: u64 = u64::MAX;

/// What a vCPU does, in turns: computes, then sleeps. A hog computes for ever.
#[derive(Clone, Copy, Debug)]
pub struct Habit {
    pub run: u64,
    pub sleep: u64,
}

pub const HOG: Habit = Habit {
    run: NEVER,
    sleep: 0,
};
/// Sleeps until woken, then computes for so long.
pub const fn on_demand(run: u64) -> Habit {
    Habit { run, sleep: NEVER }
}

pub struct Guest {
    pub key: VcpuKey,
    habit: Habit,
    /// What is left to compute before it sleeps.
    left: u64,
    /// When it wakes up by itself.
    pub alarm: u64,
    pub asleep: bool,
    pub pauses: u32,
    /// When it last woke up without having run since.
    woke: Option<u64>,
    /// Times from waking up to running.
    pub latencies: Vec<u64>,
    /// By how much longer its computing took than it would have alone.
    pub delays: Vec<u64>,
    began: u64,
    /// Since when it waits while it might run, and the longest such time.
    waits: Option<u64>,
    pub longest_wait: u64,
}

struct Cpu {
    current: Option<usize>,
    deadline: u64,
}

pub struct Sim {
    pub s: Scheduler,
    pub now: u64,
    cpus: Vec<Cpu>,
    pub guests: Vec<Guest>,
    later: Vec<(u64, VcpuKey)>,
    todo: Vec<u32>,
    pub switches: u64,
}

impl Sim {
    pub fn new(cpus: u32) -> Self {
        let s = Scheduler::new(cpus, 1024).unwrap();
        let mut sim = Self {
            s,
            now: 1,
            cpus: Vec::new(),
            guests: Vec::new(),
            later: Vec::new(),
            todo: (0..cpus).collect(),
            switches: 0,
        };
        sim.cpus.resize_with(cpus as usize, || Cpu {
            current: None,
            deadline: NEVER,
        });
        sim.obey();
        sim
    }

    pub fn add(&mut self, weight: u32, habit: Habit) -> usize {
        self.add_on(&CpuMask::ALL, weight, habit)
    }

    pub fn add_on(&mut self, mask: &CpuMask, weight: u32, habit: Habit) -> usize {
        let key = self.s.add(mask, weight, self.now).unwrap();
        self.guests.push(Guest {
            key,
            habit,
            left: habit.run,
            alarm: NEVER,
            asleep: false,
            pauses: 0,
            woke: None,
            latencies: Vec::new(),
            delays: Vec::new(),
            began: self.now,
            waits: None,
            longest_wait: 0,
        });
        let (_, kick) = self.s.bring_up(key, self.now);
        self.follow(kick);
        self.obey();
        self.guests.len() - 1
    }

    pub fn hogs(&mut self, count: usize) {
        for _ in 0..count {
            self.add(DEFAULT_WEIGHT, HOG);
        }
    }

    pub fn follow(&mut self, kick: Kick) {
        match kick {
            Kick::None | Kick::Notice(_) => {}
            Kick::Reschedule(cpu) => self.todo.push(cpu),
            Kick::Later(key, at) => self.later.push((at, key)),
        }
    }

    /// Processors that were told choose again, until none is left.
    pub fn obey(&mut self) {
        while let Some(cpu) = self.todo.pop() {
            let decision = self.s.pick_next(cpu, self.now);
            let prev = self.cpus[cpu as usize].current;
            assert_eq!(decision.prev, prev.map(|guest| self.guests[guest].key));
            self.follow(decision.kick);
            let next = decision.next.map(|key| {
                self.guests
                    .iter()
                    .position(|guest| guest.key == key)
                    .unwrap()
            });
            self.cpus[cpu as usize] = Cpu {
                current: next,
                deadline: self.now.saturating_add(decision.slice_ns),
            };
            if let Some(guest) = next
                && let Some(since) = self.guests[guest].woke.take()
            {
                let latency = self.now - since;
                self.guests[guest].latencies.push(latency);
            }
            if prev != next {
                self.switches += 1;
                if let Some(prev) = prev {
                    let kick = self.s.context_saved(self.guests[prev].key, self.now);
                    self.follow(kick);
                }
            }
        }
        self.check();
    }

    /// Bounds what guests get together.
    pub fn cap(&mut self, guests: &[usize], percent: u32) {
        let keys: Vec<_> = guests.iter().map(|&guest| self.guests[guest].key).collect();
        self.later.retain(|(_, key)| !keys.contains(key));
        let mut kicks = Vec::new();
        self.s
            .set_cap(&keys, percent, self.now, |kick| kicks.push(kick));
        kicks.into_iter().for_each(|kick| self.follow(kick));
        self.obey();
    }

    pub fn running(&self, guest: usize) -> Option<u32> {
        let at = self.cpus.iter().position(|cpu| cpu.current == Some(guest));
        at.map(|cpu| cpu as u32)
    }

    /// No processor idles beside work that it may do, nothing runs that must not, nothing runs twice.
    fn check(&mut self) {
        for index in 0..self.guests.len() {
            let at: Vec<_> = (0..self.cpus.len())
                .filter(|&cpu| self.cpus[cpu].current == Some(index))
                .collect();
            let guest = &mut self.guests[index];
            let mask = self.s.affinity(guest.key);
            let waits_for_budget = self.later.iter().any(|(_, key)| *key == guest.key);
            let may = !guest.asleep && guest.pauses == 0;
            assert!(at.len() < 2);
            if let Some(&cpu) = at.first() {
                assert!(may && mask.contains(cpu as u32));
            }
            if may && !waits_for_budget && at.is_empty() {
                guest.waits.get_or_insert(self.now);
                for (cpu, state) in self.cpus.iter().enumerate() {
                    let fits = mask.contains(cpu as u32);
                    assert!(!fits || state.current.is_some(), "idle beside work");
                }
            } else if let Some(since) = guest.waits.take() {
                guest.longest_wait = guest.longest_wait.max(self.now - since);
            }
        }
    }

    pub fn sleep(&mut self, guest: usize) {
        if let Some(cpu) = self.running(guest)
            && self.s.block(self.guests[guest].key, self.now, || true)
        {
            self.guests[guest].asleep = true;
            self.todo.push(cpu);
            self.obey();
        }
    }

    pub fn wake(&mut self, guest: usize) {
        let now = self.now;
        let state = &mut self.guests[guest];
        state.alarm = NEVER;
        if !state.asleep {
            return;
        }
        state.asleep = false;
        state.left = state.habit.run;
        state.woke = Some(now);
        state.began = now;
        let kick = self.s.wake(state.key, None, now);
        self.follow(kick);
        self.obey();
    }

    /// Runs until `end`.
    pub fn run_to(&mut self, end: u64) {
        while self.now < end {
            let mut next = end;
            for cpu in &self.cpus {
                next = next.min(cpu.deadline);
                if let Some(guest) = cpu.current {
                    next = next.min(self.now.saturating_add(self.guests[guest].left));
                }
            }
            next = self.guests.iter().fold(next, |next, g| next.min(g.alarm));
            next = self.later.iter().fold(next, |next, (at, _)| next.min(*at));
            let step = next.saturating_sub(self.now);
            self.now = self.now.max(next);
            for cpu in 0..self.cpus.len() {
                if let Some(guest) = self.cpus[cpu].current
                    && self.guests[guest].left != NEVER
                {
                    self.guests[guest].left -= step;
                }
            }
            self.happen();
        }
    }

    pub fn run(&mut self, ns: u64) {
        self.run_to(self.now + ns);
    }

    /// What is due now.
    fn happen(&mut self) {
        for guest in 0..self.guests.len() {
            if self.guests[guest].left == 0 && self.running(guest).is_some() {
                let state = &mut self.guests[guest];
                state.alarm = self.now.saturating_add(state.habit.sleep);
                state.delays.push(self.now - state.began - state.habit.run);
                self.sleep(guest);
            }
            if self.guests[guest].alarm <= self.now {
                self.wake(guest);
            }
        }
        let due: Vec<_> = self
            .later
            .extract_if(.., |(at, _)| *at <= self.now)
            .collect();
        for (_, key) in due {
            let kick = self.s.release(key, self.now);
            self.follow(kick);
        }
        for cpu in 0..self.cpus.len() {
            if self.cpus[cpu].deadline <= self.now || self.s.tick(cpu as u32, self.now) {
                self.todo.push(cpu as u32);
            }
        }
        self.obey();
    }

    /// Nanoseconds that a guest ran so far.
    pub fn ran(&self, guest: usize) -> u64 {
        self.s.runstate(self.guests[guest].key, self.now).time[0]
    }

    /// What each guest gets of one processor over `ns` from now, in parts of a million.
    pub fn shares(&mut self, ns: u64) -> Vec<u64> {
        let before: Vec<_> = (0..self.guests.len()).map(|g| self.ran(g)).collect();
        self.run(ns);
        (0..self.guests.len())
            .map(|g| (self.ran(g) - before[g]) * 1_000_000 / ns)
            .collect()
    }
}
