// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real time from the time-stamp counter, and the form guests get it in (`struct vcpu_time_info`, xen/xen.h).

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;

/// Counter ticks to nanoseconds: `((ticks << shift) * mul) >> 32` (a negative shift goes right).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// `tsc_to_system_mul`.
    pub mul: u32,
    /// `tsc_shift`.
    pub shift: i8,
}

impl Scale {
    /// The scale of a counter that runs at `hz` (at least 1 kHz is assumed; lower values are taken as that).
    pub fn from_frequency(hz: u64) -> Self {
        // Bring the frequency into (1, 2] GHz by powers of two, so that mul is a fraction with 31 significant bits.
        let second = u128::from(SECOND);
        let mut shift = 0i8;
        let mut scaled = u128::from(hz.max(1000));
        while scaled <= second {
            scaled *= 2;
            shift += 1;
        }
        let mut fast = scaled;
        while fast > 2 * second {
            fast = fast.div_ceil(2);
            shift -= 1;
        }
        // mul = 2^32 * 10^9 / (hz * 2^shift), computed in one division for exactness.
        let numerator = u128::from(SECOND) << 32;
        let denominator = u128::from(hz.max(1000));
        let mul = if shift < 0 {
            (numerator << u32::from(shift.unsigned_abs())) / denominator
        } else {
            numerator / (denominator << u32::from(shift.unsigned_abs()))
        };
        Self {
            mul: u32::try_from(mul).unwrap_or(u32::MAX),
            shift,
        }
    }

    /// Nanoseconds in `ticks`.
    #[inline]
    pub fn to_ns(self, ticks: u64) -> u64 {
        let shifted = if self.shift < 0 {
            ticks >> self.shift.unsigned_abs()
        } else {
            ticks << self.shift.unsigned_abs()
        };
        ((u128::from(shifted) * u128::from(self.mul)) >> 32) as u64
    }
}

/// The machine's clock: nanoseconds since boot as a function of the counter.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Counter value at which time was `base_ns`.
    pub base_tsc: u64,
    /// Time at `base_tsc`, in nanoseconds.
    pub base_ns: u64,
    /// Rate.
    pub scale: Scale,
}

impl Clock {
    /// Time at counter value `tsc`; earlier values give `base_ns`.
    #[inline]
    pub fn at(&self, tsc: u64) -> u64 {
        self.base_ns
            .wrapping_add(self.scale.to_ns(tsc.saturating_sub(self.base_tsc)))
    }

    /// The first counter value at which [`Clock::at`] is `ns` or more (it may be a few ticks too late).
    pub fn reaches(&self, ns: u64) -> u64 {
        let wanted = u128::from(ns.saturating_sub(self.base_ns)) << 32;
        let scaled = wanted.div_ceil(u128::from(self.scale.mul.max(1)));
        let steps = u32::from(self.scale.shift.unsigned_abs());
        let ticks = if self.scale.shift < 0 {
            scaled << steps
        } else {
            scaled.div_ceil(1 << steps)
        };
        let ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
        self.base_tsc.saturating_add(ticks)
    }
}

/// The contents of a `vcpu_time_info` but for its version, as the three words after the version's.
pub fn time_record(clock: &Clock, tsc: u64, flags: u8) -> [u64; 3] {
    let mul_shift_flags = u64::from(clock.scale.mul)
        | u64::from(clock.scale.shift as u8) << 32
        | u64::from(flags) << 40;
    [tsc, clock.at(tsc), mul_shift_flags]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn scale_is_exact_to_a_part_in_a_million(hz in 1_000_000u64..10_000_000_000, seconds in 1u64..1000) {
            let scale = Scale::from_frequency(hz);
            let ns = scale.to_ns(hz * seconds);
            let want = seconds * SECOND;
            prop_assert!(ns.abs_diff(want) <= want / 1_000_000 + 2, "{ns} {want}");
        }

        #[test]
        fn a_deadline_is_met_and_not_much_later(hz in 1_000_000u64..10_000_000_000, ns in 0u64..1 << 50) {
            let clock = Clock { base_tsc: 99, base_ns: 1000, scale: Scale::from_frequency(hz) };
            let tsc = clock.reaches(ns);
            prop_assert!(clock.at(tsc) >= ns);
            // One step of the scaled counter is at most 16 ns at 10 GHz and one tick at 1 MHz is 1000 ns.
            prop_assert!(clock.at(tsc) <= ns.max(1000) + 2000);
        }

        #[test]
        fn time_never_goes_back(hz in 1_000_000u64..10_000_000_000, a in 0u64..1 << 50, d in 0u64..1 << 40) {
            let clock = Clock { base_tsc: 12345, base_ns: 777, scale: Scale::from_frequency(hz) };
            prop_assert!(clock.at(a) <= clock.at(a + d));
        }
    }

    #[test]
    fn record_packs_rate_and_flags() {
        let clock = Clock {
            base_tsc: 0,
            base_ns: 5,
            scale: Scale {
                mul: 0x8000_0000,
                shift: -1,
            },
        };
        let [tsc, ns, rate] = time_record(&clock, 400, 1);
        assert_eq!((tsc, ns), (400, 105));
        assert_eq!(rate, 0x1ff_8000_0000);
    }
}
