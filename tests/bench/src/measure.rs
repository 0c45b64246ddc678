// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a row is timed: batches long enough for the clock, several times over, the median.
//!
//! A batch is grown until it lasts [`Plan::batch`]. The median of the repetitions is reported, as
//! one disturbed batch must not move the figure.

use std::io::Result;
use std::time::{Duration, Instant};

/// How long and how often to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Shortest batch that is trusted.
    pub batch: Duration,
    /// Batches per row.
    pub repetitions: usize,
}

impl Plan {
    /// For figures that are kept.
    pub const FULL: Self = Self {
        batch: Duration::from_millis(20),
        repetitions: 11,
    };
    /// For a test that only wants to see every row work.
    pub const QUICK: Self = Self {
        batch: Duration::from_millis(5),
        repetitions: 3,
    };

    /// Microseconds per operation of `batch`, which does the number of operations it is given.
    pub fn time(self, mut batch: impl FnMut(u64) -> Result<()>) -> Result<f64> {
        let mut count = self.calibrate(&mut batch)?;
        let mut samples = Vec::with_capacity(self.repetitions);
        while samples.len() < self.repetitions {
            let spent = clock(&mut batch, count)?;
            // The first batches ran cold: once warm, the same count can be too short.
            if spent < self.batch / 2 && samples.is_empty() {
                count = count.saturating_mul(2);
                continue;
            }
            samples.push(spent.as_secs_f64() * 1e6 / count as f64);
        }
        samples.sort_by(f64::total_cmp);
        Ok(samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN))
    }

    /// The number of operations that fills a batch.
    fn calibrate(self, batch: &mut impl FnMut(u64) -> Result<()>) -> Result<u64> {
        let mut count = 1_u64;
        loop {
            let spent = clock(batch, count)?;
            if spent >= self.batch || count >= 1 << 32 {
                return Ok(count);
            }
            // Aim at the wanted time from what was seen, at most ten times at once: the first operations are slow.
            let wanted = self.batch.as_nanos() * 5 / 4 / spent.as_nanos().max(1);
            count = count.saturating_mul(u64::try_from(wanted).unwrap_or(u64::MAX).clamp(2, 10));
        }
    }
}

fn clock(batch: &mut impl FnMut(u64) -> Result<()>, count: u64) -> Result<Duration> {
    let start = Instant::now();
    batch(count)?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_grows_until_the_clock_can_tell() {
        let mut largest = 0;
        let plan = Plan {
            batch: Duration::from_millis(4),
            repetitions: 5,
        };
        let each = plan
            .time(|count| {
                largest = largest.max(count);
                std::thread::sleep(Duration::from_micros(200) * u32::try_from(count).unwrap());
                Ok(())
            })
            .unwrap();
        assert!(
            largest >= 2,
            "one operation is shorter than a batch: {largest}"
        );
        assert!((200.0..5000.0).contains(&each), "{each}");
    }

    #[test]
    fn failure_is_handed_on() {
        let error = Plan::QUICK
            .time(|_| Err(std::io::Error::other("refused")))
            .unwrap_err();
        assert_eq!(error.to_string(), "refused");
    }
}
