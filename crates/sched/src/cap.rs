// SPDX-License-Identifier: MIT OR Apache-2.0
//! Upper bounds of what a domain gets, however idle the processors are: a budget of running time that is filled up
//! once in a period and may be overdrawn, in which case the next periods pay.

/// How often budgets are filled up, in nanoseconds.
pub(crate) const PERIOD_NS: u64 = 10_000_000;

/// The budget that the vCPUs of a domain draw on.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Running time per period in nanoseconds; 0: no bound.
    quota: u64,
    /// What is left; negative: overdrawn.
    left: i64,
    /// When it is filled up next.
    refill: u64,
}

impl Budget {
    pub(crate) const UNBOUNDED: Self = Self {
        quota: 0,
        left: 0,
        refill: 0,
    };

    /// A budget of `percent` of one processor; 0: no bound.
    pub(crate) fn new(percent: u32, now: u64) -> Self {
        let quota = u64::from(percent) * (PERIOD_NS / 100);
        Self {
            quota,
            left: quota as i64,
            refill: now.saturating_add(PERIOD_NS),
        }
    }

    /// The bound in percent of a processor, 0 if there is none.
    pub(crate) const fn percent(&self) -> u32 {
        (self.quota / (PERIOD_NS / 100)) as u32
    }

    fn fill(&mut self, now: u64) {
        let Some(late) = now.checked_sub(self.refill) else {
            return;
        };
        let periods = late / PERIOD_NS + 1;
        let more = i64::try_from(self.quota.saturating_mul(periods)).unwrap_or(i64::MAX);
        self.left = self.left.saturating_add(more).min(self.quota as i64);
        let ahead = periods.saturating_mul(PERIOD_NS);
        self.refill = self.refill.saturating_add(ahead);
    }

    /// Draws `ns` nanoseconds.
    pub(crate) fn draw(&mut self, ns: u64, now: u64) {
        if self.quota != 0 {
            self.fill(now);
            let ns = i64::try_from(ns).unwrap_or(i64::MAX);
            self.left = self.left.saturating_sub(ns);
        }
    }

    /// How long a vCPU may run on it.
    ///
    /// # Errors
    /// When there will be something again, if there is nothing.
    pub(crate) fn left(&mut self, now: u64) -> Result<u64, u64> {
        if self.quota == 0 {
            return Ok(u64::MAX);
        }
        self.fill(now);
        match u64::try_from(self.left) {
            Ok(left) if left != 0 => Ok(left),
            _ => {
                let periods = self.left.unsigned_abs() / self.quota;
                Err(self
                    .refill
                    .saturating_add(periods.saturating_mul(PERIOD_NS)))
            }
        }
    }
}
