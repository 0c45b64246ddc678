// SPDX-License-Identifier: MIT OR Apache-2.0
//! Domains come and go: creation by the toolstack, vCPUs, pauses, destruction to the last frame.
//!
//! Destruction goes through the steps of [`Step`]; a domain leaves the list only when nothing of it is left but references that others hold.

use crate::domain::{self, Config, Domain};
use crate::host::Hv;
use crate::irq::{DomainPirqs, IRQS};
use crate::vcpu::{Vcpu, VcpuState};
use crate::{pools, schedule, smp, time};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use philoxen_abi::domctl::TscInfo;
use philoxen_abi::event::virq;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, Result, VcpuId};
use philoxen_control::create::{Numbers, Wanted};
use philoxen_control::info::Share;
use philoxen_control::ranges::Access;
use philoxen_domain::destruction::{Destruction, Remains, Step};
use philoxen_domain::lifecycle::Phase;
use philoxen_hw::cpu::cpu_id;
use philoxen_hw::memory;
use philoxen_paging::{Progress, log, mmuext, relinquish, validate};
use spin::{Mutex, RwLock};

/// What the toolstack keeps in the hypervisor about a domain.
pub struct Tool {
    /// UUID.
    pub handle: Mutex<[u8; 16]>,
    /// It is the xenstore's domain.
    pub xenstore: bool,
    /// vCPUs it was made for.
    pub max_vcpus: u32,
    /// Its processor pool; changes while the pools are locked.
    pub pool: AtomicU32,
    /// Weight and cap.
    pub share: Mutex<Share>,
    /// Seconds that its wall clock is ahead.
    pub time_offset: AtomicI64,
    /// How the toolstack wanted the TSC.
    pub tsc: Mutex<TscInfo>,
    /// Port that is notified when the domain suspends; 0 is none.
    pub suspend_port: AtomicU32,
    /// A debugger is attached.
    pub debugged: AtomicBool,
    /// Devices of the machine that it may use.
    pub access: RwLock<Access>,
    destruction: Destruction,
}

impl Tool {
    /// For a domain of `max_vcpus` vCPUs.
    pub fn new(max_vcpus: u32, handle: [u8; 16], xenstore: bool) -> Self {
        Self {
            handle: Mutex::new(handle),
            xenstore,
            max_vcpus,
            pool: AtomicU32::new(0),
            share: Mutex::new(Share::DEFAULT),
            time_offset: AtomicI64::new(0),
            tsc: Mutex::new(TscInfo::default()),
            suspend_port: AtomicU32::new(0),
            debugged: AtomicBool::new(false),
            access: RwLock::new(Access::default()),
            destruction: Destruction::default(),
        }
    }
}

static NUMBERS: Numbers = Numbers::new();

/// Makes a domain with number `id` (0 or reserved: the next free one): paused, without vCPUs and memory.
///
/// # Errors
/// `EEXIST` if the number is taken, `ESRCH` if the pool cannot take it, `ENOMEM`, `EINVAL`.
pub fn create(id: DomId, wanted: &Wanted) -> Result<Arc<Domain>> {
    let id = NUMBERS.choose(id, |id| domain::find(id).is_some())?;
    let domain = Domain::new(Config {
        id,
        privileged: false,
        max_pages: 0,
        max_vcpus: wanted.max_vcpus,
        max_port: wanted.max_port,
        grants: philoxen_grant::Limits::wanted(
            wanted.grant_frames,
            wanted.maptrack_frames,
            wanted.grant_version,
        ),
        pirqs: DomainPirqs::none(id),
        tool: Tool {
            pool: AtomicU32::new(wanted.pool),
            ..Tool::new(wanted.max_vcpus, wanted.handle, wanted.xenstore)
        },
        pauses: 1,
    })?;
    time::write_wall_clock(&domain);
    if pools::add_domain(&domain)? {
        Ok(domain)
    } else {
        Err(Errno::EEXIST)
    }
}

/// Makes all vCPUs of a domain; nothing if it has them.
///
/// # Errors
/// `ENOMEM`, `ENOSPC` if there are too many, `EINVAL` if the domain dies or was started without.
pub fn make_vcpus(domain: &Arc<Domain>) -> Result<()> {
    let steady = domain.life.steady()?;
    if !domain.vcpus().is_empty() {
        return Ok(());
    }
    // One that runs may be shutting down: these would not be stopped.
    if domain.life.phase() != Phase::Building {
        return Err(Errno::EINVAL);
    }
    if memory::is_scarce() {
        return Err(Errno::ENOMEM);
    }
    let count = domain.tool.max_vcpus;
    let mut vcpus = Vec::new();
    vcpus
        .try_reserve_exact(count as usize)
        .map_err(|_| Errno::ENOMEM)?;
    for id in 0..count {
        vcpus.push(Arc::new(Vcpu::new(VcpuId(id), schedule::new_key()?)));
    }
    domain.set_vcpus(vcpus);
    schedule::register(domain);
    pools::settle(domain);
    for vcpu in domain.vcpus() {
        if let Some(events) = domain.events.vcpu(vcpu.id) {
            events.set_upcall_mask(&Hv, true);
        }
        time::write_time(domain, vcpu.id);
    }
    if steady.is_paused() {
        schedule::pause_all(domain);
    }
    Ok(())
}

/// Milliseconds that a request waits for other processors to leave a vCPU. They are told to and do within one exit, which is
/// microseconds; but the processor itself may stand still under an emulator.
const STOP_MS: u64 = 100;

/// Waits until no other processor runs a vCPU of the domain, all of which are paused; gives up after a while.
pub fn wait_stopped(domain: &Domain) {
    let elsewhere =
        |vcpu: &Arc<Vcpu>| schedule::is_on_cpu(vcpu) && schedule::home(vcpu) != cpu_id() as u32;
    smp::within(STOP_MS, || !domain.vcpus().iter().any(elsewhere));
}

/// Calls `work` while no processor runs the vCPU or holds its registers. `None`: one does for now, to be tried again.
pub fn while_stopped<R>(domain: &Domain, vcpu: &Vcpu, work: impl FnOnce() -> R) -> Option<R> {
    let _steady = domain.life.steady().ok()?;
    schedule::pause(domain, vcpu.id);
    let stopped = smp::within(STOP_MS, || !schedule::is_on_cpu(vcpu));
    let result = stopped.then(work);
    schedule::unpause(domain, vcpu.id);
    result
}

/// Destroys a domain as far as the budget goes; true when it is gone.
pub fn destroy(domain: &Arc<Domain>, budget: &mut Budget) -> bool {
    domain.life.kill();
    domain.memory.set_dying();
    log::stop(Hv, &domain.memory);
    domain.tool.destruction.go_on(&Dying(domain), budget)
}

/// A domain that is being destroyed.
struct Dying<'a>(&'a Arc<Domain>);

impl Remains for Dying<'_> {
    fn take(&self, step: Step, budget: &mut Budget) -> bool {
        let domain = self.0;
        match step {
            Step::Stop => schedule::unregister(domain),
            Step::Events => domain.events.destroy(&Hv, budget),
            Step::Vcpus => {
                domain.pirqs.release_all(&IRQS);
                for vcpu in domain.vcpus() {
                    release_vcpu(vcpu, budget);
                }
                true
            }
            Step::Grants => {
                let done = domain.grants.release_mappings(Hv, budget) == Progress::Done;
                if done {
                    domain.grants.destroy(Hv);
                }
                done
            }
            Step::Memory => relinquish(Hv, &domain.memory, budget) == Progress::Done,
            Step::Users | Step::Gone => domain.grants.entries_in_use() == 0,
        }
    }

    fn reached(&self, step: Step) {
        if step == Step::Gone {
            self.0.life.finish();
            domain::remove(self.0);
        }
        if matches!(step, Step::Users | Step::Gone) {
            // First its users learn that they should let go, then that it is gone.
            report_change();
        }
    }
}

/// Tells Domain 0's toolstack that a domain shut down or is gone.
pub fn report_change() {
    if let Some(dom0) = domain::find(DomId::DOM0) {
        dom0.events.raise_global_virq(&Hv, virq::DOM_EXC);
    }
}

/// Takes from a vCPU that will not run again what it holds: descriptor tables and page-table roots.
pub fn release_vcpu(vcpu: &Vcpu, budget: &mut Budget) {
    let state = vcpu.parked.lock().take();
    vcpu.initialised.store(false, Ordering::Release);
    vcpu.nmi.store(false, Ordering::Relaxed);
    if let Some(state) = state {
        release_tables(&state);
    }
    mmuext::release_roots(Hv, &vcpu.roots, budget);
}

/// Gives back the references to GDT and LDT frames.
pub fn release_tables(state: &VcpuState) {
    let ldt = state.ldt.iter().flatten();
    for frame in state.gdt.iter().chain(ldt) {
        validate::put_page_segdesc(Hv, *frame);
    }
}
