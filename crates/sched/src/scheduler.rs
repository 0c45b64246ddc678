// SPDX-License-Identifier: MIT OR Apache-2.0
//! The scheduler of the machine: vCPU states, run queues, wake-ups, migration.
//!
//! Locking: one lock per processor, never two at once. A vCPU's record belongs to the lock of its home processor; to move,
//! it is taken off the old queue, given its new home, and put on the new queue under the new lock. In between it is
//! runnable and on no queue, and whoever finds it so first (`settle`) queues it.
//!
//! A vCPU whose registers another processor still holds (`on_cpu`) neither moves nor runs elsewhere: the lead says
//! [`Scheduler::context_saved`] once a switch is complete.

use crate::mask::{CpuMask, MAX_CPUS};
use crate::queue::{Queue, Records};
use crate::vcpu::{NONE, Runstate, State, Vcpu, VcpuKey};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use philoxen_abi::{Errno, Result};
use spin::{Mutex, MutexGuard, Once};

const BUCKET: u32 = 32;

/// What to do about another processor (or this one) after an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a processor that is not told may sleep on"]
pub enum Kick {
    /// Nothing.
    None,
    /// This processor must call [`Scheduler::pick_next`] soon: wake it up or interrupt it.
    Reschedule(u32),
    /// The vCPU runs on this processor: if it is another one, interrupt it so that it sees the event.
    Notice(u32),
}

/// What a processor does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// The vCPU it ran; if it is not `next`, switch and then call [`Scheduler::context_saved`] for it.
    pub prev: Option<VcpuKey>,
    /// The vCPU to run; `None`: idle until kicked.
    pub next: Option<VcpuKey>,
    /// Nanoseconds until [`Scheduler::pick_next`] must be called again at the latest; `u64::MAX`: no need.
    pub slice_ns: u64,
}

#[derive(Debug)]
struct Cpu {
    queue: Mutex<Queue>,
    /// True while it found nothing to run: others kick it when they have something.
    idle: AtomicBool,
    /// A hint that its queue is not empty.
    busy: AtomicBool,
}

/// The scheduler of the machine.
#[derive(Debug)]
pub struct Scheduler {
    cpus: Vec<Cpu>,
    buckets: Vec<Once<Box<[Vcpu]>>>,
    /// Lowest slot never used, and serialises [`Scheduler::add`].
    slots: Mutex<u32>,
}

impl Records for Scheduler {
    #[inline]
    fn record(&self, key: VcpuKey) -> Option<&Vcpu> {
        self.buckets
            .get((key.0 / BUCKET) as usize)?
            .get()?
            .get((key.0 % BUCKET) as usize)
    }
}

impl Scheduler {
    /// A scheduler for processors `0..cpus` and at most `max_vcpus` vCPUs at a time.
    ///
    /// # Errors
    /// `EINVAL` for no or too many processors, `ENOMEM`.
    pub fn new(cpus: u32, max_vcpus: u32) -> Result<Self> {
        if cpus == 0 || cpus > MAX_CPUS {
            return Err(Errno::EINVAL);
        }
        let mut list = Vec::new();
        list.try_reserve_exact(cpus as usize)
            .map_err(|_| Errno::ENOMEM)?;
        for _ in 0..cpus {
            list.push(Cpu {
                queue: Mutex::new(Queue::new()),
                idle: AtomicBool::new(false),
                busy: AtomicBool::new(false),
            });
        }
        let mut buckets = Vec::new();
        let count = max_vcpus.div_ceil(BUCKET);
        buckets
            .try_reserve_exact(count as usize)
            .map_err(|_| Errno::ENOMEM)?;
        buckets.resize_with(count as usize, Once::new);
        Ok(Self {
            cpus: list,
            buckets,
            slots: Mutex::new(0),
        })
    }

    /// Number of processors.
    pub fn cpus(&self) -> u32 {
        self.cpus.len() as u32
    }

    /// Adds a vCPU: offline, allowed on `affinity`.
    ///
    /// # Errors
    /// `EINVAL` if no processor is allowed, `ENOSPC` if the scheduler is full, `ENOMEM`.
    pub fn add(&self, affinity: &CpuMask, weight: u32, now: u64) -> Result<VcpuKey> {
        let mut slots = self.slots.lock();
        let vacant = (0..*slots).map(VcpuKey).find(|&key| {
            self.record(key)
                .is_some_and(|vcpu| vcpu.state() == State::Vacant)
        });
        let key = vacant.unwrap_or(VcpuKey(*slots));
        // Spread vCPUs over the processors they may use.
        let home = self.allowed(affinity, key.0).ok_or(Errno::EINVAL)?;
        let bucket = self
            .buckets
            .get((key.0 / BUCKET) as usize)
            .ok_or(Errno::ENOSPC)?;
        bucket.try_call_once(|| {
            let mut records = Vec::new();
            records
                .try_reserve_exact(BUCKET as usize)
                .map_err(|_| Errno::ENOMEM)?;
            records.resize_with(BUCKET as usize, Vcpu::vacant);
            Ok(records.into_boxed_slice())
        })?;
        let vcpu = self.record(key).ok_or(Errno::ENOSPC)?;
        vcpu.home.store(home, Ordering::Relaxed);
        vcpu.set_affinity(affinity);
        vcpu.weight.store(weight.max(1), Ordering::Relaxed);
        vcpu.reset(now);
        *slots = (*slots).max(key.0.saturating_add(1));
        Ok(key)
    }

    /// Removes an offline vCPU whose context is saved.
    ///
    /// # Errors
    /// `EBUSY` if it is not offline or a processor may still hold its registers, `ENOENT` if there is none.
    pub fn remove(&self, key: VcpuKey, now: u64) -> Result<()> {
        let (vcpu, _, mut queue) = self.lock(key).ok_or(Errno::ENOENT)?;
        if vcpu.state() != State::Offline || vcpu.on_cpu.load(Ordering::Relaxed) != NONE {
            return Err(Errno::EBUSY);
        }
        queue.remove(self, key);
        vcpu.set_state(State::Vacant, now);
        Ok(())
    }

    /// The `nth` processor, counted round and round, that `mask` allows.
    fn allowed(&self, mask: &CpuMask, nth: u32) -> Option<u32> {
        let count = (0..self.cpus()).filter(|&cpu| mask.contains(cpu)).count();
        let nth = (nth as usize).checked_rem(count)?;
        (0..self.cpus()).filter(|&cpu| mask.contains(cpu)).nth(nth)
    }

    fn cpu(&self, cpu: u32) -> Option<&Cpu> {
        self.cpus.get(cpu as usize)
    }

    /// Locks the queue of a vCPU's home processor.
    fn lock(&self, key: VcpuKey) -> Option<(&Vcpu, u32, MutexGuard<'_, Queue>)> {
        let vcpu = self.record(key)?;
        loop {
            let home = vcpu.home.load(Ordering::Acquire);
            let queue = self.cpu(home)?.queue.lock();
            if vcpu.home.load(Ordering::Acquire) == home {
                return (vcpu.state() != State::Vacant).then_some((vcpu, home, queue));
            }
        }
    }

    /// Queues a vCPU that wants to run and is on no queue; who must be told.
    fn settle(&self, key: VcpuKey) -> Kick {
        let Some((vcpu, home, queue)) = self.lock(key) else {
            return Kick::None;
        };
        self.settle_locked(key, vcpu, home, queue)
    }

    fn settle_locked(
        &self,
        key: VcpuKey,
        vcpu: &Vcpu,
        home: u32,
        mut queue: MutexGuard<'_, Queue>,
    ) -> Kick {
        let on_cpu = vcpu.on_cpu.load(Ordering::Relaxed);
        if vcpu.state() != State::Runnable
            || vcpu.is_paused()
            || vcpu.queued.load(Ordering::Relaxed)
            || (on_cpu != NONE && on_cpu != home)
        {
            return Kick::None;
        }
        queue.push(self, key, false);
        self.set_busy(home, true);
        let affinity = vcpu.affinity();
        drop(queue);
        if self.claim_idle(home) || on_cpu != NONE {
            return Kick::Reschedule(home);
        }
        Kick::Reschedule(self.find_idle(&affinity).unwrap_or(home))
    }

    fn set_busy(&self, cpu: u32, busy: bool) {
        if let Some(cpu) = self.cpu(cpu) {
            cpu.busy.store(busy, Ordering::SeqCst);
        }
    }

    /// True if `cpu` was idle; it is not taken for idle again until it has looked.
    fn claim_idle(&self, cpu: u32) -> bool {
        self.cpu(cpu).is_some_and(|cpu| {
            cpu.idle.load(Ordering::SeqCst) && cpu.idle.swap(false, Ordering::SeqCst)
        })
    }

    fn find_idle(&self, affinity: &CpuMask) -> Option<u32> {
        (0..self.cpus()).find(|&cpu| affinity.contains(cpu) && self.claim_idle(cpu))
    }

    /// An event for a vCPU: makes it runnable if it is blocked, and says whom to tell.
    ///
    /// Nothing is lost against [`Scheduler::block`]: make the event visible first, then call this.
    pub fn wake(&self, key: VcpuKey, now: u64) -> Kick {
        let Some((vcpu, home, queue)) = self.lock(key) else {
            return Kick::None;
        };
        match vcpu.state() {
            State::Running => Kick::Notice(home),
            State::Blocked => {
                vcpu.boosted.store(!vcpu.is_paused(), Ordering::Relaxed);
                vcpu.left.store(0, Ordering::Relaxed);
                vcpu.set_state(State::Runnable, now);
                self.settle_locked(key, vcpu, home, queue)
            }
            _ => Kick::None,
        }
    }

    /// Blocks a running vCPU if `may_block` says so, asked under the lock: it must look for pending events (or the end
    /// of the poll). True if it is blocked; then call [`Scheduler::pick_next`].
    pub fn block(&self, key: VcpuKey, now: u64, may_block: impl FnOnce() -> bool) -> bool {
        let Some((vcpu, _, _queue)) = self.lock(key) else {
            return false;
        };
        let blocks = vcpu.state() == State::Running && may_block();
        if blocks {
            vcpu.set_state(State::Blocked, now);
        }
        blocks
    }

    /// The running vCPU lets the others on its processor go first; then call [`Scheduler::pick_next`].
    pub fn yield_now(&self, key: VcpuKey) {
        if let Some((vcpu, _, mut queue)) = self.lock(key)
            && vcpu.state() == State::Running
        {
            queue.yielded = true;
        }
    }

    /// Pauses a vCPU; pauses nest. If it runs, it stops when its processor has rescheduled ([`Scheduler::is_on_cpu`]).
    pub fn pause(&self, key: VcpuKey, now: u64) -> Kick {
        let Some((vcpu, home, mut queue)) = self.lock(key) else {
            return Kick::None;
        };
        let pauses = vcpu.pauses.load(Ordering::Relaxed);
        vcpu.pauses
            .store(pauses.saturating_add(1), Ordering::Relaxed);
        queue.remove(self, key);
        vcpu.account(now);
        if vcpu.state() == State::Running {
            Kick::Reschedule(home)
        } else {
            Kick::None
        }
    }

    /// Undoes one pause; without one nothing happens.
    pub fn unpause(&self, key: VcpuKey, now: u64) -> Kick {
        let Some((vcpu, home, queue)) = self.lock(key) else {
            return Kick::None;
        };
        let pauses = vcpu.pauses.load(Ordering::Relaxed);
        vcpu.pauses
            .store(pauses.saturating_sub(1), Ordering::Relaxed);
        if pauses != 1 {
            return Kick::None;
        }
        vcpu.account(now);
        self.settle_locked(key, vcpu, home, queue)
    }

    /// Brings an offline vCPU up; false if it is up already.
    pub fn bring_up(&self, key: VcpuKey, now: u64) -> (bool, Kick) {
        let Some((vcpu, home, queue)) = self.lock(key) else {
            return (false, Kick::None);
        };
        if vcpu.state() != State::Offline {
            return (false, Kick::None);
        }
        vcpu.boosted.store(false, Ordering::Relaxed);
        vcpu.left.store(0, Ordering::Relaxed);
        vcpu.set_state(State::Runnable, now);
        (true, self.settle_locked(key, vcpu, home, queue))
    }

    /// Takes a vCPU down; if it runs, its processor must reschedule.
    pub fn take_down(&self, key: VcpuKey, now: u64) -> Kick {
        let Some((vcpu, home, mut queue)) = self.lock(key) else {
            return Kick::None;
        };
        queue.remove(self, key);
        let running = vcpu.state() == State::Running;
        vcpu.set_state(State::Offline, now);
        if running {
            Kick::Reschedule(home)
        } else {
            Kick::None
        }
    }

    /// True if the vCPU is up (not necessarily running).
    pub fn is_up(&self, key: VcpuKey) -> bool {
        self.lock(key)
            .is_some_and(|(vcpu, ..)| vcpu.state() != State::Offline)
    }

    /// True if the vCPU is blocked.
    pub fn is_blocked(&self, key: VcpuKey) -> bool {
        self.lock(key)
            .is_some_and(|(vcpu, ..)| vcpu.state() == State::Blocked)
    }

    /// True while a processor runs the vCPU or may still hold its registers.
    pub fn is_on_cpu(&self, key: VcpuKey) -> bool {
        self.record(key)
            .is_some_and(|vcpu| vcpu.on_cpu.load(Ordering::Acquire) != NONE)
    }

    /// The processor the vCPU runs on, ran on last, or will run on.
    pub fn home(&self, key: VcpuKey) -> u32 {
        self.record(key)
            .map_or(0, |vcpu| vcpu.home.load(Ordering::Relaxed))
    }

    /// Pauses not undone.
    pub fn pause_count(&self, key: VcpuKey) -> u32 {
        self.record(key)
            .map_or(0, |vcpu| vcpu.pauses.load(Ordering::Relaxed))
    }

    /// The vCPU's time account up to `now`.
    pub fn runstate(&self, key: VcpuKey, now: u64) -> Runstate {
        self.lock(key)
            .map_or_else(Runstate::default, |(vcpu, ..)| vcpu.runstate(now))
    }

    /// Sets the weight: the slice is 10 ms for 256 and in proportion, within 1..100 ms.
    pub fn set_weight(&self, key: VcpuKey, weight: u32) {
        if let Some((vcpu, ..)) = self.lock(key) {
            vcpu.weight.store(weight.max(1), Ordering::Relaxed);
        }
    }

    /// The weight.
    pub fn weight(&self, key: VcpuKey) -> u32 {
        self.record(key)
            .map_or(0, |vcpu| vcpu.weight.load(Ordering::Relaxed))
    }

    /// The processors the vCPU may run on.
    pub fn affinity(&self, key: VcpuKey) -> CpuMask {
        self.lock(key)
            .map_or(CpuMask::NONE, |(vcpu, ..)| vcpu.affinity())
    }

    /// Restricts a vCPU to some processors, and moves it if it is elsewhere.
    ///
    /// # Errors
    /// `EINVAL` if none of them exists, `ENOENT` if the vCPU does not.
    pub fn set_affinity(&self, key: VcpuKey, mask: &CpuMask) -> Result<Kick> {
        let target = self.allowed(mask, key.0).ok_or(Errno::EINVAL)?;
        let (vcpu, home, mut queue) = self.lock(key).ok_or(Errno::ENOENT)?;
        vcpu.set_affinity(mask);
        if mask.contains(home) {
            let waits = vcpu.queued.load(Ordering::Relaxed);
            drop(queue);
            // An idle processor may be allowed now.
            let idle = if waits { self.find_idle(mask) } else { None };
            return Ok(idle.map_or(Kick::None, Kick::Reschedule));
        }
        if vcpu.state() == State::Running {
            return Ok(Kick::Reschedule(home));
        }
        queue.remove(self, key);
        vcpu.home.store(target, Ordering::Release);
        drop(queue);
        Ok(self.settle(key))
    }

    /// True if `cpu` should call [`Scheduler::pick_next`]: its slice is over, or somebody more urgent waits.
    pub fn tick(&self, cpu: u32, now: u64) -> bool {
        let Some(state) = self.cpu(cpu) else {
            return false;
        };
        let queue = state.queue.lock();
        match queue.current.and_then(|key| self.record(key)) {
            Some(vcpu) => !self.keeps(&queue, vcpu, cpu, now),
            None => !queue.is_empty(),
        }
    }

    /// True if the current vCPU of `cpu` goes on.
    fn keeps(&self, queue: &Queue, vcpu: &Vcpu, cpu: u32, now: u64) -> bool {
        let entitled = vcpu.state() == State::Running
            && !vcpu.is_paused()
            && !queue.yielded
            && vcpu.affinity().contains(cpu);
        let preempted = queue.has_boosted()
            && !vcpu.boosted.load(Ordering::Relaxed)
            && now >= queue.protected_until;
        entitled && !preempted && now < queue.slice_end
    }

    /// Chooses what processor `cpu` runs from `now` on.
    pub fn pick_next(&self, cpu: u32, now: u64) -> Decision {
        let Some(state) = self.cpu(cpu) else {
            return Decision {
                prev: None,
                next: None,
                slice_ns: u64::MAX,
            };
        };
        let mut queue = state.queue.lock();
        let prev = queue.current;
        if let Some((key, vcpu)) = prev.and_then(|key| Some((key, self.record(key)?))) {
            if self.keeps(&queue, vcpu, cpu, now) {
                return Decision {
                    prev,
                    next: prev,
                    slice_ns: Self::slice(&queue, vcpu, now),
                };
            }
            self.put_back(&mut queue, key, vcpu, cpu, now);
        }
        let mut next = queue.pop(self, now);
        if next.is_none() {
            // Announce first, look second: whoever queues something after we looked finds us idle.
            state.idle.store(true, Ordering::SeqCst);
            drop(queue);
            let stolen = self.steal(cpu);
            queue = state.queue.lock();
            if let Some(key) = stolen {
                self.take_in(&mut queue, key, cpu);
            }
            next = queue.pop(self, now);
        }
        state.busy.store(!queue.is_empty(), Ordering::SeqCst);
        queue.current = next;
        let Some(vcpu) = next.and_then(|key| self.record(key)) else {
            return Decision {
                prev,
                next: None,
                slice_ns: u64::MAX,
            };
        };
        state.idle.store(false, Ordering::SeqCst);
        vcpu.set_state(State::Running, now);
        vcpu.on_cpu.store(cpu, Ordering::Release);
        let left = vcpu.left.swap(0, Ordering::Relaxed);
        queue.slice_end = now.saturating_add(if left == 0 { vcpu.slice() } else { left });
        Decision {
            prev,
            next,
            slice_ns: Self::slice(&queue, vcpu, now),
        }
    }

    /// How long `current` may run before the next decision.
    fn slice(queue: &Queue, vcpu: &Vcpu, now: u64) -> u64 {
        if queue.is_empty() {
            return u64::MAX;
        }
        let mut end = queue.slice_end;
        if queue.has_boosted() && !vcpu.boosted.load(Ordering::Relaxed) {
            end = end.min(queue.protected_until);
        }
        end.saturating_sub(now).max(1)
    }

    /// Takes the current vCPU off the processor and puts it where it waits, if it still wants to run.
    fn put_back(&self, queue: &mut Queue, key: VcpuKey, vcpu: &Vcpu, cpu: u32, now: u64) {
        let yielded = core::mem::replace(&mut queue.yielded, false);
        queue.current = None;
        if vcpu.state() != State::Running {
            return;
        }
        let left = queue.slice_end.saturating_sub(now);
        let interrupted = left != 0 && !yielded;
        vcpu.left
            .store(if interrupted { left } else { 0 }, Ordering::Relaxed);
        vcpu.boosted.store(false, Ordering::Relaxed);
        vcpu.set_state(State::Runnable, now);
        if vcpu.is_paused() {
            return;
        }
        let affinity = vcpu.affinity();
        if affinity.contains(cpu) {
            queue.push(self, key, interrupted);
        } else if let Some(target) = self.allowed(&affinity, key.0) {
            // It waits on no queue until its registers are saved: context_saved settles it.
            vcpu.home.store(target, Ordering::Release);
        }
    }

    /// Takes a vCPU that waits on another processor's queue and may run on `cpu`; it is then on no queue.
    fn steal(&self, cpu: u32) -> Option<VcpuKey> {
        let others = (1..self.cpus()).map(|step| (cpu + step) % self.cpus());
        for other in others {
            let Some(victim) = self.cpu(other) else {
                continue;
            };
            if !victim.busy.load(Ordering::SeqCst) {
                continue;
            }
            let mut queue = victim.queue.lock();
            let found = queue.find(self, |vcpu| {
                vcpu.on_cpu.load(Ordering::Relaxed) == NONE && vcpu.affinity().contains(cpu)
            });
            let Some(key) = found else { continue };
            queue.remove(self, key);
            if let Some(vcpu) = self.record(key) {
                vcpu.home.store(cpu, Ordering::Release);
            }
            return Some(key);
        }
        None
    }

    /// Queues a stolen vCPU unless it was paused, blocked or moved on meanwhile.
    fn take_in(&self, queue: &mut Queue, key: VcpuKey, cpu: u32) {
        let Some(vcpu) = self.record(key) else { return };
        if vcpu.home.load(Ordering::Acquire) == cpu
            && vcpu.state() == State::Runnable
            && !vcpu.is_paused()
        {
            queue.push(self, key, false);
        }
    }

    /// The registers of a vCPU that was switched away from are saved: from now on it may run elsewhere.
    pub fn context_saved(&self, key: VcpuKey) -> Kick {
        let Some((vcpu, home, queue)) = self.lock(key) else {
            return Kick::None;
        };
        if vcpu.state() == State::Running {
            return Kick::None;
        }
        vcpu.on_cpu.store(NONE, Ordering::Release);
        if !vcpu.queued.load(Ordering::Relaxed) {
            return self.settle_locked(key, vcpu, home, queue);
        }
        let affinity = vcpu.affinity();
        drop(queue);
        self.find_idle(&affinity)
            .map_or(Kick::None, Kick::Reschedule)
    }
}
