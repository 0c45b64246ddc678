// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debug keys of the serial console (Ctrl-A three times, then a key).

use crate::cpu::{self, Cpu};
use crate::domain::{self, Domain};
use crate::host::{FRAMES, Hv};
use crate::vcpu::VcpuState;
use crate::{dump, input, irq, schedule, smp, time};
use alloc::vec::Vec;
use philoxen_abi::Mfn;
use philoxen_hw::cpu::MAX_CPUS;
use philoxen_hw::dev::{self, lapic, vectors};
use philoxen_hw::{memory, print};
use philoxen_paging::audit::{Held, audit};
use philoxen_pv::Regs;
use philoxen_sched::TimerKind;
use spin::Mutex;

/// Key, what it shows, and how.
type Key = (u8, &'static str, fn(&Cpu, &Regs));

/// All keys.
const KEYS: [Key; 11] = [
    (b'h', "show this list", help),
    (b'q', "domains, their vCPUs and memory", domains),
    (b'r', "run queues", run_queues),
    (b'a', "run states and timers", run_states),
    (b'e', "event channels", event_channels),
    (b'i', "interrupt lines", interrupts),
    (b'm', "memory of the hypervisor", hypervisor_memory),
    (b'A', "audit page types and counts", page_audit),
    (b'0', "registers of the running guests", registers),
    (b'L', "lock this processor up, to try the watchdog", lock_up),
    (b'R', "reboot the machine", reboot),
];

/// Runs the keys that were typed.
pub fn run(cpu: &Cpu, regs: &Regs) {
    while let Some(key) = input::take_key() {
        run_key(key, cpu, regs);
    }
}

fn run_key(key: u8, cpu: &Cpu, regs: &Regs) {
    match KEYS.iter().find(|(known, ..)| *known == key) {
        Some((_, _, show)) => show(cpu, regs),
        None => print!(
            "key '{}' has no meaning; 'h' lists the keys",
            key.escape_ascii()
        ),
    }
}

fn help(_: &Cpu, _: &Regs) {
    for (key, what, _) in KEYS {
        print!(" key '{}': {what}", char::from(key));
    }
}

/// A number of pages, or that there is no limit.
struct Limit(u64);

impl core::fmt::Display for Limit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            u64::MAX => f.write_str("unlimited"),
            pages => write!(f, "{pages}"),
        }
    }
}

fn domains(_: &Cpu, _: &Regs) {
    for domain in domain::all() {
        print!(
            "d{}: {:?}, {} of {} pages, assists {:#x}, shared_info {:x}",
            domain.id.0,
            domain.life.phase(),
            domain.memory.total_pages(),
            Limit(domain.memory.max_pages()),
            domain.assists.load(core::sync::atomic::Ordering::Relaxed),
            domain.shared_info.0
        );
        for vcpu in domain.vcpus() {
            let upcall = domain
                .events
                .vcpu(vcpu.id)
                .map(|e| (e.upcall_pending(&FRAMES), e.upcall_masked(&FRAMES)));
            print!(
                "  v{}: up {}, kernel root {:x?}, user root {:x?}, upcall (pending, masked) {upcall:?}",
                vcpu.id.0,
                schedule::is_up(&domain, vcpu.id),
                vcpu.roots.kernel().map(|m| m.0),
                vcpu.roots.user().map(|m| m.0)
            );
        }
    }
}

fn run_queues(_: &Cpu, _: &Regs) {
    schedule::show();
}

fn run_states(_: &Cpu, _: &Regs) {
    let now = time::now();
    print!("system time {now} ns");
    time::show();
    for domain in domain::all() {
        for vcpu in domain.vcpus() {
            let Some(account) = schedule::runstate(&domain, vcpu.id) else {
                continue;
            };
            let [running, runnable, blocked, offline] = account.time.map(|ns| ns / 1_000_000);
            print!(
                "d{}v{}: state {}, ms running {running} runnable {runnable} blocked {blocked} offline {offline}",
                domain.id.0, vcpu.id.0, account.state
            );
            for kind in TimerKind::ALL {
                if let Some(deadline) = time::deadline(vcpu.key, kind) {
                    print!("  {kind:?} in {} us", deadline.saturating_sub(now) / 1000);
                }
            }
        }
    }
}

fn event_channels(_: &Cpu, _: &Regs) {
    for domain in domain::all() {
        let events = &domain.events;
        print!(
            "d{}: {} ports in use, {}",
            domain.id.0,
            events.used_ports(),
            if events.uses_fifo() {
                "FIFO"
            } else {
                "2-level"
            }
        );
        for port in 1..events.port_bound() {
            let Some(info) = events.info(&FRAMES, port) else {
                continue;
            };
            if info.state != philoxen_evtchn::State::Free {
                print!(
                    "  {port:4} {:?} v{} priority {} pending {} masked {}",
                    info.state, info.vcpu.0, info.priority, info.pending, info.masked
                );
            }
        }
    }
}

fn interrupts(_: &Cpu, _: &Regs) {
    irq::IRQS.for_each_line(|line| {
        print!(
            "vector {:#x}: {:?} to APIC {:#x}, masked {}, {} interrupts, bound to {:?}",
            line.vector.0, line.source, line.destination.0, line.masked, line.count, line.bound
        );
    });
}

fn hypervisor_memory(_: &Cpu, _: &Regs) {
    let free = memory::buddy().lock().free_frames();
    print!(
        "{} KiB of RAM, {} KiB free; heap {:?}",
        memory::total_ram() / 1024,
        free * 4,
        memory::heap::stats()
    );
}

/// Frames held by the vCPU that each processor runs, while it stands still.
static HELD: [Mutex<Vec<(Mfn, Held)>>; MAX_CPUS] = [const { Mutex::new(Vec::new()) }; MAX_CPUS];

/// Notes what the vCPU running here holds, for an audit on another processor.
pub fn publish(cpu: &Cpu) {
    let mut held = Vec::new();
    if let Some(running) = &cpu.running {
        held_by_state(&running.state, &mut held);
    }
    if let Some(place) = HELD.get(cpu.id) {
        *place.lock() = held;
    }
}

fn page_audit(cpu: &Cpu, _: &Regs) {
    publish(cpu);
    if smp::while_others_stand(audit_all).is_none() {
        print!("page audit: the other processors do not stand still");
    }
}

fn audit_all() {
    let mut held = Vec::new();
    for domain in domain::all() {
        held_by(&domain, &mut held);
    }
    for place in HELD.iter().take(smp::cpus()) {
        held.append(&mut place.lock());
    }
    match audit(Hv, &held, |wrong| print!("  wrong: {wrong:x?}")) {
        Ok(0) => print!("page audit: all counts agree"),
        Ok(wrong) => print!("page audit: {wrong} frames with wrong counts"),
        Err(errno) => print!("page audit: not enough memory ({errno:?})"),
    }
}

/// The references that the hypervisor itself holds on a domain's frames.
fn held_by(domain: &Domain, held: &mut Vec<(Mfn, Held)>) {
    for vcpu in domain.vcpus() {
        let roots = [vcpu.roots.kernel(), vcpu.roots.user()];
        held.extend(roots.into_iter().flatten().map(|root| (root, Held::Typed)));
        if let Some(state) = &*vcpu.parked.lock() {
            held_by_state(state, held);
        }
    }
    domain
        .events
        .pinned(|frame| held.push((frame, Held::Typed)));
    domain.grants.held(|frame, writable| {
        let kind = if writable { Held::Typed } else { Held::General };
        held.push((frame, kind));
    });
    domain
        .pirqs
        .with_page(|page| held.push((page.frame(), Held::Typed)));
}

/// The descriptor-table frames of a vCPU.
fn held_by_state(state: &VcpuState, held: &mut Vec<(Mfn, Held)>) {
    let ldt = state.ldt.iter().flatten();
    held.extend(
        state
            .gdt
            .iter()
            .chain(ldt)
            .map(|&frame| (frame, Held::Typed)),
    );
}

/// Every processor shows its own.
fn registers(cpu: &Cpu, regs: &Regs) {
    for other in smp::others() {
        cpu::request(other, cpu::REGISTERS);
        lapic::send_ipi(smp::apic_id(other), vectors::EVENT_CHECK);
    }
    show_registers(cpu, regs);
}

/// Shows the registers of the vCPU that runs here.
pub fn show_registers(cpu: &Cpu, regs: &Regs) {
    /// Keeps what several processors say apart.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock();
    match &cpu.running {
        Some(running) => {
            print!(
                "CPU {}: d{}v{}, kernel mode {}",
                cpu.id, running.domain.id.0, running.id.0, running.state.pv.in_kernel
            );
            dump::registers(regs);
        }
        None => print!("CPU {}: idle", cpu.id),
    }
}

fn reboot(_: &Cpu, _: &Regs) {
    dev::reset()
}

fn lock_up(_: &Cpu, _: &Regs) {
    loop {
        philoxen_hw::cpu::asm::relax();
    }
}
