// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU's virtual time: how running moves it, and what it borrows by warping.
//!
//! Source: Duda and Cheriton, "Borrowed-Virtual-Time (BVT) scheduling", SOSP 1999. A vCPU's *actual* virtual time grows by
//! the time it runs divided by its weight; its *effective* one, which decides, is earlier by the warp while it is warped.
//!
//! Unit: a sixteenth of a nanosecond at weight 1, so that 64 bits hold 36 years of running at weight 1. What a division
//! leaves over is kept, so that no weight gains by being run in small pieces.

use crate::field::{Flag, Long, Word};
use crate::scheduler::DEFAULT_WEIGHT;

/// Units in a nanosecond at weight 1.
const UNITS: u64 = 16;
/// Where virtual time begins: far enough from 0 that a warp can be taken off.
pub(crate) const BEGINNING: u64 = 1 << 48;

/// What a vCPU may borrow from its future to be served early. All zero: nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Warp {
    /// By how much its effective virtual time is ahead, in nanoseconds of running at the default weight.
    pub value_ns: u64,
    /// How long it may run warped after a wake-up, in nanoseconds; 0: as long as it likes.
    pub limit_ns: u64,
    /// How long it stays unwarped after it reached the limit, in nanoseconds.
    pub unwarp_ns: u64,
}

/// Virtual time that `ns` nanoseconds of running are worth at `weight`.
pub(crate) fn worth(ns: u64, weight: u32) -> u64 {
    ns.saturating_mul(UNITS) / u64::from(weight.max(1))
}

/// Nanoseconds of running at `weight` after which virtual time has moved by `amount` or a little more.
pub(crate) fn running_for(amount: u64, weight: u32) -> u64 {
    (amount.saturating_mul(weight.into()) / UNITS).saturating_add(1)
}

/// The account of one vCPU.
#[derive(Debug)]
pub(crate) struct VirtualTime {
    actual: Long,
    /// What the last division left over, in units times the weight.
    remainder: Long,
    weight: Word,
    value: Long,
    limit: Long,
    unwarp: Long,
    warped: Flag,
    /// Time it ran warped since it woke up.
    warped_for: Long,
    /// Not warped before then.
    straight_until: Long,
}

impl VirtualTime {
    pub(crate) const fn new() -> Self {
        Self {
            actual: Long::new(BEGINNING),
            remainder: Long::new(0),
            weight: Word::new(DEFAULT_WEIGHT),
            value: Long::new(0),
            limit: Long::new(0),
            unwarp: Long::new(0),
            warped: Flag::new(false),
            warped_for: Long::new(0),
            straight_until: Long::new(0),
        }
    }

    /// The account of a new vCPU.
    pub(crate) fn reset(&self, weight: u32) {
        self.actual.set(BEGINNING);
        self.remainder.set(0);
        self.straight_until.set(0);
        self.set_weight(weight);
        self.set_warp(Warp::default(), 0);
    }

    pub(crate) fn weight(&self) -> u32 {
        self.weight.get()
    }

    pub(crate) fn set_weight(&self, weight: u32) {
        self.weight.set(weight.max(1));
        self.remainder.set(0);
    }

    pub(crate) fn warp(&self) -> Warp {
        Warp {
            value_ns: self.value.get(),
            limit_ns: self.limit.get(),
            unwarp_ns: self.unwarp.get(),
        }
    }

    /// Sets what it may borrow, from now on.
    pub(crate) fn set_warp(&self, warp: Warp, now: u64) {
        self.value.set(warp.value_ns);
        self.limit.set(warp.limit_ns);
        self.unwarp.set(warp.unwarp_ns);
        self.begin_warp(now);
    }

    /// It woke up: it may be warped anew.
    pub(crate) fn begin_warp(&self, now: u64) {
        self.warped_for.set(0);
        let may = self.value.get() != 0 && now >= self.straight_until.get();
        self.warped.set(may);
    }

    pub(crate) fn is_warped(&self) -> bool {
        self.warped.get()
    }

    /// How long it may still run warped; `None` if nothing ends it.
    pub(crate) fn warp_left(&self) -> Option<u64> {
        let limit = self.limit.get();
        (self.warped.get() && limit != 0).then(|| limit.saturating_sub(self.warped_for.get()))
    }

    pub(crate) fn actual(&self) -> u64 {
        self.actual.get()
    }

    /// What decides who runs: the earlier, the sooner.
    pub(crate) fn effective(&self) -> u64 {
        let borrowed = if self.warped.get() {
            worth(self.value.get(), DEFAULT_WEIGHT)
        } else {
            0
        };
        self.actual.get().saturating_sub(borrowed)
    }

    /// It ran for `ns` nanoseconds until `now`; by how much its virtual time moved.
    pub(crate) fn ran(&self, ns: u64, now: u64) -> u64 {
        let weight = u64::from(self.weight.get());
        let total = ns
            .saturating_mul(UNITS)
            .saturating_add(self.remainder.get());
        let moved = total.checked_div(weight).unwrap_or(total);
        self.remainder.set(total.checked_rem(weight).unwrap_or(0));
        self.actual.set(self.actual.get().saturating_add(moved));
        if self.warped.get() {
            self.warped_for
                .set(self.warped_for.get().saturating_add(ns));
            if self.warp_left() == Some(0) {
                self.warped.set(false);
                self.straight_until
                    .set(now.saturating_add(self.unwarp.get()));
            }
        }
        moved
    }

    /// Gives up claims from before `time`.
    pub(crate) fn not_before(&self, time: u64) {
        if self.actual.get() < time {
            self.actual.set(time);
        }
    }

    /// Moves to processors whose virtual time is `to`, from some where it was `from`: a debt goes along, a claim does not.
    pub(crate) fn transfer(&self, from: u64, to: u64) {
        let debt = self.actual.get().saturating_sub(from);
        self.actual.set(to.saturating_add(debt));
    }
}
