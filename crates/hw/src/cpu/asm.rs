// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single instructions as functions. Those that could break memory safety stay inside the crate.

use core::arch::asm;

/// Reads the time-stamp counter, ordered after earlier loads.
#[inline]
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter; LFENCE only orders.
    unsafe {
        asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Reads a model-specific register that is known to exist.
#[inline]
pub(crate) fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: callers name architectural MSRs only; reading them has no effect on memory.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The register exists and the value is valid for it, and the write keeps the crate's invariants (entry points,
/// page tables and memory types stay as they are, or become what the caller's contract says).
#[inline]
pub(crate) unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags))
    };
}

/// CPUID leaf `leaf`, sub-leaf `subleaf`: eax, ebx, ecx, edx.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Spin-wait hint.
#[inline]
pub fn relax() {
    core::hint::spin_loop();
}

/// Stops this processor for good, with interrupts off.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: stops until an NMI; nothing is touched.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Reads CR2, the address of the last page fault.
#[inline]
pub fn read_cr2() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads CR3.
#[inline]
pub fn read_cr3() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Loads CR3, dropping this processor's non-global translations.
///
/// # Safety
/// `value` is a validated L4 with the hypervisor's slots filled in, and stays one while it is loaded.
#[inline]
pub(crate) unsafe fn write_cr3(value: u64) {
    // SAFETY: the caller's contract: every hypervisor mapping is the same under the new root.
    unsafe { asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Drops this processor's translation of one address.
#[inline]
pub fn invlpg(va: u64) {
    // SAFETY: only drops a cached translation.
    unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) };
}

/// Reads CR0.
#[inline]
pub fn read_cr0() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Sets or clears CR0.TS.
#[inline]
pub(crate) fn set_task_switched(on: bool) {
    if on {
        let value = read_cr0() | 8;
        // SAFETY: TS only makes FPU instructions trap.
        unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) };
    } else {
        // SAFETY: clears TS only.
        unsafe { asm!("clts", options(nomem, nostack, preserves_flags)) };
    }
}

/// Reads CR4.
#[inline]
pub fn read_cr4() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes CR4.
///
/// # Safety
/// Paging bits (PAE, PGE, PCIDE, LA57) stay as they are, and every bit set is supported.
#[inline]
pub(crate) unsafe fn write_cr4(value: u64) {
    // SAFETY: the caller's contract.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Writes extended control register 0.
///
/// # Safety
/// `value` is a valid, supported combination (bit 0 set).
#[inline]
pub(crate) unsafe fn xsetbv0(value: u64) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack, preserves_flags))
    };
}
