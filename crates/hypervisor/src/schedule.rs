// SPDX-License-Identifier: MIT OR Apache-2.0
//! Joins the scheduling policy to processors and vCPUs: switches, wake-ups, blocking.
//!
//! A vCPU's private part moves as a value: out of its `parked` place when a processor takes it, back when it is switched
//! away from; only then is the scheduler told that it may run elsewhere.

use crate::cpu::{self, Cpu, RESCHEDULE, Running, load_vcpu, save_vcpu};
use crate::domain::{self, Domain};
use crate::host::{FRAMES, load_root};
use crate::vcpu::Vcpu;
use crate::{fatal, time, traps};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use philoxen_abi::{DomId, Errno, Result, VcpuId};
use philoxen_hw::cpu::{CpuId, MAX_CPUS, cpu_id};
use philoxen_hw::dev::{lapic, vectors};
use philoxen_hw::print;
use philoxen_pv::Regs;
use philoxen_sched::{
    CpuMask, DEFAULT_WEIGHT, Kick, Processor, Runstate, Scheduler, TimerKey, TimerKind, VcpuKey,
    Warp,
};
use spin::{Once, RwLock};

/// vCPUs that can exist at a time.
pub const MAX_VCPUS: u32 = 4096;
const MICROSECOND: u64 = 1_000;
/// Value of [`CURRENT`] for a processor that idles.
const NOBODY: u64 = u64::MAX;

static SCHEDULER: Once<Scheduler> = Once::new();
/// A vCPU, and the domain that is held with it.
type Held = (Arc<Domain>, VcpuId);

/// The vCPU behind each scheduler key.
static BY_KEY: RwLock<Vec<Option<Held>>> = RwLock::new(Vec::new());
/// The vCPU each processor runs, as [`pack`] has it.
static CURRENT: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(NOBODY) }; MAX_CPUS];

/// The vCPU whose page tables each processor has loaded, or loads next: also while it has blocked and may go on.
static SHOWN: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(NOBODY) }; MAX_CPUS];

/// The vCPU of each processor that sends events at this moment, by its scheduler key; [`NO_KEY`]: what happens is no message.
static SENDER: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(NO_KEY) }; MAX_CPUS];
const NO_KEY: u32 = u32::MAX;

/// Nanoseconds each processor was idle, and since when it is (0: it is not).
static IDLE_TIME: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static IDLE_SINCE: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

const fn pack(domain: DomId, vcpu: VcpuId) -> u64 {
    (domain.0 as u64) << 32 | vcpu.0 as u64
}

fn scheduler() -> &'static Scheduler {
    match SCHEDULER.get() {
        Some(scheduler) => scheduler,
        None => fatal::bug("the scheduler is used before it is made"),
    }
}

/// Makes the scheduler for processors `0..cpus`, with a context-switch allowance in microseconds if one is given.
///
/// # Errors
/// `EINVAL`, `ENOMEM`.
pub fn init(cpus: u32, allowance_us: Option<u32>) -> Result<()> {
    let scheduler = SCHEDULER.try_call_once(|| Scheduler::new(cpus, MAX_VCPUS))?;
    if let Some(us) = allowance_us {
        scheduler.set_allowance_ns(u64::from(us) * MICROSECOND);
    }
    Ok(())
}

/// The context-switch allowance, in microseconds.
pub fn allowance_us() -> u32 {
    (scheduler().allowance_ns() / MICROSECOND) as u32
}

/// Sets the context-switch allowance.
pub fn set_allowance_us(us: u32) {
    scheduler().set_allowance_ns(u64::from(us) * MICROSECOND);
}

/// A scheduler key for a vCPU that is being made, with room for its timers and in [`register`].
///
/// # Errors
/// `ENOSPC` if there are too many vCPUs, `ENOMEM`.
pub fn new_key() -> Result<VcpuKey> {
    let key = scheduler().add(&CpuMask::ALL, DEFAULT_WEIGHT, time::now())?;
    let room = time::reserve(key).and_then(|()| {
        let mut table = BY_KEY.write();
        let more = (key.0 as usize + 1).saturating_sub(table.len());
        table.try_reserve(more).map_err(|_| Errno::ENOMEM)?;
        if more != 0 {
            table.resize_with(key.0 as usize + 1, || None);
        }
        Ok(())
    });
    match room {
        Ok(()) => Ok(key),
        Err(errno) => {
            release_key(key);
            Err(errno)
        }
    }
}

/// Ties the keys of a new domain's vCPUs to them.
pub fn register(domain: &Arc<Domain>) {
    let mut table = BY_KEY.write();
    for vcpu in domain.vcpus() {
        if let Some(slot) = table.get_mut(vcpu.key.0 as usize) {
            *slot = Some((domain.clone(), vcpu.id));
        }
    }
}

/// Stops a dying domain's vCPUs for good; false while a processor still holds the registers of one.
pub fn unregister(domain: &Arc<Domain>) -> bool {
    let now = time::now();
    let mut stopped = true;
    for vcpu in domain.vcpus() {
        follow(scheduler().retire(vcpu.key, now));
        stopped &= !is_on_cpu(vcpu);
    }
    if stopped {
        for vcpu in domain.vcpus() {
            let held = BY_KEY
                .write()
                .get_mut(vcpu.key.0 as usize)
                .and_then(Option::take);
            // Dropped without the lock.
            drop(held);
        }
    }
    stopped
}

/// Gives back the key of a vCPU that nobody can name any more, and that does not run.
pub fn release_key(key: VcpuKey) {
    time::forget(key);
    if scheduler().remove(key, time::now()).is_err() {
        fatal::bug("a vCPU that runs is taken from the scheduler")
    }
}

/// The vCPU behind a key.
pub fn vcpu_of(key: VcpuKey) -> Option<(Arc<Domain>, VcpuId)> {
    BY_KEY.read().get(key.0 as usize)?.clone()
}

/// Carries out what the scheduler asks for after an operation.
fn follow(kick: Kick) {
    let cpu = match kick {
        Kick::None => return,
        Kick::Reschedule(cpu) => {
            cpu::request(cpu as CpuId, RESCHEDULE);
            cpu as CpuId
        }
        Kick::Notice(cpu) => cpu as CpuId,
        Kick::Later(key, at) => {
            time::set(TimerKey::new(key, TimerKind::Budget), at);
            return;
        }
    };
    if cpu != cpu_id() {
        lapic::send_ipi(crate::smp::apic_id(cpu), vectors::EVENT_CHECK);
    }
}

/// A vCPU has an event: unblock it, or make the processor that runs it look.
#[inline]
pub fn kick(dom: DomId, vcpu: VcpuId) {
    let cpu = cpu_id();
    let current = CURRENT
        .get(cpu)
        .map_or(NOBODY, |current| current.load(Ordering::Relaxed));
    // The running vCPU's events are looked at on the way out anyway.
    if current == pack(dom, vcpu) {
        return;
    }
    if let Some(domain) = domain::find(dom)
        && let Some(vcpu) = domain.vcpu(vcpu)
    {
        // One that calls another vCPU of its own domain may wait for it without letting go of the processor.
        let sender = SENDER
            .get(cpu)
            .map(|sender| sender.load(Ordering::Relaxed))
            .filter(|&sender| sender != NO_KEY && current >> 32 != u64::from(dom.0));
        follow(scheduler().wake(vcpu.key, sender.map(VcpuKey), time::now()));
    }
}

/// Does `work`, a request of the running vCPU to send events: whom they wake up, it has a message for.
#[inline]
pub fn sending<R>(running: &Running, work: impl FnOnce() -> R) -> R {
    let Some(sender) = SENDER.get(cpu_id()) else {
        return work();
    };
    sender.store(running.vcpu.key.0, Ordering::Relaxed);
    let result = work();
    sender.store(NO_KEY, Ordering::Relaxed);
    result
}

/// Sends a vCPU an NMI. One that comes while another is handled waits until the vCPU next has an event or a switch.
pub fn send_nmi(vcpu: &Vcpu) {
    vcpu.nmi.store(true, Ordering::Release);
    follow(scheduler().wake(vcpu.key, None, time::now()));
    // If it runs, its processor looks for NMIs when it has other work.
    if scheduler().is_on_cpu(vcpu.key) {
        follow(Kick::Reschedule(scheduler().home(vcpu.key)));
    }
}

/// Blocks the running vCPU unless an upcall is due (or its poll has ended, if it polls).
pub fn block(running: &Running, polling: bool) {
    let events = running.events();
    let nmi = || running.vcpu.nmi.load(Ordering::Acquire) && running.state.pv.takes_nmi();
    let may_block = || !nmi() && !events.upcall_due(&FRAMES) && (!polling || events.is_polling());
    if scheduler().block(running.vcpu().key, time::now(), may_block) {
        // From here on an event must wake it: the way out does not look at it any more.
        set(&CURRENT, cpu_id(), NOBODY);
        cpu::request(cpu_id(), RESCHEDULE);
    } else if nmi() {
        // One that came during another's handler: the way out looks for it when there is other work.
        cpu::request(cpu_id(), RESCHEDULE);
    }
}

/// Notes which vCPU a processor runs, or shows.
fn set(which: &[AtomicU64; MAX_CPUS], cpu: CpuId, vcpu: u64) {
    if let Some(place) = which.get(cpu) {
        place.store(vcpu, Ordering::Release);
    }
}

/// Makes the other processors that run these vCPUs of a domain (by bit; those from 64 on always) drop what they know of its
/// page tables. A vCPU that does not run loads its root, and so forgets, before it does.
pub fn flush_others(domain: DomId, vcpus: u64) {
    if crate::smp::cpus() == 1 {
        return;
    }
    let me = cpu_id();
    crate::smp::flush_since(philoxen_hw::machine::tlb_stamp(), |cpu| {
        let shown = SHOWN
            .get(cpu)
            .map_or(NOBODY, |shown| shown.load(Ordering::Acquire));
        let vcpu = shown as u32;
        cpu != me
            && shown >> 32 == u64::from(domain.0)
            && vcpus.checked_shr(vcpu).is_none_or(|bits| bits & 1 != 0)
    });
}

/// Lets others run before the running vCPU.
pub fn yield_now(running: &Running) {
    scheduler().yield_now(running.vcpu().key);
    cpu::request(cpu_id(), RESCHEDULE);
}

/// Pauses a vCPU; pauses nest.
pub fn pause(domain: &Domain, vcpu: VcpuId) {
    if let Some(vcpu) = domain.vcpu(vcpu) {
        follow(scheduler().pause(vcpu.key, time::now()));
    }
}

/// Undoes one pause of a vCPU.
pub fn unpause(domain: &Domain, vcpu: VcpuId) {
    if let Some(vcpu) = domain.vcpu(vcpu) {
        follow(scheduler().unpause(vcpu.key, time::now()));
    }
}

/// Pauses each vCPU of a domain.
pub fn pause_all(domain: &Domain) {
    for vcpu in domain.vcpus() {
        pause(domain, vcpu.id);
    }
}

/// Undoes one pause of each vCPU of a domain.
pub fn unpause_all(domain: &Domain) {
    for vcpu in domain.vcpus() {
        unpause(domain, vcpu.id);
    }
}

/// True while a processor runs the vCPU or may still hold its registers.
pub fn is_on_cpu(vcpu: &Vcpu) -> bool {
    scheduler().is_on_cpu(vcpu.key)
}

/// True if the vCPU waits for an event.
pub fn is_blocked(vcpu: &Vcpu) -> bool {
    scheduler().is_blocked(vcpu.key)
}

/// The processor that the vCPU ran on last, or will run on.
pub fn home(vcpu: &Vcpu) -> u32 {
    scheduler().home(vcpu.key)
}

/// The processors that the vCPU is restricted to.
pub fn affinity(vcpu: &Vcpu) -> CpuMask {
    scheduler().affinity(vcpu.key)
}

/// Restricts a vCPU to some processors of its domain's pool.
///
/// # Errors
/// `EINVAL` if none of them is in it.
pub fn set_affinity(vcpu: &Vcpu, mask: &CpuMask) -> Result<()> {
    scheduler()
        .set_affinity(vcpu.key, mask, time::now())
        .map(follow)
}

/// Confines a domain's vCPUs to some processors.
pub fn confine(domain: &Domain, pool: &CpuMask) {
    for vcpu in domain.vcpus() {
        if let Ok(kick) = scheduler().confine(vcpu.key, pool, time::now()) {
            follow(kick);
        }
    }
}

/// The processors that the vCPU had better run on.
pub fn soft_affinity(vcpu: &Vcpu) -> CpuMask {
    scheduler().soft_affinity(vcpu.key)
}

/// Names the processors that a vCPU had better run on.
///
/// # Errors
/// `ENOENT` if the scheduler does not know it.
pub fn set_soft_affinity(vcpu: &Vcpu, mask: &CpuMask) -> Result<()> {
    scheduler()
        .set_soft_affinity(vcpu.key, mask, time::now())
        .map(follow)
}

/// Sets the weight of each vCPU of a domain, and the bound of what they get together in per cent of a processor (0: none).
pub fn set_share(domain: &Domain, weight: u32, cap: u32) {
    let now = time::now();
    let keys: Vec<VcpuKey> = domain.vcpus().iter().map(|vcpu| vcpu.key).collect();
    for &key in &keys {
        scheduler().set_weight(key, weight, now);
    }
    scheduler().set_cap(&keys, cap, now, follow);
}

/// What the vCPUs of a domain may borrow.
pub fn warp(domain: &Domain) -> Warp {
    let first = domain.vcpus().first();
    first.map_or_else(Warp::default, |vcpu| scheduler().warp(vcpu.key))
}

/// Sets what each vCPU of a domain may borrow.
pub fn set_warp(domain: &Domain, warp: Warp) {
    let now = time::now();
    for vcpu in domain.vcpus() {
        follow(scheduler().set_warp(vcpu.key, warp, now));
    }
}

/// Writes the run queues to the console.
pub fn show() {
    let (scheduler, now) = (scheduler(), time::now());
    print!(
        "borrowed virtual time, context-switch allowance {} us",
        allowance_us()
    );
    for cpu in 0..scheduler.cpus() {
        let Some(view) = scheduler.processor(cpu) else {
            continue;
        };
        let runs = view.current.and_then(vcpu_of);
        let runs = runs.map(|(domain, id)| (domain.id.0, id.0));
        let choice =
            (view.slice_end != u64::MAX).then(|| view.slice_end.saturating_sub(now) / MICROSECOND);
        print!(
            "cpu{cpu}: runs (domain, vCPU) {runs:?}, virtual {} us, chooses in (us) {choice:?}; waiting: {} here, {} in its group",
            view.virtual_ns / MICROSECOND,
            view.own,
            view.shared
        );
    }
    for domain in domain::all() {
        let warp = warp(&domain);
        for vcpu in domain.vcpus() {
            let Some(view) = scheduler.vcpu(vcpu.key) else {
                continue;
            };
            print!(
                "d{}v{}: virtual {} us, warped {}, waits {}, may run on {}, weight {}, cap {}, warp (value, limit, unwarp) {} {} {} us",
                domain.id.0,
                vcpu.id.0,
                view.virtual_ns / MICROSECOND,
                view.warped,
                view.waits,
                scheduler.affinity(vcpu.key),
                scheduler.weight(vcpu.key),
                scheduler.cap(vcpu.key),
                warp.value_ns / MICROSECOND,
                warp.limit_ns / MICROSECOND,
                warp.unwarp_ns / MICROSECOND
            );
        }
    }
}

/// A vCPU's domain may run again.
pub fn release(key: VcpuKey) {
    follow(scheduler().release(key, time::now()));
}

/// Brings a vCPU up; false if it is up already.
pub fn bring_up(domain: &Domain, vcpu: VcpuId) -> bool {
    let Some(vcpu) = domain.vcpu(vcpu) else {
        return false;
    };
    let (done, kick) = scheduler().bring_up(vcpu.key, time::now());
    follow(kick);
    done
}

/// Takes a vCPU down.
pub fn take_down(domain: &Domain, vcpu: VcpuId) {
    if let Some(vcpu) = domain.vcpu(vcpu) {
        follow(scheduler().take_down(vcpu.key, time::now()));
    }
}

/// True if a vCPU is up.
pub fn is_up(domain: &Domain, vcpu: VcpuId) -> bool {
    domain
        .vcpu(vcpu)
        .is_some_and(|vcpu| scheduler().is_up(vcpu.key))
}

/// Time account of a vCPU.
pub fn runstate(domain: &Domain, vcpu: VcpuId) -> Option<Runstate> {
    Some(scheduler().runstate(domain.vcpu(vcpu)?.key, time::now()))
}

/// Nanoseconds that processor `cpu` had nothing to run.
pub fn idle_time(cpu: CpuId) -> u64 {
    let [Some(total), Some(since)] = [IDLE_TIME.get(cpu), IDLE_SINCE.get(cpu)] else {
        return 0;
    };
    let current = match since.load(Ordering::Relaxed) {
        0 => 0,
        since => time::now().saturating_sub(since),
    };
    total.load(Ordering::Relaxed).saturating_add(current)
}

/// Keeps the account of idle time.
fn account_idle(cpu: CpuId, idle: bool) {
    let [Some(total), Some(since)] = [IDLE_TIME.get(cpu), IDLE_SINCE.get(cpu)] else {
        return;
    };
    let now = time::now();
    let began = since.swap(if idle { now } else { 0 }, Ordering::Relaxed);
    if began != 0 {
        total.fetch_add(now.saturating_sub(began), Ordering::Relaxed);
    }
}

/// True if `cpu` has a reason to choose anew after a timer interrupt.
pub fn tick(cpu: CpuId) -> bool {
    scheduler().tick(cpu as u32, time::now())
}

/// A processor with the registers that are on its stack.
struct Switching<'a> {
    cpu: &'a mut Cpu,
    regs: &'a mut Regs,
}

impl Processor for Switching<'_> {
    fn number(&self) -> u32 {
        self.cpu.id as u32
    }

    fn now(&self) -> u64 {
        time::now()
    }

    fn is_loaded(&self) -> bool {
        self.cpu.running.is_some()
    }

    fn change(&mut self, next: Option<VcpuKey>) {
        leave(self.cpu, self.regs);
        match next {
            Some(next) => enter(self.cpu, self.regs, next),
            None => {
                philoxen_hw::machine::load_root(None);
                set(&SHOWN, self.cpu.id, NOBODY);
            }
        }
        account_idle(self.cpu.id, next.is_none());
    }

    fn left(&mut self, key: VcpuKey) {
        time::cancel(TimerKey::new(key, TimerKind::Slice));
    }

    fn follow(&mut self, kick: Kick) {
        follow(kick);
    }
}

/// Lets the policy choose, and changes to what it chose. Without a vCPU to run, `cpu.running` is empty afterwards.
pub fn switch(cpu: &mut Cpu, regs: &mut Regs) {
    let (next, slice_ns) = scheduler().switch(&mut Switching { cpu, regs });
    if let Some(running) = &cpu.running {
        // It may have blocked and been woken up meanwhile.
        set(&CURRENT, cpu.id, pack(running.domain.id, running.id));
    }
    if let Some(next) = next {
        let key = TimerKey::new(next, TimerKind::Slice);
        if slice_ns == u64::MAX {
            time::cancel(key);
        } else {
            time::set(key, time::now().saturating_add(slice_ns));
        }
    }
}

/// Puts the running vCPU, if any, back into its place.
fn leave(cpu: &mut Cpu, regs: &Regs) {
    let Some(mut running) = cpu.running.take() else {
        return;
    };
    if !running.state.pv.in_kernel {
        load_root(running.vcpu(), true);
    }
    time::write_runstate(&running);
    save_vcpu(&mut running);
    running.state.regs = *regs;
    set(&CURRENT, cpu.id, NOBODY);
    let Running { vcpu, state, .. } = running;
    *vcpu.parked.lock() = Some(state);
}

/// Makes this processor run the vCPU behind `key`.
fn enter(cpu: &mut Cpu, regs: &mut Regs, key: VcpuKey) {
    let Some((domain, id)) = vcpu_of(key) else {
        fatal::bug("the scheduler chose a vCPU that is not there")
    };
    let Some(vcpu) = domain.vcpu(id).cloned() else {
        fatal::bug("the scheduler chose a vCPU that its domain does not have")
    };
    let Some(state) = vcpu.parked.lock().take() else {
        fatal::bug("the scheduler chose a vCPU whose registers are elsewhere")
    };
    set(&CURRENT, cpu.id, pack(domain.id, id));
    // Before its root is loaded: a flush either finds it here or comes before the load.
    set(&SHOWN, cpu.id, pack(domain.id, id));
    time::adopt(cpu.id, key);
    *regs = state.regs;
    let running = cpu.running.insert(Running::new(domain, vcpu, state));
    running.domain.events.end_poll(id);
    load_root(running.vcpu(), true);
    time::write_runstate(running);
    time::renew(running);
    if !load_vcpu(running) {
        let wanted = running.state.segments.selectors;
        traps::failsafe(regs, cpu, Some(wanted));
    }
}
