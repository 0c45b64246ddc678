// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a domain: one atomic word, so that every processor sees the same step and no step is taken twice; and the
//! pauses that go with it.
//!
//! ```text
//!   Building ──start──▶ Running ──shut_down(reason)──▶ ShutDown
//!       │                  │                              │
//!       └──────────────────┴────────── destroy ───────────┴──▶ Dying ──last frame gone──▶ Dead
//! ```
//!
//! Invariant: of the pauses of each vCPU, one is the toolstack's while it has paused the domain, and one is the shutdown's
//! from before the domain is seen to be shut down until it is resumed. A domain that shuts down is seen as running until
//! then, so whoever resumes it undoes pauses that were made. The model is `tests/lifecycle_model.rs`.

use super::sync::{AtomicU32, Mutex, MutexGuard, Ordering};
use philoxen_abi::{Errno, Result};

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
/// On the way to `SHUT_DOWN`: its vCPUs are being paused.
const STOPPING: u32 = 2;
const SHUT_DOWN: u32 = 3;
const DYING: u32 = 4;
const DEAD: u32 = 5;

/// The phase of one domain, and its pauses by the toolstack.
#[derive(Debug)]
pub struct Lifecycle {
    word: AtomicU32,
    /// Pauses by the toolstack that were not undone; its vCPUs are paused once while it is not 0. Destruction begins under this
    /// lock, so with it held a domain that is alive stays so.
    pauses: Mutex<u32>,
}

/// A domain that does not begin to die, and whose pauses do not change.
#[derive(Debug)]
pub struct Steady<'a>(MutexGuard<'a, u32>);

impl Steady<'_> {
    /// True if the toolstack has paused it.
    pub fn is_paused(&self) -> bool {
        *self.0 != 0
    }
}

impl Lifecycle {
    /// A domain under construction, which the toolstack has paused `pauses` times.
    pub fn new(pauses: u32) -> Self {
        Self {
            word: AtomicU32::new(BUILDING),
            pauses: Mutex::new(pauses),
        }
    }

    /// The present phase.
    pub fn phase(&self) -> Phase {
        let word = self.word.load(Ordering::Acquire);
        match word & 0xff {
            BUILDING => Phase::Building,
            RUNNING | STOPPING => Phase::Running,
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
        self.word.load(Ordering::Acquire) == RUNNING
    }

    /// True from the beginning of destruction on.
    pub fn is_dying(&self) -> bool {
        matches!(self.phase(), Phase::Dying | Phase::Dead)
    }

    /// True if the toolstack has paused it.
    pub fn is_paused(&self) -> bool {
        *self.pauses.lock() != 0
    }

    fn step(&self, from: impl Fn(u32) -> bool, to: u32) -> bool {
        self.word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                from(word & 0xff).then_some(to)
            })
            .is_ok()
    }

    /// Building to running; false in any other phase.
    pub fn start(&self) -> bool {
        self.step(|phase| phase == BUILDING, RUNNING)
    }

    /// Running to shut down; false if it was not running (the first reason stays). `stop` pauses each vCPU, and returns
    /// when they stand still.
    pub fn shut_down(&self, reason: ShutdownReason, stop: impl FnOnce()) -> bool {
        let reason = u32::from(reason as u8) << 8;
        if !self.step(|phase| phase == RUNNING, STOPPING | reason) {
            return false;
        }
        stop();
        // Unless its destruction began meanwhile.
        self.step(|phase| phase == STOPPING, SHUT_DOWN | reason);
        true
    }

    /// Shut down to running again (a suspend that was cancelled); false otherwise. `go` undoes one pause of each vCPU.
    pub fn resume(&self, go: impl FnOnce()) -> bool {
        let _alive = self.pauses.lock();
        let resumed = self.step(|phase| phase == SHUT_DOWN, RUNNING);
        if resumed {
            go();
        }
        resumed
    }

    /// A pause by the toolstack. For the first one `stop` pauses each vCPU.
    ///
    /// # Errors
    /// `EINVAL` after 2^32 pauses or once the domain is dying.
    pub fn pause(&self, stop: impl FnOnce()) -> Result<()> {
        let mut pauses = self.alive()?;
        let new = pauses.checked_add(1).ok_or(Errno::EINVAL)?;
        if *pauses == 0 {
            stop();
        }
        *pauses = new;
        Ok(())
    }

    /// Undoes a pause by the toolstack. For the last one `go` undoes one pause of each vCPU; the first time, the domain begins
    /// to run.
    ///
    /// # Errors
    /// `EINVAL` if the toolstack has not paused it or the domain is dying.
    pub fn unpause(&self, go: impl FnOnce()) -> Result<()> {
        let mut pauses = self.alive()?;
        let new = pauses.checked_sub(1).ok_or(Errno::EINVAL)?;
        *pauses = new;
        if new == 0 {
            // Only the first time: later it is running, or shut down.
            self.start();
            go();
        }
        Ok(())
    }

    fn alive(&self) -> Result<MutexGuard<'_, u32>> {
        let pauses = self.pauses.lock();
        if self.is_dying() {
            return Err(Errno::EINVAL);
        }
        Ok(pauses)
    }

    /// Keeps a domain alive and its pauses as they are.
    ///
    /// # Errors
    /// `EINVAL` once the domain is dying.
    pub fn steady(&self) -> Result<Steady<'_>> {
        self.alive().map(Steady)
    }

    /// Begins destruction; false if somebody else began it (the work is then theirs to finish or to share). Whoever kept the
    /// domain alive has finished; others see that it dies.
    pub fn kill(&self) -> bool {
        let _pauses = self.pauses.lock();
        self.step(|phase| phase < DYING, DYING)
    }

    /// Dying to dead; false in any other phase.
    pub fn finish(&self) -> bool {
        self.step(|phase| phase == DYING, DEAD)
    }
}
