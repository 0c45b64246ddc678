// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a domain: one atomic word, so that every processor sees the same step and no step is taken twice.
//!
//! ```text
//!   Building ──start──▶ Running ──shut_down(reason)──▶ ShutDown
//!       │                  │                              │
//!       └──────────────────┴────────── destroy ───────────┴──▶ Dying ──last frame gone──▶ Dead
//! ```

use core::sync::atomic::{AtomicU32, Ordering};

/// Why a guest stopped (`SHUTDOWN_*`, xen/sched.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ShutdownReason {
    /// `SHUTDOWN_poweroff`.
    Poweroff = 0,
    /// `SHUTDOWN_reboot`.
    Reboot = 1,
    /// `SHUTDOWN_suspend`.
    Suspend = 2,
    /// `SHUTDOWN_crash`.
    Crash = 3,
    /// `SHUTDOWN_watchdog`.
    Watchdog = 4,
    /// `SHUTDOWN_soft_reset`.
    SoftReset = 5,
}

impl ShutdownReason {
    /// The reason with ABI number `code`.
    pub fn from_code(code: u32) -> Option<Self> {
        [
            Self::Poweroff,
            Self::Reboot,
            Self::Suspend,
            Self::Crash,
            Self::Watchdog,
            Self::SoftReset,
        ]
        .into_iter()
        .find(|reason| *reason as u32 == code)
    }
}

/// Where a domain is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Being built: no vCPU has run.
    Building,
    /// Its vCPUs may run.
    Running,
    /// Stopped for this reason; its memory is still there.
    ShutDown(ShutdownReason),
    /// Being taken apart.
    Dying,
    /// Nothing is left but references.
    Dead,
}

const BUILDING: u32 = 0;
const RUNNING: u32 = 1;
const SHUT_DOWN: u32 = 2;
const DYING: u32 = 3;
const DEAD: u32 = 4;

/// The phase of one domain.
#[derive(Debug)]
pub struct Lifecycle(AtomicU32);

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle {
    /// A domain under construction.
    pub const fn new() -> Self {
        Self(AtomicU32::new(BUILDING))
    }

    /// The present phase.
    pub fn phase(&self) -> Phase {
        let word = self.0.load(Ordering::Acquire);
        match word & 0xff {
            BUILDING => Phase::Building,
            RUNNING => Phase::Running,
            SHUT_DOWN => Phase::ShutDown(
                ShutdownReason::from_code(word >> 8).unwrap_or(ShutdownReason::Crash),
            ),
            DYING => Phase::Dying,
            _ => Phase::Dead,
        }
    }

    /// True while its vCPUs may run.
    #[inline]
    pub fn is_running(&self) -> bool {
        self.0.load(Ordering::Acquire) == RUNNING
    }

    /// True from the beginning of destruction on.
    pub fn is_dying(&self) -> bool {
        matches!(self.phase(), Phase::Dying | Phase::Dead)
    }

    fn step(&self, from: impl Fn(u32) -> bool, to: u32) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                from(word & 0xff).then_some(to)
            })
            .is_ok()
    }

    /// Building to running; false in any other phase.
    pub fn start(&self) -> bool {
        self.step(|phase| phase == BUILDING, RUNNING)
    }

    /// Running to shut down; false if it was not running (the first reason stays).
    pub fn shut_down(&self, reason: ShutdownReason) -> bool {
        self.step(
            |phase| phase == RUNNING,
            SHUT_DOWN | u32::from(reason as u8) << 8,
        )
    }

    /// Shut down to running again (a suspend that was cancelled); false otherwise.
    pub fn resume(&self) -> bool {
        self.step(|phase| phase == SHUT_DOWN, RUNNING)
    }

    /// Begins destruction; false if somebody else began it (the work is then theirs to finish or to share).
    pub fn kill(&self) -> bool {
        self.step(|phase| phase < DYING, DYING)
    }

    /// Dying to dead; false in any other phase.
    pub fn finish(&self) -> bool {
        self.step(|phase| phase == DYING, DEAD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    #[test]
    fn ordinary_life() {
        let life = Lifecycle::new();
        assert!(!life.shut_down(ShutdownReason::Crash));
        assert!(life.start() && !life.start());
        assert!(life.is_running());
        assert!(life.shut_down(ShutdownReason::Reboot) && !life.shut_down(ShutdownReason::Crash));
        assert_eq!(life.phase(), Phase::ShutDown(ShutdownReason::Reboot));
        assert!(life.kill() && !life.kill());
        assert!(!life.resume() && !life.start());
        assert!(life.finish() && !life.finish());
        assert_eq!(life.phase(), Phase::Dead);
    }

    #[test]
    fn only_one_processor_destroys() {
        for _ in 0..200 {
            let (life, wins) = (Lifecycle::new(), AtomicUsize::new(0));
            life.start();
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        life.shut_down(ShutdownReason::Crash);
                        if life.kill() {
                            wins.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            assert_eq!(wins.load(Ordering::Relaxed), 1);
            assert_eq!(life.phase(), Phase::Dying);
        }
    }

    #[test]
    fn reasons_have_the_abi_numbers() {
        for code in 0..6 {
            assert_eq!(
                ShutdownReason::from_code(code).map(|r| r as u32),
                Some(code)
            );
        }
        assert_eq!(ShutdownReason::from_code(6), None);
    }
}
