// SPDX-License-Identifier: MIT OR Apache-2.0
//! System time, the timers of vCPUs, and the records that show time to guests.
//!
//! The clock is one linear function of the TSC, fixed at boot, so a guest's time record is written once per place and
//! stays right. Where counters of processors differ, each reads its own corrected by an offset, and a vCPU's records are written anew
//! when it comes to a processor. Each processor has a queue of deadlines and arms its local timer for the first.
//!
//! All deadlines of a vCPU are in one queue, its *home*: that of the processor it ran on last. The home changes under
//! the lock of the old one; whoever locks a home looks again whether it still is one.

use crate::cpu::{self, Running, TIMER};
use crate::domain::Domain;
use crate::host::{FRAMES, Hv};
use crate::{fatal, schedule, smp};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use philoxen_abi::event::virq;
use philoxen_abi::shared::{PVCLOCK_TSC_STABLE, shared_info};
use philoxen_abi::{GuestMemory, GuestVa, Result, VcpuId};
use philoxen_domain::clock::{Clock, SECOND, Scale, time_record};
use philoxen_evtchn::Frames;
use philoxen_hw::cpu::{CpuId, MAX_CPUS, asm, cpu_id, guest::LoadedGuest};
use philoxen_hw::dev::{lapic, timer, vectors};
use philoxen_hw::print;
use philoxen_sched::{TimerKey, TimerKind, TimerQueue, VcpuKey};
use spin::{Mutex, MutexGuard, Once};

/// Top bit of `state_entry_time`: the run-state record is being written (`XEN_RUNSTATE_UPDATE`, xen/vcpu.h).
const RUNSTATE_UPDATE: u64 = 1 << 63;
/// `VMASST_TYPE_runstate_update_flag`.
const ASSIST_RUNSTATE_UPDATE: u32 = 5;

static CLOCK: Once<Clock> = Once::new();
static QUEUES: [Mutex<TimerQueue>; MAX_CPUS] = [const { Mutex::new(TimerQueue::new()) }; MAX_CPUS];
/// Processor whose queue has a vCPU's deadlines.
static HOME: [AtomicU32; schedule::MAX_VCPUS as usize] =
    [const { AtomicU32::new(0) }; schedule::MAX_VCPUS as usize];
/// Ticks that must be added to each processor's counter to agree with processor 0's, and whether any must.
static OFFSETS: [AtomicI64; MAX_CPUS] = [const { AtomicI64::new(0) }; MAX_CPUS];
static SKEWED: AtomicBool = AtomicBool::new(false);
/// Seconds and nanoseconds of Unix time at system time 0.
static WALL: Mutex<(u64, u32)> = Mutex::new((0, 0));
/// How much later than its time a timer interrupt is taken for lost.
const LOST_AFTER_NS: u64 = 20_000_000;
/// Deadline each processor's timer is armed for, to leave it alone when nothing changes.
static ARMED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; MAX_CPUS];

fn clock() -> &'static Clock {
    match CLOCK.get() {
        Some(clock) => clock,
        None => fatal::bug("the clock is read before it is set"),
    }
}

/// Starts the clock: system time counts from the hypervisor's first instruction.
pub fn init(entry_tsc: u64, tsc_hz: u64) {
    CLOCK.call_once(|| Clock {
        base_tsc: entry_tsc,
        base_ns: 0,
        scale: Scale::from_frequency(tsc_hz),
    });
    let unix = philoxen_hw::dev::wall_clock();
    let now = now();
    *WALL.lock() = (unix.saturating_sub(now / SECOND), 0);
}

/// Ticks that are to be added to this processor's counter.
#[inline]
fn offset() -> i64 {
    if SKEWED.load(Ordering::Relaxed) {
        OFFSETS
            .get(cpu_id())
            .map_or(0, |offset| offset.load(Ordering::Relaxed))
    } else {
        0
    }
}

/// Says how many ticks processor `cpu`'s counter is behind processor 0's. Before it runs guests.
pub fn set_offset(cpu: CpuId, ticks: i64) {
    if let Some(offset) = OFFSETS.get(cpu) {
        offset.store(ticks, Ordering::Relaxed);
        SKEWED.store(true, Ordering::Release);
    }
}

/// True if guests may compare time-stamp counters of any two processors.
pub fn counters_agree() -> bool {
    !SKEWED.load(Ordering::Relaxed)
}

/// System time in nanoseconds.
#[inline]
pub fn now() -> u64 {
    clock().at(asm::rdtsc().wrapping_add_signed(offset()))
}

/// The time record for a vCPU on this processor.
fn record() -> [u64; 3] {
    let flags = if counters_agree() {
        PVCLOCK_TSC_STABLE
    } else {
        0
    };
    let tsc = asm::rdtsc();
    let [_, time, rate] = time_record(clock(), tsc.wrapping_add_signed(offset()), flags);
    [tsc, time, rate]
}

/// Unix time at system time 0: seconds and nanoseconds.
pub fn wall_clock() -> (u64, u32) {
    *WALL.lock()
}

/// Sets the wall clock: it was `seconds`.`nanoseconds` at system time `system_time`.
pub fn set_wall_clock(seconds: u64, nanoseconds: u32, system_time: u64) {
    let total = u128::from(seconds) * u128::from(SECOND) + u128::from(nanoseconds);
    let base = total.saturating_sub(u128::from(system_time));
    let second = u128::from(SECOND);
    *WALL.lock() = ((base / second) as u64, (base % second) as u32);
    for domain in crate::domain::all() {
        write_wall_clock(&domain);
    }
}

fn queue(cpu: CpuId) -> &'static Mutex<TimerQueue> {
    match QUEUES.get(cpu) {
        Some(queue) => queue,
        None => fatal::bug("timer queue of a processor that cannot exist"),
    }
}

/// Makes room for a new vCPU's timers on every processor.
///
/// # Errors
/// `ENOMEM`.
pub fn reserve(key: VcpuKey) -> Result<()> {
    if let Some(home) = HOME.get(key.0 as usize) {
        home.store(0, Ordering::Release);
    }
    QUEUES
        .iter()
        .take(smp::cpus())
        .try_for_each(|queue| queue.lock().reserve(key))
}

/// Locks the queue that has a vCPU's deadlines.
fn lock_home(vcpu: VcpuKey) -> (CpuId, MutexGuard<'static, TimerQueue>) {
    let Some(home) = HOME.get(vcpu.0 as usize) else {
        fatal::bug("timers of a vCPU that cannot exist")
    };
    loop {
        let cpu = home.load(Ordering::Acquire);
        let queue = queue(cpu as CpuId).lock();
        if home.load(Ordering::Acquire) == cpu {
            return (cpu as CpuId, queue);
        }
    }
}

/// Sets a deadline.
pub fn set(key: TimerKey, deadline: u64) {
    let (home, mut queue) = lock_home(key.vcpu());
    queue.set(key, deadline);
    if home == cpu_id() {
        arm(home, &queue);
    } else if queue.next_deadline() == Some(deadline) {
        drop(queue);
        cpu::request(home, TIMER);
        lapic::send_ipi(smp::apic_id(home), vectors::EVENT_CHECK);
    }
}

/// Cancels a deadline.
pub fn cancel(key: TimerKey) {
    // The timer may come once for nothing; arming it anew for every cancellation would cost more.
    lock_home(key.vcpu()).1.cancel(key);
}

/// A vCPU begins to run on this processor, `cpu`: its deadlines come along.
#[inline]
pub fn adopt(cpu: CpuId, vcpu: VcpuKey) {
    let home = HOME.get(vcpu.0 as usize);
    if home.is_some_and(|home| home.load(Ordering::Acquire) != cpu as u32) {
        move_home(cpu, vcpu);
    }
}

#[cold]
fn move_home(cpu: CpuId, vcpu: VcpuKey) {
    let mut taken = ArrayVec::<(TimerKey, u64), { TimerKind::ALL.len() }>::new();
    {
        let (_, mut old) = lock_home(vcpu);
        let keys = TimerKind::ALL.map(|kind| TimerKey::new(vcpu, kind));
        taken.extend(
            keys.into_iter()
                .filter_map(|key| Some((key, old.cancel(key)?))),
        );
        if let Some(home) = HOME.get(vcpu.0 as usize) {
            home.store(cpu as u32, Ordering::Release);
        }
    }
    let mut new = queue(cpu).lock();
    for (key, deadline) in taken {
        // One that was set between the two locks is newer.
        if new.deadline(key).is_none() {
            new.set(key, deadline);
        }
    }
    arm(cpu, &new);
}

/// Cancels all deadlines of a vCPU that will not run again.
pub fn forget(vcpu: VcpuKey) {
    for queue in QUEUES.iter().take(smp::cpus()) {
        let mut queue = queue.lock();
        for kind in TimerKind::ALL {
            queue.cancel(TimerKey::new(vcpu, kind));
        }
    }
}

/// The deadline of a vCPU's timer, whichever processor keeps it.
pub fn deadline(vcpu: VcpuKey, kind: TimerKind) -> Option<u64> {
    QUEUES
        .iter()
        .find_map(|queue| queue.lock().deadline(TimerKey::new(vcpu, kind)))
}

/// Writes to the console what each processor's timer is armed for, and its first deadline.
pub fn show() {
    let now = now();
    let left = |at: u64| (at != u64::MAX).then(|| at.wrapping_sub(now) as i64 / 1000);
    for (cpu, (queue, armed)) in QUEUES.iter().zip(&ARMED).enumerate().take(smp::cpus()) {
        let (count, first) = {
            let queue = queue.lock();
            (queue.len(), queue.next_deadline())
        };
        print!(
            "cpu{cpu}: {count} deadlines, the first in (us) {:?}, timer armed for {:?}",
            first.and_then(left),
            left(armed.load(Ordering::Relaxed))
        );
    }
}

/// Arms this processor's timer for its first deadline, unless it is armed for that or an earlier one already. One that
/// should have come long ago is not believed: on an emulated machine an interrupt was seen to get lost, and whoever sleeps
/// would sleep for good.
fn arm(cpu: CpuId, queue: &TimerQueue) {
    let Some(armed) = ARMED.get(cpu) else { return };
    let next = queue.next_deadline().unwrap_or(u64::MAX);
    let armed_for = armed.load(Ordering::Relaxed);
    let lost = || armed_for.saturating_add(LOST_AFTER_NS) < now();
    if next < armed_for || (next != u64::MAX && lost()) {
        armed.store(next, Ordering::Relaxed);
        timer::arm(tsc_at(next).saturating_add_signed(offset().saturating_neg()));
    }
}

/// Processor 0's counter value at which system time is `ns` (rounded up).
fn tsc_at(ns: u64) -> u64 {
    clock().reaches(ns)
}

/// The timer interrupt came: leaves the work for the way out.
pub fn interrupt(cpu: CpuId) {
    if let Some(armed) = ARMED.get(cpu) {
        armed.store(u64::MAX, Ordering::Relaxed);
    }
    cpu::request(cpu, TIMER);
}

/// Does what is due on this processor and arms its timer again.
pub fn run_timers(cpu: CpuId) {
    let now = now();
    loop {
        let expired = queue(cpu).lock().pop_expired(now);
        let Some(key) = expired else { break };
        expire(cpu, key, now);
    }
    if schedule::tick(cpu) {
        cpu::request(cpu, cpu::RESCHEDULE);
    }
    arm(cpu, &queue(cpu).lock());
}

fn expire(cpu: CpuId, key: TimerKey, now: u64) {
    let Some((domain, id)) = schedule::vcpu_of(key.vcpu()) else {
        return;
    };
    match key.kind() {
        TimerKind::Singleshot => domain.events.raise_virq(&Hv, id, virq::TIMER),
        TimerKind::Periodic => {
            domain.events.raise_virq(&Hv, id, virq::TIMER);
            let period = domain
                .vcpu(id)
                .map_or(0, |vcpu| vcpu.period.load(Ordering::Relaxed));
            if period != 0 {
                set(key, now.saturating_add(period));
            }
        }
        TimerKind::Poll => {
            domain.events.end_poll(id);
            schedule::kick(domain.id, id);
        }
        TimerKind::Slice => cpu::request(cpu, cpu::RESCHEDULE),
        TimerKind::Watchdog => crate::watchdog::check(&domain, now),
        TimerKind::Budget => schedule::release(key.vcpu()),
    }
}

/// Writes the time record of a vCPU into its `vcpu_info`.
pub fn write_time(domain: &Domain, id: VcpuId) {
    let Some(info) = domain
        .events
        .vcpu(id)
        .and_then(|events| events.info(&FRAMES))
    else {
        return;
    };
    let [version, tsc, time, rate] = info.time();
    let record = record();
    // An odd version tells readers to wait.
    let old = version.load(Ordering::Relaxed) as u32;
    version.store(u64::from(old.wrapping_add(1) | 1), Ordering::SeqCst);
    for (place, value) in [tsc, time, rate].into_iter().zip(record) {
        place.store(value, Ordering::SeqCst);
    }
    version.store(
        u64::from((old.wrapping_add(1) | 1).wrapping_add(1)),
        Ordering::SeqCst,
    );
}

/// Writes the secondary time record (`VCPUOP_register_vcpu_time_memory_area`) of the running vCPU, whose kernel's page
/// tables are loaded.
pub fn write_time_area(running: &Running) {
    let va = GuestVa(running.vcpu().time_area.load(Ordering::Relaxed));
    if va.is_null() {
        return;
    }
    let [tsc, time, rate] = record();
    // The whole record changes between an odd and an even version, as in `vcpu_info`.
    let steps: [(u64, u64); 5] = [(0, 1), (8, tsc), (16, time), (24, rate), (0, 2)];
    for (offset, value) in steps {
        if LoadedGuest.write(va.add(offset), &value).is_err() {
            return;
        }
    }
}

/// A vCPU came to this processor: its time records must be about this counter. Its kernel's page tables are loaded.
pub fn renew(running: &Running) {
    if !counters_agree() {
        write_time(&running.domain, running.id);
        write_time_area(running);
    }
}

/// Writes the run-state record of the running vCPU, whose kernel's page tables are loaded. A fault is the guest's
/// business: the record stays old.
pub fn write_runstate(running: &Running) {
    let va = GuestVa(running.vcpu().runstate_area.load(Ordering::Relaxed));
    if va.is_null() {
        return;
    }
    let Some(account) = schedule::runstate(&running.domain, running.id) else {
        return;
    };
    let announce = running.domain.assist(ASSIST_RUNSTATE_UPDATE);
    if announce
        && LoadedGuest
            .write(va.add(8), &(account.entered | RUNSTATE_UPDATE))
            .is_err()
    {
        return;
    }
    let entered = if announce {
        account.entered | RUNSTATE_UPDATE
    } else {
        account.entered
    };
    let [running_ns, runnable, blocked, offline] = account.time;
    let record = [
        u64::from(account.state),
        entered,
        running_ns,
        runnable,
        blocked,
        offline,
    ];
    if LoadedGuest.write(va, &record).is_ok() && announce {
        let _ = LoadedGuest.write(va.add(8), &account.entered);
    }
}

/// Writes the wall clock, as far off as the toolstack wants it, into a domain's `shared_info`.
pub fn write_wall_clock(domain: &Domain) {
    let (seconds, nanoseconds) = wall_clock();
    let seconds = seconds.saturating_add_signed(domain.tool.time_offset.load(Ordering::Relaxed));
    let words = FRAMES.words(domain.shared_info);
    let [Some(low), Some(high)] =
        [shared_info::WALLCLOCK, shared_info::WALLCLOCK_NSEC].map(|offset| words.get(offset / 8))
    else {
        return;
    };
    let version = low.load(Ordering::Relaxed) as u32;
    let busy = version.wrapping_add(1) | 1;
    low.store(u64::from(busy) | seconds << 32, Ordering::SeqCst);
    high.store(
        u64::from(nanoseconds) | seconds >> 32 << 32,
        Ordering::SeqCst,
    );
    low.store(
        u64::from(busy.wrapping_add(1)) | seconds << 32,
        Ordering::SeqCst,
    );
}
