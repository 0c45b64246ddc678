// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a domain and a vCPU are, apart from memory, events and the processor interface, which have crates of their own:
//! life cycle, time records, hypercall permissions and the hypervisor's options.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod calls;
pub mod clock;
pub mod destruction;
pub mod lifecycle;
#[cfg(test)]
mod lifecycle_tests;
pub mod options;
pub mod symbols;

/// Atomics and locks: models of several processors have their own in this place.
mod sync {
    pub(crate) use core::sync::atomic::{AtomicU32, Ordering};
    pub(crate) use spin::{Mutex, MutexGuard};
}
