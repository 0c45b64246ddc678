// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page-table roots and the TLB clock.
//!
//! The clock orders removals of translations and whole-TLB flushes: a removal takes a stamp, which advances the clock; a
//! flush first notes the clock as its processor's own. A processor whose note is above a stamp has flushed since.
//! So the hot side, loading CR3, costs no locked operation.

use crate::cpu::{CpuId, asm, percpu};
use crate::memory;
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::Mfn;

/// Advanced by every stamp. Starts above every note, so a processor that never flushed counts as stale.
static CLOCK: AtomicU64 = AtomicU64::new(1);

/// A stamp for translations that were removed before this call.
#[inline]
pub fn tlb_stamp() -> u64 {
    CLOCK.fetch_add(1, Ordering::SeqCst)
}

/// Notes that this processor is about to drop its whole TLB.
#[inline(always)]
fn note_flush() {
    percpu::flush_note().store(CLOCK.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// True if processor `cpu` may still hold translations that were removed before `stamp` was taken.
pub fn may_hold_since(cpu: CpuId, stamp: u64) -> bool {
    percpu::flush_note_of(cpu).is_some_and(|noted| noted != 0 && noted <= stamp)
}

/// Makes this processor use the page tables under `l4`, or the hypervisor's own if `None`.
///
/// `l4` is a root that paging validated and holds an L4 reference on while it is loaded; its hypervisor slots are ours.
#[inline(always)]
pub fn load_root(l4: Option<Mfn>) {
    let root = match l4 {
        Some(mfn) => mfn.addr(),
        None => memory::hypervisor_root(),
    };
    note_flush();
    // SAFETY: the paging crate hands out validated roots only (its L4 type invariant), or it is our own.
    unsafe { asm::write_cr3(root) };
}

/// Drops every non-global translation of this processor; guests have no global ones.
pub fn flush_local() {
    note_flush();
    // SAFETY: the root that is loaded stays loaded.
    unsafe { asm::write_cr3(asm::read_cr3()) };
}

/// Writes back and invalidates this processor's caches.
pub fn flush_caches() {
    // SAFETY: WBINVD loses no data.
    unsafe { core::arch::asm!("wbinvd", options(nostack, preserves_flags)) };
}
