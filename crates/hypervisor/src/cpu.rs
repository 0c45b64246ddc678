// SPDX-License-Identifier: MIT OR Apache-2.0
//! A processor's own data, the vCPU it runs, and the way out to the guest.
//!
//! Only the processor itself touches its [`Cpu`]; others leave it notes in [`PENDING`] and send an interrupt.

use crate::domain::Domain;
use crate::host::{FRAMES, GuestEntry, Hv};
use crate::vcpu::{Vcpu, VcpuState};
use crate::{fatal, schedule, smp, time, traps};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};
use philoxen_abi::arch::MAX_LDT_ENTRIES;
use philoxen_abi::{Errno, GuestVa, PAGE_SIZE, Result, VcpuId};
use philoxen_evtchn::{VcpuEvents, VcpuInfo};
use philoxen_hw::cpu::{CpuId, MAX_CPUS, cpu_id, features, state as registers, window};
use philoxen_hw::dev::watchdog;
use philoxen_paging::validate;
use philoxen_pv::debugreg::DebugRegs;
use philoxen_pv::regs::ORIGIN_SYSRET;
use philoxen_pv::{Crash, Regs, bounce};
use spin::Mutex;

/// Look at the scheduler before returning to a guest.
pub const RESCHEDULE: u32 = 1;
/// The timer interrupt came: look at the timer queue.
pub const TIMER: u32 = 2;
/// Debug keys were typed.
pub const CONSOLE: u32 = 4;
/// Show the registers.
pub const REGISTERS: u32 = 8;
/// Stand still, see [`smp::while_others_stand`].
pub const STAND: u32 = 16;

/// Work that each processor must do before it returns to a guest.
static PENDING: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// Leaves `work` for processor `cpu`, which finds it at its next exit.
pub fn request(cpu: CpuId, work: u32) {
    if let Some(pending) = PENDING.get(cpu) {
        pending.fetch_or(work, Ordering::AcqRel);
    }
}

/// True if processor `cpu` has work to do before it returns to a guest: a long request should end here.
#[inline]
pub fn work_pending(cpu: CpuId) -> bool {
    PENDING
        .get(cpu)
        .is_some_and(|pending| pending.load(Ordering::Relaxed) != 0)
}

/// The vCPU a processor runs, with everything that belongs to it alone.
pub struct Running {
    /// Its domain.
    pub domain: Arc<Domain>,
    /// Its number.
    pub id: VcpuId,
    /// Its shared part.
    pub vcpu: Arc<Vcpu>,
    /// Its `vcpu_info`, found by [`Running::find_info`].
    pub info: VcpuInfo<'static>,
    /// Its private part.
    pub state: Box<VcpuState>,
}

impl Running {
    /// `vcpu` of `domain`, whose private part is `state`, ready to run.
    pub fn new(domain: Arc<Domain>, vcpu: Arc<Vcpu>, state: Box<VcpuState>) -> Self {
        let id = vcpu.id;
        Self {
            info: vcpu_info(&domain, id),
            domain,
            id,
            vcpu,
            state,
        }
    }

    /// Its shared part.
    #[inline(always)]
    pub fn vcpu(&self) -> &Vcpu {
        &self.vcpu
    }

    /// Looks where its `vcpu_info` is, as that may have moved.
    pub fn find_info(&mut self) {
        self.info = vcpu_info(&self.domain, self.id);
    }

    /// Its event state.
    #[inline]
    pub fn events(&self) -> &VcpuEvents {
        match self.domain.events.vcpu(self.id) {
            Some(events) => events,
            None => fatal::bug("a running vCPU has no event state"),
        }
    }

    /// Splits into what entering the guest kernel needs.
    #[inline(always)]
    pub fn entry(&mut self) -> (&mut VcpuState, GuestEntry<'_>) {
        let entry = GuestEntry {
            vcpu: &self.vcpu,
            info: self.info,
        };
        (&mut self.state, entry)
    }
}

fn vcpu_info(domain: &Domain, id: VcpuId) -> VcpuInfo<'static> {
    match domain.events.vcpu(id) {
        Some(events) => events.info_or_none(&FRAMES),
        None => fatal::bug("a running vCPU has no event state"),
    }
}

/// What belongs to one processor.
pub struct Cpu {
    /// Its number.
    pub id: CpuId,
    /// The vCPU it runs; nothing while it idles.
    pub running: Option<Running>,
    /// Its place in [`PENDING`].
    pending: &'static AtomicU32,
    /// Its signs of life.
    marks: watchdog::Marks,
}

impl Cpu {
    /// Processor `id`, idle.
    pub fn new(id: CpuId) -> Self {
        let Some(pending) = PENDING.get(id) else {
            fatal::bug("a processor beyond the last one")
        };
        Self {
            id,
            running: None,
            pending,
            marks: watchdog::Marks::of(id),
        }
    }

    /// Last steps before the guest: pending work, scheduling, upcall. True if SYSRET may be used.
    #[inline(always)]
    pub fn leave_hypervisor(&mut self, regs: &mut Regs) -> bool {
        let at_once = self.pending.load(Ordering::Relaxed) == 0
            && self
                .running
                .as_ref()
                .is_some_and(|running| !running.info.upcall_due());
        if at_once {
            self.leave(regs)
        } else {
            self.leave_after_work(regs)
        }
    }

    /// The very last step.
    #[inline(always)]
    fn leave(&self, regs: &mut Regs) -> bool {
        self.marks.mark();
        regs.check_exit();
        regs.origin & ORIGIN_SYSRET != 0
    }

    /// Does pending work and delivers the upcall; then as [`Cpu::leave_hypervisor`].
    #[inline(never)]
    fn leave_after_work(&mut self, regs: &mut Regs) -> bool {
        loop {
            if self.pending.load(Ordering::Relaxed) != 0 || self.running.is_none() {
                self.work(regs);
                // A change of vCPUs may have asked for another.
                continue;
            }
            let Some(running) = &mut self.running else {
                continue;
            };
            let nmi = running.vcpu.nmi.load(Ordering::Acquire) && running.state.pv.takes_nmi();
            if !nmi && !running.info.upcall_due() {
                break;
            }
            let (vcpu, mut entry) = running.entry();
            let delivered = if nmi {
                entry.vcpu.nmi.store(false, Ordering::Release);
                bounce::nmi(&mut vcpu.pv, regs, &mut entry)
            } else {
                bounce::event(&mut vcpu.pv, regs, &mut entry)
            };
            match delivered {
                Ok(()) => break,
                Err(crash) => self.crash(regs, &crash),
            }
        }
        self.leave(regs)
    }

    /// Does the pending work and makes sure that a vCPU is running; idles until there is one.
    #[cold]
    fn work(&mut self, regs: &mut Regs) {
        loop {
            let work = self.pending.swap(0, Ordering::AcqRel);
            if work & (CONSOLE | REGISTERS | STAND) != 0 {
                self.rare_work(work, regs);
            }
            if work & TIMER != 0 {
                time::run_timers(self.id);
            }
            if work & (RESCHEDULE | TIMER) != 0 || self.running.is_none() {
                schedule::switch(self, regs);
            }
            if self.running.is_some() {
                return;
            }
            self.idle();
        }
    }

    #[cold]
    fn rare_work(&self, work: u32, regs: &Regs) {
        if work & STAND != 0 {
            crate::keys::publish(self);
            smp::stand();
        }
        if work & CONSOLE != 0 {
            crate::keys::run(self, regs);
        }
        if work & REGISTERS != 0 {
            crate::keys::show_registers(self, regs);
        }
    }

    /// Waits for an interrupt and handles what came.
    fn idle(&mut self) {
        if !work_pending(self.id) {
            self.marks.mark();
            philoxen_hw::cpu::percpu::idle_wait();
            self.marks.mark();
        }
        while let Some(vector) = philoxen_hw::cpu::percpu::take_interrupt() {
            crate::irq::handle(self.id, vector);
        }
    }

    /// Ends the running domain because its guest broke the contract; other domains go on.
    #[cold]
    pub fn crash(&mut self, regs: &Regs, reason: &Crash) {
        self.crash_for(regs, format_args!("{reason}"));
    }

    /// As [`Cpu::crash`], and on to whatever runs next.
    #[cold]
    #[inline(never)]
    pub fn crash_and_leave(&mut self, regs: &mut Regs, reason: Crash) -> bool {
        self.crash(regs, &reason);
        self.leave_hypervisor(regs)
    }

    /// As [`Cpu::crash`], with the reason in words.
    #[cold]
    pub fn crash_for(&mut self, regs: &Regs, reason: core::fmt::Arguments<'_>) {
        if let Some(running) = &self.running {
            crate::dump::guest_crash(running, regs, reason);
            running
                .domain
                .shut_down(philoxen_domain::lifecycle::ShutdownReason::Crash);
        }
        request(self.id, RESCHEDULE);
    }

    /// Delivers an exception to the running guest; crashes its domain if that cannot be done.
    pub fn inject(&mut self, regs: &mut Regs, trap: philoxen_pv::Trap) {
        let Some(running) = &mut self.running else {
            return;
        };
        if let Some(address) = trap.cr2 {
            running.info.cr2().store(address, Ordering::Relaxed);
        }
        let (vcpu, mut entry) = running.entry();
        if let Err(crash) = bounce::exception(&mut vcpu.pv, regs, &mut entry, trap) {
            self.crash(regs, &crash);
        }
    }
}

/// Loads everything of a vCPU but its general registers into this processor, where its kernel's root is loaded already. True
/// if all its selectors could be loaded.
pub fn load_vcpu(running: &mut Running) -> bool {
    let vcpu = &running.vcpu;
    let state = &mut running.state;
    window::set_gdt(&state.gdt);
    window::set_ldt(state.ldt_entries);
    for (page, frame) in state.ldt.iter().enumerate() {
        if let Some(frame) = frame {
            window::map_ldt_page(page, *frame);
        }
    }
    let in_kernel = state.pv.in_kernel;
    if !in_kernel {
        crate::host::load_root(vcpu, false);
    }
    state.fpu.load(state.xcr0);
    state.xsave_hidden = !running.domain.policy.read().cpuid.has_xsave();
    if state.xsave_hidden {
        features::show_xsave(false);
    }
    registers::set_task_switched(state.task_switched);
    registers::set_tsc_aux(state.tsc_aux);
    load_debug(&state.debug);
    let segments = state.segments;
    for selector in segments.selectors {
        traps::prepare_selector(running, selector);
    }
    segments.load(in_kernel)
}

/// Loads a vCPU's debug registers.
pub fn load_debug(debug: &DebugRegs) {
    registers::load_debug_registers(&debug.addresses(), debug.dr7());
}

/// Takes everything of a vCPU but its general registers out of this processor.
pub fn save_vcpu(running: &mut Running) {
    let state = &mut running.state;
    state.segments = registers::Segments::save(state.pv.in_kernel);
    if state.xsave_hidden {
        features::show_xsave(true);
    }
    state.fpu.save(state.xcr0);
}

/// LDT that the running vCPU asked for, until [`apply_ldt`]: the page-table operation that carries the request does not
/// reach the vCPU's private part.
static NEW_LDT: [Mutex<Option<(GuestVa, u64)>>; MAX_CPUS] = [const { Mutex::new(None) }; MAX_CPUS];

/// Notes that the running vCPU wants a table of `entries` descriptors at `base` as its LDT.
///
/// # Errors
/// `EINVAL` for a table that is too long, not page-aligned, or not the guest's.
pub fn set_ldt(base: GuestVa, entries: u32) -> Result<()> {
    let entries = u64::from(entries);
    let bad = entries > MAX_LDT_ENTRIES
        || !base.0.is_multiple_of(PAGE_SIZE)
        || !base.range_ok(entries * 8);
    if entries != 0 && bad {
        return Err(Errno::EINVAL);
    }
    if let Some(slot) = NEW_LDT.get(cpu_id()) {
        *slot.lock() = Some((base, entries));
    }
    Ok(())
}

/// Gives the running vCPU the LDT that it asked for; pages of the old one are given back.
#[inline]
pub fn apply_ldt(running: &mut Running) {
    let request = NEW_LDT.get(cpu_id()).and_then(|slot| slot.lock().take());
    if let Some((base, entries)) = request {
        replace_ldt(running, base, entries);
    }
}

#[cold]
fn replace_ldt(running: &mut Running, base: GuestVa, entries: u64) {
    let state = &mut running.state;
    window::set_ldt(entries);
    for page in state.ldt.iter_mut().filter_map(Option::take) {
        validate::put_page_segdesc(Hv, page);
    }
    state.ldt_base = base;
    state.ldt_entries = entries;
}
