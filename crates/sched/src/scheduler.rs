// SPDX-License-Identifier: MIT OR Apache-2.0
//! The scheduler of the machine: vCPU states and parameters. Queueing and choosing are in `queueing` and `choice`.
//!
//! Locking: one lock per group of processors, never two at once; budgets inside. A vCPU's record belongs to the lock of its home
//! processor's group; to move to another group, it is taken off the old heap, given its new home, and put into the new heap
//! under the new lock. In between it is runnable and nowhere, and whoever finds it so first (`settle`) queues it.
//!
//! A vCPU whose registers a processor still holds (`on_cpu`) waits nowhere and runs nowhere else: the binary says
//! [`Scheduler::context_saved`] once a switch is complete.

use crate::cap::Budget;
use crate::group::{GROUP_CPUS, Group, Records};
use crate::heap::{Linked, Links};
use crate::mask::{CpuMask, MAX_CPUS};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering};
use crate::vcpu::{MAX_WEIGHT, NONE, Place, Runstate, State, Vcpu, VcpuKey};
use crate::virtual_time::{BEGINNING, Warp};
use alloc::boxed::Box;
use alloc::vec::Vec;
use philoxen_abi::{Errno, Result};
use spin::Once;

/// The context-switch allowance unless another is set, in nanoseconds: the paper's.
pub const DEFAULT_ALLOWANCE_NS: u64 = 5_000_000;
/// Weight of a vCPU unless another is set.
pub const DEFAULT_WEIGHT: u32 = 256;
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
    /// Its domain's budget is used up: call [`Scheduler::release`] for the vCPU at this time.
    Later(VcpuKey, u64),
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
    /// What to do about another processor.
    pub kick: Kick,
}

#[derive(Debug, Default)]
pub(crate) struct Cpu {
    /// True while it found nothing to run: others kick it when they have something.
    pub(crate) idle: AtomicBool,
}

/// The scheduler of the machine.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) cpus: Vec<Cpu>,
    pub(crate) groups: Vec<SharedGroup>,
    buckets: Vec<Once<Box<[Vcpu]>>>,
    /// Lowest slot never used, and serialises [`Scheduler::add`].
    slots: Mutex<u32>,
    allowance_ns: AtomicU64,
    /// All processors.
    pub(crate) all: CpuMask,
}

#[derive(Debug)]
pub(crate) struct SharedGroup {
    pub(crate) state: Mutex<Group>,
    /// A hint: vCPUs that wait in it.
    pub(crate) waiting: AtomicU32,
}

/// A vCPU and the lock that guards it.
pub(crate) type Locked<'a> = (&'a Vcpu, MutexGuard<'a, Group>);

impl Records for Scheduler {
    #[inline]
    fn record(&self, key: VcpuKey) -> Option<&Vcpu> {
        self.buckets
            .get((key.0 / BUCKET) as usize)?
            .get()?
            .get((key.0 % BUCKET) as usize)
    }

    fn allowance(&self) -> u64 {
        self.allowance_ns.load(Ordering::Relaxed)
    }
}

impl Linked for Scheduler {
    #[inline]
    fn links(&self, key: VcpuKey) -> Option<&Links> {
        self.record(key).map(|vcpu| &vcpu.links)
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
        let mut list = with_room(cpus)?;
        list.resize_with(cpus as usize, Cpu::default);
        let count = cpus.div_ceil(GROUP_CPUS);
        let mut groups = with_room(count)?;
        for index in 0..count {
            let first = index * GROUP_CPUS;
            let processors = (cpus - first).min(GROUP_CPUS);
            groups.push(SharedGroup {
                state: Mutex::new(Group::new(first, processors, with_room(processors)?)),
                waiting: AtomicU32::new(0),
            });
        }
        let count = max_vcpus.div_ceil(BUCKET);
        let mut buckets = with_room(count)?;
        buckets.resize_with(count as usize, Once::new);
        Ok(Self {
            cpus: list,
            groups,
            buckets,
            slots: Mutex::new(0),
            allowance_ns: AtomicU64::new(DEFAULT_ALLOWANCE_NS),
            all: CpuMask::below(cpus),
        })
    }

    /// Number of processors.
    pub fn cpus(&self) -> u32 {
        self.cpus.len() as u32
    }

    /// The context-switch allowance: how long a vCPU goes on, in nanoseconds, when another one that waited gets even
    /// with it.
    pub fn allowance_ns(&self) -> u64 {
        self.allowance()
    }

    /// Sets the context-switch allowance.
    pub fn set_allowance_ns(&self, ns: u64) {
        self.allowance_ns.store(ns, Ordering::Relaxed);
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
            let mut records = with_room(BUCKET)?;
            records.resize_with(BUCKET as usize, Vcpu::vacant);
            Ok(records.into_boxed_slice())
        })?;
        let vcpu = self.record(key).ok_or(Errno::ENOSPC)?;
        vcpu.home.store(home, Ordering::Relaxed);
        vcpu.reset(key, affinity, weight, now);
        *slots = (*slots).max(key.0.saturating_add(1));
        Ok(key)
    }

    /// Removes an offline vCPU whose context is saved.
    ///
    /// # Errors
    /// `EBUSY` if it is not offline or a processor may still hold its registers, `ENOENT` if there is none.
    pub fn remove(&self, key: VcpuKey, now: u64) -> Result<()> {
        let (vcpu, _group) = self.lock(key).ok_or(Errno::ENOENT)?;
        if vcpu.is_up() || vcpu.on_cpu.load(Ordering::Relaxed) != NONE {
            return Err(Errno::EBUSY);
        }
        vcpu.set_state(State::Vacant, now);
        Ok(())
    }

    /// The `nth` processor, counted round and round, that `mask` allows.
    pub(crate) fn allowed(&self, mask: &CpuMask, nth: u32) -> Option<u32> {
        let mut allowed = mask.among(0..self.cpus());
        let nth = (nth as usize).checked_rem(allowed.clone().count())?;
        allowed.nth(nth)
    }

    pub(crate) fn group_of(&self, cpu: u32) -> Option<&SharedGroup> {
        self.groups.get((cpu / GROUP_CPUS) as usize)
    }

    /// Locks the group of a vCPU's home processor.
    pub(crate) fn lock(&self, key: VcpuKey) -> Option<Locked<'_>> {
        let vcpu = self.record(key)?;
        loop {
            let home = vcpu.home.load(Ordering::Acquire);
            let group = self.group_of(home)?.state.lock();
            if !group.cpus().contains(&vcpu.home.load(Ordering::Acquire)) {
                continue;
            }
            if vcpu.adrift.get() {
                vcpu.adrift.set(false);
                let time = group.time_of(&vcpu.hard());
                vcpu.time.transfer(BEGINNING, time);
            }
            return (vcpu.state() != State::Vacant).then_some((vcpu, group));
        }
    }

    /// Takes a vCPU from where it waits.
    pub(crate) fn withdraw(&self, group: &mut Group, key: VcpuKey, vcpu: &Vcpu) {
        group.take(self, key, vcpu);
        self.note_waiting(group);
    }

    pub(crate) fn note_waiting(&self, group: &Group) {
        if let Some(shared) = self.group_of(group.cpus().start) {
            shared.waiting.store(group.waiting(), Ordering::SeqCst);
        }
    }

    /// An event for a vCPU: makes it runnable if it is blocked, and says whom to tell.
    ///
    /// Nothing is lost against [`Scheduler::block`]: make the event visible first, then call this.
    /// `sender` is the vCPU that runs and sent it a message, if that is what it wakes up for.
    pub fn wake(&self, key: VcpuKey, sender: Option<VcpuKey>, now: u64) -> Kick {
        let Some((vcpu, group)) = self.lock(key) else {
            return Kick::None;
        };
        match vcpu.state() {
            State::Running => Kick::Notice(vcpu.home()),
            State::Blocked => {
                vcpu.set_state(State::Runnable, now);
                self.rejoin(key, vcpu, sender, group, now)
            }
            _ => Kick::None,
        }
    }

    /// A vCPU that did not ask to run does now.
    fn rejoin<'a>(
        &'a self,
        key: VcpuKey,
        vcpu: &'a Vcpu,
        sender: Option<VcpuKey>,
        mut group: MutexGuard<'a, Group>,
        now: u64,
    ) -> Kick {
        group.join(self, vcpu, now);
        vcpu.woken.set(true);
        vcpu.sender.set(sender.map_or(NONE, |sender| sender.0));
        vcpu.time.begin_warp(now);
        self.settle(key, vcpu, group, now)
    }

    /// Blocks a running vCPU if `may_block` says so, asked under the lock: it must look for pending events (or the end
    /// of the poll). True if it is blocked; then call [`Scheduler::pick_next`].
    pub fn block(&self, key: VcpuKey, now: u64, may_block: impl FnOnce() -> bool) -> bool {
        let Some((vcpu, _group)) = self.lock(key) else {
            return false;
        };
        let blocks = vcpu.state() == State::Running && may_block();
        if blocks {
            vcpu.set_state(State::Blocked, now);
        }
        blocks
    }

    /// The running vCPU lets the first in line go before it; then call [`Scheduler::pick_next`].
    pub fn yield_now(&self, key: VcpuKey) {
        if let Some((vcpu, mut group)) = self.lock(key)
            && vcpu.state() == State::Running
            && let Some(processor) = group.processor_mut(vcpu.home())
        {
            processor.yielded = true;
        }
    }

    /// Pauses a vCPU; pauses nest. If it runs, it stops when its processor has rescheduled ([`Scheduler::is_on_cpu`]).
    pub fn pause(&self, key: VcpuKey, now: u64) -> Kick {
        let Some((vcpu, mut group)) = self.lock(key) else {
            return Kick::None;
        };
        vcpu.pauses.set(vcpu.pauses.get().saturating_add(1));
        self.withdraw(&mut group, key, vcpu);
        vcpu.account(now);
        reschedule_if_running(vcpu)
    }

    /// Undoes one pause; without one nothing happens.
    pub fn unpause(&self, key: VcpuKey, now: u64) -> Kick {
        let Some((vcpu, group)) = self.lock(key) else {
            return Kick::None;
        };
        let pauses = vcpu.pauses.get();
        vcpu.pauses.set(pauses.saturating_sub(1));
        if pauses != 1 {
            return Kick::None;
        }
        vcpu.account(now);
        if vcpu.state() != State::Runnable {
            return Kick::None;
        }
        self.rejoin(key, vcpu, None, group, now)
    }

    /// Brings an offline vCPU up; false if it is up already.
    pub fn bring_up(&self, key: VcpuKey, now: u64) -> (bool, Kick) {
        let Some((vcpu, group)) = self.lock(key) else {
            return (false, Kick::None);
        };
        if vcpu.state() != State::Offline {
            return (false, Kick::None);
        }
        vcpu.set_state(State::Runnable, now);
        (true, self.rejoin(key, vcpu, None, group, now))
    }

    /// Takes a vCPU down; if it runs, its processor must reschedule.
    pub fn take_down(&self, key: VcpuKey, now: u64) -> Kick {
        self.stop(key, State::Offline, now)
    }

    /// Takes a vCPU down for good: it can only be removed, whoever tries to bring it up at the same time.
    pub fn retire(&self, key: VcpuKey, now: u64) -> Kick {
        self.stop(key, State::Retired, now)
    }

    fn stop(&self, key: VcpuKey, to: State, now: u64) -> Kick {
        let Some((vcpu, mut group)) = self.lock(key) else {
            return Kick::None;
        };
        if vcpu.state() == State::Retired {
            return Kick::None;
        }
        self.withdraw(&mut group, key, vcpu);
        let kick = reschedule_if_running(vcpu);
        vcpu.set_state(to, now);
        kick
    }

    /// True if the vCPU is up (not necessarily running).
    pub fn is_up(&self, key: VcpuKey) -> bool {
        self.lock(key).is_some_and(|(vcpu, _)| vcpu.is_up())
    }

    /// True if the vCPU is blocked.
    pub fn is_blocked(&self, key: VcpuKey) -> bool {
        self.lock(key)
            .is_some_and(|(vcpu, _)| vcpu.state() == State::Blocked)
    }

    /// True while a processor runs the vCPU or may still hold its registers.
    pub fn is_on_cpu(&self, key: VcpuKey) -> bool {
        self.record(key)
            .is_some_and(|vcpu| vcpu.on_cpu.load(Ordering::Acquire) != NONE)
    }

    /// The processor the vCPU runs on, ran on last, or waits for.
    pub fn home(&self, key: VcpuKey) -> u32 {
        self.record(key).map_or(0, Vcpu::home)
    }

    /// Pauses not undone.
    pub fn pause_count(&self, key: VcpuKey) -> u32 {
        self.record(key).map_or(0, |vcpu| vcpu.pauses.get())
    }

    /// The vCPU's time account up to `now`.
    pub fn runstate(&self, key: VcpuKey, now: u64) -> Runstate {
        self.lock(key)
            .map_or_else(Runstate::default, |(vcpu, _)| vcpu.runstate(now))
    }

    /// Sets the weight: vCPUs that want to run do so in proportion to their weights.
    pub fn set_weight(&self, key: VcpuKey, weight: u32, now: u64) {
        if let Some((vcpu, mut group)) = self.lock(key) {
            group.charge(self, vcpu.home(), now);
            vcpu.time.set_weight(weight.min(MAX_WEIGHT));
        }
    }

    /// The weight.
    pub fn weight(&self, key: VcpuKey) -> u32 {
        self.record(key).map_or(0, |vcpu| vcpu.time.weight())
    }

    /// Sets what the vCPU may borrow.
    pub fn set_warp(&self, key: VcpuKey, warp: Warp, now: u64) -> Kick {
        let Some((vcpu, mut group)) = self.lock(key) else {
            return Kick::None;
        };
        group.charge(self, vcpu.home(), now);
        let waits = vcpu.is_queued();
        if waits {
            self.withdraw(&mut group, key, vcpu);
        }
        vcpu.time.set_warp(warp, now);
        if waits {
            return self.settle(key, vcpu, group, now);
        }
        reschedule_if_running(vcpu)
    }

    /// What the vCPU may borrow.
    pub fn warp(&self, key: VcpuKey) -> Warp {
        self.lock(key)
            .map_or_else(Warp::default, |(vcpu, _)| vcpu.time.warp())
    }

    /// Bounds what `members`, the vCPUs of a domain, get together, to `percent` of one processor; 0: no bound. Tells
    /// `follow` what to do about each.
    pub fn set_cap(
        &self,
        members: &[VcpuKey],
        percent: u32,
        now: u64,
        mut follow: impl FnMut(Kick),
    ) {
        let Some((&leader, record)) = members
            .first()
            .and_then(|leader| Some((leader, self.record(*leader)?)))
        else {
            return;
        };
        *record.budget.lock() = Budget::new(percent, now);
        for &key in members {
            let Some((vcpu, mut group)) = self.lock(key) else {
                continue;
            };
            group.charge(self, vcpu.home(), now);
            vcpu.leader.set(leader.0);
            vcpu.bounded.set(percent != 0);
            drop(group);
            follow(reschedule_if_running(vcpu));
            follow(self.release(key, now));
        }
    }

    /// The bound of a vCPU's domain in per cent of a processor, 0 if there is none.
    pub fn cap(&self, key: VcpuKey) -> u32 {
        self.record(key)
            .filter(|vcpu| vcpu.bounded.get())
            .and_then(|vcpu| self.record(VcpuKey(vcpu.leader.get())))
            .map_or(0, |leader| leader.budget.lock().percent())
    }

    /// The time of [`Kick::Later`] has come.
    pub fn release(&self, key: VcpuKey, now: u64) -> Kick {
        let Some((vcpu, mut group)) = self.lock(key) else {
            return Kick::None;
        };
        if vcpu.place() != Place::Budget {
            return Kick::None;
        }
        group.take(self, key, vcpu);
        group.join(self, vcpu, now);
        self.settle(key, vcpu, group, now)
    }

    /// The processors the vCPU is restricted to, as [`Scheduler::set_affinity`] was told.
    pub fn affinity(&self, key: VcpuKey) -> CpuMask {
        self.lock(key)
            .map_or(CpuMask::NONE, |(vcpu, _)| vcpu.asked())
    }

    /// The processors the vCPU had better run on.
    pub fn soft_affinity(&self, key: VcpuKey) -> CpuMask {
        self.lock(key)
            .map_or(CpuMask::NONE, |(vcpu, _)| vcpu.soft())
    }

    /// Restricts a vCPU to some processors of its pool, and moves it if it is elsewhere.
    ///
    /// # Errors
    /// `EINVAL` if none of them is in its pool, `ENOENT` if the vCPU does not exist.
    pub fn set_affinity(&self, key: VcpuKey, mask: &CpuMask, now: u64) -> Result<Kick> {
        let (vcpu, group) = self.lock(key).ok_or(Errno::ENOENT)?;
        let pool = vcpu.pool();
        self.restrict(key, vcpu, group, (mask, &pool), now)
    }

    /// Confines a vCPU to its pool's processors, and moves it if it is elsewhere. If it was restricted to others, it is
    /// no longer.
    ///
    /// # Errors
    /// `EINVAL` if no processor is in the pool, `ENOENT` if the vCPU does not exist.
    pub fn confine(&self, key: VcpuKey, pool: &CpuMask, now: u64) -> Result<Kick> {
        let (vcpu, group) = self.lock(key).ok_or(Errno::ENOENT)?;
        let asked = vcpu.asked();
        let keeps = self.allowed(&asked.and(pool), 0).is_some();
        let asked = if keeps { asked } else { CpuMask::ALL };
        self.restrict(key, vcpu, group, (&asked, pool), now)
    }

    fn restrict<'a>(
        &'a self,
        key: VcpuKey,
        vcpu: &'a Vcpu,
        mut group: MutexGuard<'a, Group>,
        (asked, pool): (&CpuMask, &CpuMask),
        now: u64,
    ) -> Result<Kick> {
        let hard = asked.and(pool);
        self.allowed(&hard, 0).ok_or(Errno::EINVAL)?;
        group.charge(self, vcpu.home(), now);
        let from = group.time_of(&vcpu.hard());
        vcpu.restrict(asked, pool);
        if group.cpus().any(|cpu| hard.contains(cpu)) {
            vcpu.time.transfer(from, group.time_of(&hard));
        }
        Ok(self.place_anew(key, vcpu, group, now))
    }

    /// Names the processors a vCPU had better run on; on others it runs when they have nothing else to do.
    ///
    /// # Errors
    /// `ENOENT` if the vCPU does not exist.
    pub fn set_soft_affinity(&self, key: VcpuKey, mask: &CpuMask, now: u64) -> Result<Kick> {
        let (vcpu, group) = self.lock(key).ok_or(Errno::ENOENT)?;
        vcpu.set_soft(mask);
        Ok(self.place_anew(key, vcpu, group, now))
    }

    /// After a change of what processors a vCPU may use.
    fn place_anew<'a>(
        &'a self,
        key: VcpuKey,
        vcpu: &'a Vcpu,
        mut group: MutexGuard<'a, Group>,
        now: u64,
    ) -> Kick {
        if !vcpu.is_queued() {
            return reschedule_if_running(vcpu);
        }
        self.withdraw(&mut group, key, vcpu);
        self.settle(key, vcpu, group, now)
    }
}

/// The processor of a running vCPU must choose again.
fn reschedule_if_running(vcpu: &Vcpu) -> Kick {
    if vcpu.state() == State::Running {
        Kick::Reschedule(vcpu.home())
    } else {
        Kick::None
    }
}

/// An empty list with room for `count`.
fn with_room<T>(count: u32) -> Result<Vec<T>> {
    let mut list = Vec::new();
    list.try_reserve_exact(count as usize)
        .map_err(|_| Errno::ENOMEM)?;
    Ok(list)
}
