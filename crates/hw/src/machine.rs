// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page-table roots, the TLB clock (`philoxen_paging::tlb`) and the caches of the machine's processors.

use crate::cpu::{CpuId, MAX_CPUS, asm, percpu};
use crate::memory;
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::Mfn;
use philoxen_paging::tlb::TlbClock;

static TLB: TlbClock = TlbClock {
    now: AtomicU64::new(1),
};

/// A stamp for translations that were removed before this call.
#[inline]
pub fn tlb_stamp() -> u64 {
    TLB.stamp()
}

/// Comes between taking a stamp and asking [`may_hold_since`].
pub fn settle() {
    TLB.settle();
}

/// True if processor `cpu` may still hold translations that were removed before `stamp` was taken.
pub fn may_hold_since(cpu: CpuId, stamp: u64) -> bool {
    percpu::tlb_notes_of(cpu).is_some_and(|notes| notes.may_hold(stamp))
}

/// Makes this processor use the page tables under `l4`, or the hypervisor's own if `None`.
///
/// `l4` is a root that paging validated and holds an L4 reference on while it is loaded; its hypervisor slots are ours.
#[inline(always)]
pub fn load_root(l4: Option<Mfn>) {
    TLB.note(percpu::tlb_notes());
    let root = match l4 {
        Some(mfn) => mfn.addr(),
        None => memory::hypervisor_root(),
    };
    // SAFETY: the paging crate hands out validated roots only (its L4 type invariant), or it is our own.
    unsafe { asm::write_cr3(root) };
    if l4.is_none() {
        percpu::tlb_notes().go_away();
    }
}

/// Drops every non-global translation of this processor; guests have no global ones.
pub fn flush_local() {
    TLB.note(percpu::tlb_notes());
    reload_root();
}

/// As [`flush_local`], on behalf of another processor and at any instruction: called by the NMI handler.
pub(crate) fn answer_flush() {
    TLB.answer(percpu::tlb_notes());
    reload_root();
}

fn reload_root() {
    // SAFETY: the root that is loaded stays loaded.
    unsafe { asm::write_cr3(asm::read_cr3()) };
}

/// Writes back and invalidates this processor's caches.
pub fn flush_caches() {
    // SAFETY: WBINVD loses no data.
    unsafe { core::arch::asm!("wbinvd", options(nostack, preserves_flags)) };
}

/// Flushes of every processor's caches that were asked for, and how many of them each processor has done.
static CACHE_FLUSHES: AtomicU64 = AtomicU64::new(0);
static CACHES_FLUSHED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Asks every processor that gets an NMI from now on to flush its caches; [`caches_flushed`] tells whether it has.
pub fn request_cache_flush() -> u64 {
    CACHE_FLUSHES.fetch_add(1, Ordering::SeqCst) + 1
}

/// True once processor `cpu` has flushed its caches after that request.
pub fn caches_flushed(cpu: CpuId, request: u64) -> bool {
    CACHES_FLUSHED
        .get(cpu)
        .is_none_or(|done| done.load(Ordering::Acquire) >= request)
}

/// Flushes this processor's caches if that was asked for since it last did, at any instruction.
pub fn answer_cache_flush() {
    let request = CACHE_FLUSHES.load(Ordering::Acquire);
    if let Some(done) = CACHES_FLUSHED.get(percpu::cpu_id())
        && done.load(Ordering::Relaxed) < request
    {
        flush_caches();
        // An NMI in between may have answered a later request.
        done.fetch_max(request, Ordering::Release);
    }
}
