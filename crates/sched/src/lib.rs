// SPDX-License-Identifier: MIT OR Apache-2.0
//! Scheduling policy and timer queues: pure state machines that are told the time and return what must be done.
//!
//! [`Scheduler`] decides which vCPU runs where: round robin with slices by weight, a boost for vCPUs that wake up, work
//! stealing by idle processors. [`TimerQueue`] orders deadlines. Neither touches hardware nor the domains' types: a vCPU
//! is an opaque [`VcpuKey`].
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod mask;
mod queue;
mod scheduler;
#[cfg(test)]
mod tests;
mod timer;
mod vcpu;

pub use mask::{CpuMask, MAX_CPUS};
pub use scheduler::{Decision, Kick, Scheduler};
pub use timer::{TimerKey, TimerKind, TimerQueue};
pub use vcpu::{Runstate, VcpuKey};

/// Time a vCPU of default weight runs before others get their turn, in nanoseconds.
pub const SLICE_NS: u64 = 10_000_000;
/// Weight of a vCPU unless another is set; the slice grows in proportion.
pub const DEFAULT_WEIGHT: u32 = 256;
