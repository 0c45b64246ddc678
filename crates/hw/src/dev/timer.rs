// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processor's clock and alarm: TSC frequency, and a one-shot timer that is given TSC values.

use super::lapic;
use crate::cpu::asm::rdtsc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// TSC ticks per second.
static TSC_HZ: AtomicU64 = AtomicU64::new(0);
/// Local APIC timer ticks per TSC tick, as a fraction of 2^32.
static TICKS_PER_TSC: AtomicU64 = AtomicU64::new(0);
static DEADLINE: AtomicBool = AtomicBool::new(false);

/// Frequencies, as measured.
#[derive(Clone, Copy, Debug)]
pub struct Frequencies {
    /// TSC ticks per second.
    pub tsc_hz: u64,
    /// Local APIC timer ticks per second (undivided).
    pub timer_hz: u64,
    /// What they were measured against.
    pub reference: &'static str,
}

/// Takes the measured frequencies. Once, on the boot processor.
pub(super) fn set_frequencies(measured: Frequencies) {
    let scaled = (u128::from(measured.timer_hz) << 32) / u128::from(measured.tsc_hz.max(1));
    TICKS_PER_TSC.store(scaled as u64, Ordering::Relaxed);
    TSC_HZ.store(measured.tsc_hz, Ordering::Relaxed);
    DEADLINE.store(lapic::has_tsc_deadline(), Ordering::Relaxed);
}

/// TSC ticks per second; 0 before calibration.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// Makes this processor's timer ready, not armed.
pub(super) fn init() {
    if DEADLINE.load(Ordering::Relaxed) {
        lapic::timer_use_deadline();
    } else {
        lapic::timer_use_oneshot();
    }
}

/// Arms this processor's timer: its vector comes once the TSC has reached `tsc`, at once if it has already.
///
/// A far deadline may come early (the counter has 32 bits): the handler looks at the clock and arms again.
#[inline]
pub fn arm(tsc: u64) {
    if DEADLINE.load(Ordering::Relaxed) {
        // Zero would disarm.
        lapic::timer_deadline(tsc.max(1));
        return;
    }
    let delta = tsc.saturating_sub(rdtsc());
    let ticks = (u128::from(delta) * u128::from(TICKS_PER_TSC.load(Ordering::Relaxed))) >> 32;
    // One tick more, so that it does not come before the deadline.
    lapic::timer_count(u32::try_from(ticks.saturating_add(1)).unwrap_or(u32::MAX));
}

/// Disarms this processor's timer. An interrupt already on its way still comes.
#[inline]
pub fn disarm() {
    if DEADLINE.load(Ordering::Relaxed) {
        lapic::timer_deadline(0);
    } else {
        lapic::timer_count(0);
    }
}
