// SPDX-License-Identifier: MIT OR Apache-2.0
//! Local APIC: memory-mapped, or by MSRs where the processor has x2APIC (Intel SDM volume 3, chapter 11).
//!
//! Every function acts on the processor that runs it. Vectors are those of [`super::vectors`].

use super::{mmio::Window, vectors};
use crate::cpu::asm::{cpuid, rdmsr, relax, wrmsr};
use core::sync::atomic::{AtomicU8, Ordering};
use philoxen_physdev::acpi::Acpi;
use spin::Once;

const MSR_APIC_BASE: u32 = 0x1b;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
const MSR_X2APIC: u32 = 0x800;

/// Register offsets of the memory-mapped form; the MSR is 0x800 + offset / 16.
mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const LVT_CMCI: u32 = 0x2f0;
    pub const ICR_LOW: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_THERMAL: u32 = 0x330;
    pub const LVT_PERF: u32 = 0x340;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
}

const LVT_MASKED: u32 = 1 << 16;
const LVT_NMI: u32 = 4 << 8;
const LVT_LOW: u32 = 1 << 13;
const LVT_LEVEL: u32 = 1 << 15;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
const ICR_NMI: u32 = 4 << 8;
const ICR_INIT: u32 = 5 << 8;
const ICR_STARTUP: u32 = 6 << 8;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_BUSY: u32 = 1 << 12;

const UNKNOWN: u8 = 0;
const XAPIC: u8 = 1;
const X2APIC: u8 = 2;

static MODE: AtomicU8 = AtomicU8::new(UNKNOWN);
static WINDOW: Once<Window> = Once::new();

/// Chooses the mode and maps the registers. Once, on the boot processor, before [`init`].
///
/// # Errors
/// A reason in words if the machine has no usable local APIC.
pub(super) fn discover(acpi: &Acpi) -> Result<(), &'static str> {
    let [_, _, ecx, edx] = cpuid(1, 0);
    if edx & (1 << 9) == 0 {
        return Err("the processor has no local APIC");
    }
    if ecx & (1 << 21) != 0 {
        MODE.store(X2APIC, Ordering::Release);
        return Ok(());
    }
    let window = Window::map(acpi.local_apic, 0x1000).ok_or("cannot map the local APIC")?;
    WINDOW.call_once(|| window);
    MODE.store(XAPIC, Ordering::Release);
    Ok(())
}

#[inline]
fn x2apic() -> bool {
    MODE.load(Ordering::Relaxed) == X2APIC
}

#[inline]
fn read(register: u32) -> u32 {
    if x2apic() {
        return rdmsr(MSR_X2APIC + register / 16) as u32;
    }
    WINDOW
        .get()
        .map_or(0, |window| window.read32(register.into()))
}

#[inline]
fn write(register: u32, value: u32) {
    if x2apic() {
        // SAFETY: a writable x2APIC register (`mod reg`), which cannot change mappings or entry points.
        unsafe { wrmsr(MSR_X2APIC + register / 16, value.into()) };
    } else if let Some(window) = WINDOW.get() {
        window.write32(register.into(), value);
    }
}

/// Makes this processor's local APIC ready: enabled, every source masked except errors and the NMI line.
///
/// `acpi_id` is the processor's identifier in ACPI, for the NMI line's wiring.
pub(super) fn init(acpi: &Acpi, acpi_id: u32) {
    let enable = if x2apic() { 0xc00 } else { 0x800 };
    let base = rdmsr(MSR_APIC_BASE);
    // SAFETY: keeps the base address and sets only the enable bits of a mode the processor has.
    unsafe { wrmsr(MSR_APIC_BASE, base | enable) };
    write(reg::SVR, 0x100 | u32::from(vectors::SPURIOUS));
    write(reg::TPR, 0);
    if !x2apic() {
        write(reg::DFR, u32::MAX);
        write(reg::LDR, 0);
    }
    let highest = (read(reg::VERSION) >> 16) & 0xff;
    write(reg::LVT_TIMER, LVT_MASKED | u32::from(vectors::TIMER));
    write(reg::LVT_LINT0, LVT_MASKED);
    write(reg::LVT_LINT1, LVT_MASKED);
    let optional = [
        (4, reg::LVT_PERF),
        (5, reg::LVT_THERMAL),
        (6, reg::LVT_CMCI),
    ];
    for (number, register) in optional {
        if highest >= number {
            write(register, LVT_MASKED);
        }
    }
    for nmi in &acpi.local_nmis {
        if nmi.acpi_id.is_none_or(|id| id == acpi_id) {
            // NMI delivery is edge whatever the entry says; polarity counts.
            let polarity = if nmi.signal.low { LVT_LOW } else { 0 };
            let level = if nmi.signal.level { LVT_LEVEL } else { 0 };
            let register = if nmi.lint == 0 {
                reg::LVT_LINT0
            } else {
                reg::LVT_LINT1
            };
            write(register, LVT_NMI | polarity | level);
        }
    }
    write(reg::ESR, 0);
    write(reg::LVT_ERROR, vectors::APIC_ERROR.into());
    // What the firmware left in service would block us for ever.
    for _ in 0..256 {
        if (0..8).all(|word| read(reg::ISR + word * 16) == 0) {
            break;
        }
        end_of_interrupt();
    }
}

/// This processor's local APIC identifier by CPUID, known before the APIC is enabled.
pub(super) fn initial_id() -> u32 {
    let extended = if cpuid(0, 0)[0] >= 0xb {
        cpuid(0xb, 0)
    } else {
        [0; 4]
    };
    if extended[1] != 0 {
        extended[3]
    } else {
        cpuid(1, 0)[1] >> 24
    }
}

/// This processor's local APIC identifier.
pub fn id() -> u32 {
    if x2apic() {
        read(reg::ID)
    } else {
        read(reg::ID) >> 24
    }
}

/// Ends the interrupt in service with the highest priority.
#[inline]
pub fn end_of_interrupt() {
    write(reg::EOI, 0);
}

/// Takes the error bits recorded since the last call.
pub fn take_errors() -> u32 {
    write(reg::ESR, 0);
    read(reg::ESR)
}

/// True if `vector` waits for this processor to turn interrupts on.
pub fn is_requested(vector: u8) -> bool {
    let word = read(reg::IRR + u32::from(vector / 32) * 16);
    word & (1 << (vector % 32)) != 0
}

fn send(destination: u32, command: u32) {
    if x2apic() {
        let value = u64::from(destination) << 32 | u64::from(command);
        // Earlier stores must be visible before the interrupt: this MSR write does not order them.
        core::sync::atomic::fence(Ordering::SeqCst);
        // SAFETY: the interrupt command register; the target runs the entry point of the vector.
        unsafe { wrmsr(MSR_X2APIC + reg::ICR_LOW / 16, value) };
        return;
    }
    // Bounded: a local APIC that never becomes idle must not hang us, and a lost IPI is sent again by its sender.
    for _ in 0..1_000_000 {
        if read(reg::ICR_LOW) & ICR_BUSY == 0 {
            break;
        }
        relax();
    }
    write(reg::ICR_HIGH, destination << 24);
    write(reg::ICR_LOW, command);
}

/// True if this processor can address the one with local APIC identifier `destination`.
pub fn can_reach(destination: u32) -> bool {
    x2apic() || destination < 0xff
}

/// Sends `vector` to the processor with local APIC identifier `destination`.
pub fn send_ipi(destination: u32, vector: u8) {
    send(destination, ICR_ASSERT | u32::from(vector));
}

/// Sends an NMI to one processor.
pub fn send_nmi(destination: u32) {
    send(destination, ICR_ASSERT | ICR_NMI);
}

/// Resets another processor: the first step of starting it.
pub fn send_init(destination: u32) {
    send(destination, ICR_ASSERT | ICR_INIT);
}

/// Starts another processor in real mode at physical page `page` (below 256).
///
/// # Safety
/// The page holds code that brings the processor into the hypervisor without breaking its invariants.
pub unsafe fn send_startup(destination: u32, page: u8) {
    send(destination, ICR_ASSERT | ICR_STARTUP | u32::from(page));
}

/// True if the timer can be given an absolute TSC value.
pub(super) fn has_tsc_deadline() -> bool {
    cpuid(1, 0)[2] & (1 << 24) != 0
}

/// Sets the timer to TSC-deadline mode, unmasked but not armed.
pub(super) fn timer_use_deadline() {
    write(reg::LVT_TIMER, LVT_TSC_DEADLINE | u32::from(vectors::TIMER));
    // The mode change must be complete before the first deadline is written (SDM 11.5.4.1).
    core::sync::atomic::fence(Ordering::SeqCst);
}

/// Sets the timer to one-shot mode, counting bus cycles, unmasked but not armed.
pub(super) fn timer_use_oneshot() {
    timer_count(0);
    write(reg::TIMER_DIVIDE, 0b1011);
    write(reg::LVT_TIMER, vectors::TIMER.into());
}

/// Sets the timer to one-shot mode, masked and counting down from the top, for calibration.
pub(super) fn timer_free_run() {
    write(reg::LVT_TIMER, LVT_MASKED | u32::from(vectors::TIMER));
    write(reg::TIMER_DIVIDE, 0b1011);
    timer_count(u32::MAX);
}

/// One-shot mode: fires after `count` ticks; 0 stops it.
#[inline]
pub(super) fn timer_count(count: u32) {
    write(reg::TIMER_INITIAL, count);
}

/// Remaining ticks in one-shot mode.
#[inline]
pub(super) fn timer_remaining() -> u32 {
    read(reg::TIMER_CURRENT)
}

/// Deadline mode: fires at TSC value `tsc`; 0 stops it.
#[inline]
pub(super) fn timer_deadline(tsc: u64) {
    // SAFETY: only used where CPUID has the TSC-deadline timer; the register only arms our timer vector.
    unsafe { wrmsr(MSR_TSC_DEADLINE, tsc) };
}
