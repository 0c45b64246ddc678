// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own watchdog (`watchdog` on the command line): an NMI every second that looks whether processors still
//! come out of the hypervisor.
//!
//! Source of the NMI: a periodic comparator of the HPET (IA-PC HPET Specification 1.0a, section 2.3.9), whose I/O APIC pin is
//! programmed to deliver NMIs to every processor. A processor leaves a mark whenever it returns to a guest or idles;
//! one that was found in the hypervisor [`PATIENCE`] times without a new mark, each time well after the one before, is stuck.
//! So neither NMIs that come for other reasons nor a processor that an emulator lets stand for a while give a false alarm.

use super::mmio::Window;
use super::{ioapic, timer};
use crate::cpu::asm::rdtsc;
use crate::cpu::{CpuId, MAX_CPUS};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// NMIs without a sign of life that are one too many.
const PATIENCE: u64 = 5;
const PERIOD_MS: u64 = 1000;
const FEMTOSECONDS_PER_MS: u64 = 1_000_000_000_000;

const CAPABILITIES: u64 = 0;
const CONFIG: u64 = 0x10;
const COUNTER: u64 = 0xf0;
const fn timer_config(timer: u64) -> u64 {
    0x100 + 0x20 * timer
}
const fn timer_comparator(timer: u64) -> u64 {
    timer_config(timer) + 8
}
const TIMER_ENABLE: u32 = 1 << 2;
const TIMER_PERIODIC: u32 = 1 << 3;
const TIMER_CAN_BE_PERIODIC: u32 = 1 << 4;
const TIMER_SET_VALUE: u32 = 1 << 6;
const TIMER_32_BITS: u32 = 1 << 8;
/// I/O APIC entry: deliver as NMI, to all processors.
const ROUTE_NMI_TO_ALL: u64 = 4 << 8 | 0xff << 56;

static RUNNING: AtomicBool = AtomicBool::new(false);
/// Marks of each processor.
static MARKS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// Mark that the last NMI in the hypervisor saw, how many have seen it, and when the last was counted (TSC).
static SEEN: [[AtomicU64; 3]; MAX_CPUS] = [const { [const { AtomicU64::new(0) }; 3] }; MAX_CPUS];

/// Starts the watchdog; gives the GSI it uses, which nobody else may touch, or `None` if the machine has no timer for it.
pub fn start() -> Option<u32> {
    let address = super::acpi_tables()?.hpet?;
    let window = Window::map(address, 0x400)?;
    let period = u64::from(window.read32(CAPABILITIES + 4));
    let ticks = u32::try_from(PERIOD_MS * FEMTOSECONDS_PER_MS / period.max(1)).ok()?;
    let timers = u64::from(window.read32(CAPABILITIES) >> 8 & 0x1f) + 1;
    let timer = (0..timers)
        .find(|&timer| window.read32(timer_config(timer)) & TIMER_CAN_BE_PERIODIC != 0)?;
    let routes = window.read32(timer_config(timer) + 4);
    let gsi = (0..32)
        .rev()
        .find(|gsi| routes & 1 << gsi != 0 && ioapic::read(*gsi).is_some())?;
    ioapic::write(gsi, ROUTE_NMI_TO_ALL);
    let running = window.read32(CONFIG);
    window.write32(CONFIG, running & !2 | 1);
    let settings = TIMER_ENABLE | TIMER_PERIODIC | TIMER_SET_VALUE | TIMER_32_BITS | gsi << 9;
    window.write32(timer_config(timer), settings);
    window.write32(
        timer_comparator(timer),
        window.read32(COUNTER).wrapping_add(ticks),
    );
    // The second write after SET_VALUE is the period.
    window.write32(timer_comparator(timer), ticks);
    RUNNING.store(true, Ordering::Release);
    Some(gsi)
}

/// Where a processor shows that it is alive.
#[derive(Clone, Copy, Debug)]
pub struct Marks(&'static AtomicU64);

impl Marks {
    /// Those of processor `cpu`, which alone writes there.
    pub const fn of(cpu: CpuId) -> Self {
        Self(&MARKS[cpu % MAX_CPUS])
    }

    /// The processor is alive.
    #[inline(always)]
    pub fn mark(self) {
        let marks = self.0.load(Ordering::Relaxed);
        self.0.store(marks.wrapping_add(1), Ordering::Relaxed);
    }
}

/// An NMI found processor `cpu`, which runs this, in the hypervisor; true if it is stuck there.
pub(crate) fn is_stuck(cpu: CpuId) -> bool {
    let (Some(mark), Some([last, times, when])) = (MARKS.get(cpu), SEEN.get(cpu)) else {
        return false;
    };
    if !RUNNING.load(Ordering::Acquire) {
        return false;
    }
    let (mark, now) = (mark.load(Ordering::Relaxed), rdtsc());
    if last.swap(mark, Ordering::Relaxed) != mark {
        times.store(0, Ordering::Relaxed);
        when.store(now, Ordering::Relaxed);
        return false;
    }
    if now.wrapping_sub(when.load(Ordering::Relaxed)) < timer::tsc_hz() / 2 {
        return false;
    }
    when.store(now, Ordering::Relaxed);
    times.fetch_add(1, Ordering::Relaxed) + 1 >= PATIENCE
}
