// SPDX-License-Identifier: MIT OR Apache-2.0
//! NMIs: how processors reach one that has interrupts off, as the hypervisor always has.
//!
//! An NMI may come at any instruction: between SYSCALL and the first stack, on the way out, in the middle of a change of roots, while
//! a lock is held. So the handler takes no lock, touches no guest memory and cannot fault; it does all that an NMI
//! may be for, each time, which makes it unnecessary to tell them apart:
//! - it answers whoever asked for a flush of the TLB (`machine::answer_flush`) or of the caches;
//! - it stops the processor if another one panics ([`stop_others`]);
//! - it looks whether the processor is stuck (`dev::watchdog`), which needs several NMIs far apart.
//!
//! NMIs that came for none of these are ignored.

use super::{CpuId, MAX_CPUS, asm, percpu};
use crate::dev::{lapic, watchdog};
use crate::machine;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use philoxen_pv::Regs;

/// The processor that panics, while the others stop; [`NOBODY`] as long as all is well.
static PANICS: AtomicUsize = AtomicUsize::new(NOBODY);
const NOBODY: usize = usize::MAX;
/// Where each stopped processor was; 0: it has not stopped.
static STOPPED_AT: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn serve(regs: &Regs) {
    machine::answer_flush();
    machine::answer_cache_flush();
    let cpu = percpu::cpu_id();
    let panics = PANICS.load(Ordering::Acquire);
    if panics != NOBODY && panics != cpu {
        if let Some(place) = STOPPED_AT.get(cpu) {
            place.store(regs.rip, Ordering::Release);
        }
        asm::halt_forever()
    }
}

/// An NMI came while a guest ran, which is how it should be for the watchdog.
pub fn in_guest(regs: &Regs) {
    serve(regs);
}

/// An NMI came while the hypervisor ran; true if the processor is stuck in it.
pub(super) fn in_hypervisor(regs: &Regs) -> bool {
    serve(regs);
    watchdog::is_stuck(percpu::cpu_id())
}

/// Stops the processors with these local APIC identifiers for good, as far as they answer within some milliseconds. The first
/// processor that calls goes on, any other that calls is stopped itself.
pub fn stop_others(apic_ids: impl Iterator<Item = (CpuId, u32)> + Clone) {
    /// About some milliseconds.
    const PATIENCE: u32 = 10_000_000;
    let me = percpu::cpu_id_or_boot();
    match PANICS.compare_exchange(NOBODY, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(other) if other == me => return,
        Err(_) => asm::halt_forever(),
    }
    for (_, apic_id) in apic_ids.clone() {
        lapic::send_nmi(apic_id);
    }
    for (cpu, _) in apic_ids {
        for _ in 0..PATIENCE {
            if stopped_at(cpu).is_some() {
                break;
            }
            asm::relax();
        }
    }
}

/// Where [`stop_others`] stopped a processor.
pub fn stopped_at(cpu: CpuId) -> Option<u64> {
    let at = STOPPED_AT.get(cpu)?.load(Ordering::Acquire);
    (at != 0).then_some(at)
}
