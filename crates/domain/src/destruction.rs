// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of a domain: steps that are taken in order, by one processor at a time, as far as its budget goes.
//!
//! Invariant: each step can be repeated, and whoever can take the next one comes by: the toolstack asks again until the domain
//! is gone, and the last user of a frame that it granted goes on where the toolstack had to stop. The model is
//! `tests/lifecycle_model.rs`.

use super::sync::Mutex;
use philoxen_abi::hypercall::Budget;

/// How far a destruction has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Its vCPUs stop.
    Stop,
    /// Its event channels close.
    Events,
    /// Its vCPUs give back what they hold.
    Vcpus,
    /// Its mappings of others' frames end, and its own grants.
    Grants,
    /// Its memory goes.
    Memory,
    /// Others still use frames it granted.
    Users,
    /// Nothing left to do.
    Gone,
}

impl Step {
    const fn next(self) -> Self {
        match self {
            Self::Stop => Self::Events,
            Self::Events => Self::Vcpus,
            Self::Vcpus => Self::Grants,
            Self::Grants => Self::Memory,
            Self::Memory => Self::Users,
            Self::Users | Self::Gone => Self::Gone,
        }
    }
}

/// What is left of a domain.
pub trait Remains {
    /// Goes on with `step`; true if nothing is left of it. [`Step::Users`] only asks whether there are any: whoever of
    /// them goes last calls [`Destruction::go_on`].
    fn take(&self, step: Step, budget: &mut Budget) -> bool;

    /// The destruction has come to `step`.
    fn reached(&self, step: Step);
}

/// How far the destruction of one domain has got.
#[derive(Debug)]
pub struct Destruction(Mutex<Step>);

impl Default for Destruction {
    fn default() -> Self {
        Self(Mutex::new(Step::Stop))
    }
}

impl Destruction {
    /// Takes steps of a domain that is dying, as far as the budget goes; true if only others can do more, or nothing is left to
    /// do.
    pub fn go_on(&self, remains: &impl Remains, budget: &mut Budget) -> bool {
        loop {
            // Whoever is at it on another processor goes on; waiting for it here could be waiting for each other, as destroying
            // one domain can free the last grant of another.
            let Some(mut step) = self.0.try_lock() else {
                return false;
            };
            while *step != Step::Gone && remains.take(*step, budget) {
                *step = step.next();
                remains.reached(*step);
            }
            let stopped_at = *step;
            drop(step);
            match stopped_at {
                Step::Gone => return true,
                // A user that went while we held the lock could not take it.
                Step::Users if remains.take(Step::Users, budget) => {}
                Step::Users => return true,
                _ => return false,
            }
        }
    }
}
