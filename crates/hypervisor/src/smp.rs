// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processors in use: starting them, flushing their TLBs and caches, stopping them.
//!
//! Processors are numbered as they came up, without gaps; 0 is the boot processor. A processor waits with interrupts off for no
//! other but by [`flush_since`] and [`flush_caches`], which the other answers at any instruction (`hw::cpu::nmi`), and by spin locks.

use crate::cpu::{self, Cpu};
use crate::time;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use philoxen_hw::boot::BootInfo;
use philoxen_hw::cpu::start::Starter;
use philoxen_hw::cpu::{
    CpuId, MAX_CPUS, asm, cpu_id, cpu_id_or_boot, enter_first_guest, nmi, percpu,
};
use philoxen_hw::dev::{self, lapic, timer, vectors};
use philoxen_hw::{machine, warn};
use spin::Mutex;

/// Processors in use.
static COUNT: AtomicUsize = AtomicUsize::new(1);
/// Local APIC identifier of each but the first.
static APIC_IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// The others may begin to run guests.
static GO: AtomicBool = AtomicBool::new(false);

/// Number of processors that run guests.
#[inline]
pub fn cpus() -> usize {
    COUNT.load(Ordering::Relaxed).min(MAX_CPUS)
}

/// Local APIC identifier of a processor.
pub fn apic_id(cpu: CpuId) -> u32 {
    match APIC_IDS.get(cpu) {
        Some(id) if cpu != 0 => id.load(Ordering::Relaxed),
        _ => dev::boot_apic_id(),
    }
}

/// The processors but this one.
pub fn others() -> impl Iterator<Item = CpuId> + Clone {
    let me = cpu_id_or_boot();
    (0..cpus()).filter(move |&cpu| cpu != me)
}

/// Starts the processors that ACPI lists, up to `limit` with this one; those that do not answer are left out.
pub fn start_others(boot_info: &BootInfo, limit: Option<u32>) {
    let limit = limit.map_or(MAX_CPUS, |limit| (limit as usize).clamp(1, MAX_CPUS));
    let boot = dev::boot_apic_id();
    let listed = dev::acpi_tables().map_or(&[][..], |acpi| &acpi.processors);
    let mut wanted = listed
        .iter()
        .filter(|entry| entry.enabled && entry.apic_id != boot)
        .map(|entry| entry.apic_id)
        .peekable();
    if wanted.peek().is_none() || limit == 1 {
        return;
    }
    let Some(mut starter) = Starter::new(boot_info, on_new_processor) else {
        return warn!("Only the boot processor is used: no memory below 1 MiB to start others in");
    };
    while let Some(id) = wanted.next_if(|_| cpus() < limit) {
        let cpu = cpus();
        if let Some(place) = APIC_IDS.get(cpu) {
            place.store(id, Ordering::Relaxed);
        }
        if !lapic::can_reach(id) {
            warn!("The processor with APIC ID {id:#x} cannot be reached and stays off");
            continue;
        }
        let local = Box::leak(Box::new(Cpu::new(cpu)));
        if starter.start(cpu, id, (&raw mut *local).cast()) {
            compare_counters(cpu);
            COUNT.store(cpu + 1, Ordering::Release);
        } else {
            warn!("The processor with APIC ID {id:#x} does not answer and stays off");
        }
    }
}

/// Lets the other processors run guests.
pub fn let_go() {
    GO.store(true, Ordering::Release);
    for cpu in others() {
        lapic::send_ipi(apic_id(cpu), vectors::EVENT_CHECK);
    }
}

/// What a processor does once it has started.
extern "C" fn on_new_processor() -> ! {
    machine::load_root(None);
    answer_counters();
    while !GO.load(Ordering::Acquire) {
        percpu::idle_wait();
        while let Some(vector) = percpu::take_interrupt() {
            crate::irq::handle(cpu_id(), vector);
        }
    }
    enter_first_guest(cpu_id())
}

/// Rounds in which two counters are compared.
const ROUNDS: u64 = 64;
/// The round that is asked for, and the one that is answered.
static ASKED: AtomicU64 = AtomicU64::new(0);
static ANSWERED: AtomicU64 = AtomicU64::new(0);
/// The other processor's counter in the round that is answered.
static ANSWER: AtomicU64 = AtomicU64::new(0);

/// Compares the time-stamp counter of new processor `cpu` with this one's: between a question and its answer it must read between
/// this one's readings. If it does not in some round, it is taken to be ahead or behind by what fits all rounds best.
fn compare_counters(cpu: CpuId) {
    let (mut least, mut most) = (i64::MIN, i64::MAX);
    for round in 1..=ROUNDS {
        let before = asm::rdtsc();
        ASKED.store(round, Ordering::SeqCst);
        while ANSWERED.load(Ordering::SeqCst) != round {
            asm::relax();
        }
        let answer = ANSWER.load(Ordering::SeqCst);
        let after = asm::rdtsc();
        least = least.max(before.wrapping_sub(answer) as i64);
        most = most.min(after.wrapping_sub(answer) as i64);
    }
    ASKED.store(0, Ordering::SeqCst);
    while ANSWERED.load(Ordering::SeqCst) != 0 {
        asm::relax();
    }
    if !(least..=most).contains(&0) {
        let offset = ((i128::from(least) + i128::from(most)) / 2) as i64;
        warn!("The counter of CPU {cpu} is {offset} ticks behind that of CPU 0");
        time::set_offset(cpu, offset);
    }
}

/// The new processor's half of [`compare_counters`].
fn answer_counters() {
    for round in (1..=ROUNDS).chain([0]) {
        while ASKED.load(Ordering::SeqCst) != round {
            asm::relax();
        }
        ANSWER.store(asm::rdtsc(), Ordering::SeqCst);
        ANSWERED.store(round, Ordering::SeqCst);
    }
}

/// Makes every processor among those that `concerned` names drop the translations that were removed before `stamp`, and waits
/// for them.
pub fn flush_since(stamp: u64, concerned: impl Fn(CpuId) -> bool) {
    machine::settle();
    let me = cpu_id();
    let mut asked = 0u64;
    for cpu in (0..cpus()).filter(|&cpu| machine::may_hold_since(cpu, stamp) && concerned(cpu)) {
        if cpu == me {
            machine::flush_local();
        } else {
            lapic::send_nmi(apic_id(cpu));
            asked |= 1 << cpu;
        }
    }
    if asked != 0 {
        wait_for(asked, |cpu| !machine::may_hold_since(cpu, stamp));
    }
}

/// Makes every processor write back and invalidate its caches, and waits for them.
pub fn flush_caches() {
    let request = machine::request_cache_flush();
    let mut asked = 0u64;
    for cpu in others() {
        lapic::send_nmi(apic_id(cpu));
        asked |= 1 << cpu;
    }
    machine::answer_cache_flush();
    wait_for(asked, |cpu| machine::caches_flushed(cpu, request));
}

/// Waits until the processors in `asked` have answered their NMI. This one answers others meanwhile: NMIs are not held off.
#[cold]
fn wait_for(mut asked: u64, answered: impl Fn(CpuId) -> bool) {
    // An NMI that got lost is sent again, seldom enough not to disturb.
    let patience = timer::tsc_hz() / 10;
    let mut since = asm::rdtsc();
    while asked != 0 {
        let cpu = asked.trailing_zeros() as CpuId;
        if answered(cpu) {
            asked &= asked - 1;
        } else if asm::rdtsc().wrapping_sub(since) > patience {
            since = asm::rdtsc();
            lapic::send_nmi(apic_id(cpu));
        } else {
            asm::relax();
        }
    }
}

/// Waits up to `ms` milliseconds until `done`; true if it is. For what other processors do within one exit to the hypervisor.
pub fn within(ms: u64, done: impl Fn() -> bool) -> bool {
    let start = asm::rdtsc();
    let patience = timer::tsc_hz() / 1000 * ms;
    while !done() {
        if asm::rdtsc().wrapping_sub(start) > patience {
            return done();
        }
        asm::relax();
    }
    true
}

/// Somebody wants the other processors to stand still.
static STAND: AtomicBool = AtomicBool::new(false);
/// The processors that do, by bit.
static STANDING: AtomicU64 = AtomicU64::new(0);
/// The one that wants it.
static WORLD: Mutex<()> = Mutex::new(());

/// Calls `work` while every other processor stands still between two exits of its guest, with nothing half done. `None` if one does
/// not come within some seconds, or another processor is at the same.
pub fn while_others_stand<R>(work: impl FnOnce() -> R) -> Option<R> {
    const PATIENCE_MS: u64 = 5000;
    let _world = WORLD.try_lock()?;
    let wanted = others().fold(0, |bits, cpu| bits | 1u64 << cpu);
    // From the last time.
    within(PATIENCE_MS, || STANDING.load(Ordering::Acquire) == 0);
    STAND.store(true, Ordering::Release);
    for cpu in others() {
        cpu::request(cpu, cpu::STAND);
        lapic::send_ipi(apic_id(cpu), vectors::EVENT_CHECK);
    }
    let all = within(PATIENCE_MS, || STANDING.load(Ordering::Acquire) == wanted);
    let result = all.then(work);
    STAND.store(false, Ordering::Release);
    result
}

/// Stands still for as long as [`while_others_stand`] wants.
#[cold]
pub fn stand() {
    let me = 1 << cpu_id();
    STANDING.fetch_or(me, Ordering::AcqRel);
    while STAND.load(Ordering::Acquire) {
        asm::relax();
    }
    STANDING.fetch_and(!me, Ordering::AcqRel);
}

/// Makes every other processor stop for good. If another one has begun that already, this one is stopped itself.
pub fn stop_others() {
    nmi::stop_others(others().map(|cpu| (cpu, apic_id(cpu))));
}
