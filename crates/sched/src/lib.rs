// SPDX-License-Identifier: MIT OR Apache-2.0
//! Scheduling policy and timer queues: pure state machines that are told the time and return what must be done.
//!
//! [`Scheduler`] decides which vCPU runs where, by Borrowed Virtual Time. [`TimerQueue`] orders deadlines. Neither touches
//! hardware nor the domains' types: a vCPU is an opaque [`VcpuKey`].
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod cap;
mod choice;
mod field;
mod group;
mod heap;
mod mask;
mod pools;
mod queueing;
mod scheduler;
mod switch;
#[cfg(test)]
mod tests;
mod timer;
mod vcpu;
mod view;
mod virtual_time;

pub use mask::{CpuMask, MAX_CPUS};
pub use pools::{MAX_POOLS, Pools};
pub use scheduler::{DEFAULT_ALLOWANCE_NS, DEFAULT_WEIGHT, Decision, Kick, Scheduler};
pub use switch::Processor;
pub use timer::{TimerKey, TimerKind, TimerQueue};
pub use vcpu::{MAX_WEIGHT, Runstate, VcpuKey};
pub use view::{ProcessorView, VcpuView};
pub use virtual_time::Warp;

/// Atomics and locks: models of several processors have their own in this place.
mod sync {
    pub(crate) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
    pub(crate) use spin::{Mutex, MutexGuard};
}
