// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frequencies of the TSC and the local APIC timer, measured together against a clock of known frequency.

use super::{lapic, legacy, mmio::Window, port, timer::Frequencies};
use crate::cpu::asm::rdtsc;
use philoxen_physdev::acpi::Acpi;

/// Measured time: long enough for about 100 ppm under emulation, short enough not to be noticed.
const MEASURE_MS: u64 = 10;
/// Samples of which the tightest is taken.
const TRIES: usize = 8;
const PM_TIMER_HZ: u64 = 3_579_545;
const HPET_CAPABILITIES: u64 = 0;
const HPET_CONFIG: u64 = 0x10;
const HPET_COUNTER: u64 = 0xf0;
const FEMTO: u64 = 1_000_000_000_000_000;

/// A clock of known frequency.
enum Reference {
    Hpet(Window, u64),
    PmTimer(u16, bool),
    Pit,
}

impl Reference {
    fn choose(acpi: &Acpi) -> Self {
        let hpet = acpi
            .hpet
            .and_then(|address| Window::map(address, 0x400))
            .and_then(Self::hpet);
        let pm_timer = || {
            let fadt = acpi.fadt?;
            Some(Self::PmTimer(fadt.pm_timer?, fadt.pm_timer_32))
        };
        hpet.or_else(pm_timer).unwrap_or(Self::Pit)
    }

    fn hpet(window: Window) -> Option<Self> {
        let period = u64::from(window.read32(HPET_CAPABILITIES + 4));
        // The specification allows at most 100 ns.
        if period == 0 || period > 100_000_000 {
            return None;
        }
        let config = window.read32(HPET_CONFIG);
        // Overall enable on; the legacy interrupt route stays off.
        window.write32(HPET_CONFIG, config & !2 | 1);
        Some(Self::Hpet(window, FEMTO / period))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Hpet(..) => "HPET",
            Self::PmTimer(..) => "ACPI PM timer",
            Self::Pit => "PIT",
        }
    }

    fn hz(&self) -> u64 {
        match self {
            Self::Hpet(_, hz) => *hz,
            Self::PmTimer(..) => PM_TIMER_HZ,
            Self::Pit => legacy::PIT_HZ,
        }
    }

    fn start(&self) {
        if let Self::Pit = self {
            legacy::pit_start();
        }
    }

    fn stop(&self) {
        if let Self::Pit = self {
            legacy::pit_stop();
        }
    }

    #[inline]
    fn read(&self) -> u32 {
        match self {
            Self::Hpet(window, _) => window.read32(HPET_COUNTER),
            Self::PmTimer(port, _) => port::in32(*port),
            Self::Pit => legacy::pit_read().into(),
        }
    }

    /// Ticks from reading `from` to reading `to`.
    fn elapsed(&self, from: u32, to: u32) -> u64 {
        let ticks = match self {
            Self::Hpet(..) | Self::PmTimer(_, true) => to.wrapping_sub(from),
            Self::PmTimer(_, false) => to.wrapping_sub(from) & 0xff_ffff,
            Self::Pit => from.wrapping_sub(to) & 0xffff,
        };
        ticks.into()
    }
}

/// The three counters at one moment.
struct Sample {
    tsc: u64,
    timer: u32,
    reference: u32,
}

fn sample(reference: &Reference) -> Sample {
    let mut best = u64::MAX;
    let mut result = Sample {
        tsc: 0,
        timer: 0,
        reference: 0,
    };
    for _ in 0..TRIES {
        let before = rdtsc();
        let ticks = reference.read();
        let timer = lapic::timer_remaining();
        let width = rdtsc().wrapping_sub(before);
        // The emulator may be descheduled in between: the narrowest window is the truest.
        if width < best {
            best = width;
            result = Sample {
                tsc: before.wrapping_add(width / 2),
                timer,
                reference: ticks,
            };
        }
    }
    result
}

/// Measures for about ten milliseconds. The local APIC is initialised; its timer is left stopped.
///
/// # Errors
/// A reason in words if no clock of the machine counts.
pub(super) fn measure(acpi: &Acpi) -> Result<Frequencies, &'static str> {
    let reference = Reference::choose(acpi);
    let hz = reference.hz();
    let wanted = hz * MEASURE_MS / 1000;
    reference.start();
    lapic::timer_free_run();
    let first = sample(&reference);
    // A clock that stands still is given up after more TSC ticks than a second can have.
    while reference.elapsed(first.reference, reference.read()) < wanted {
        if rdtsc().wrapping_sub(first.tsc) > 10_000_000_000 {
            return Err("no clock to measure the processor's frequency");
        }
    }
    let last = sample(&reference);
    lapic::timer_count(0);
    reference.stop();
    let ticks = reference.elapsed(first.reference, last.reference).max(1);
    let per_second = |count: u64| (u128::from(count) * u128::from(hz) / u128::from(ticks)) as u64;
    let tsc_hz = per_second(last.tsc.wrapping_sub(first.tsc));
    let timer_hz = per_second(u64::from(first.timer.wrapping_sub(last.timer)));
    if tsc_hz == 0 || timer_hz == 0 {
        return Err("the processor's clocks do not count");
    }
    Ok(Frequencies {
        tsc_hz,
        timer_hz,
        reference: reference.name(),
    })
}
