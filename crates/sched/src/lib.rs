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
#[cfg(test)]
mod tests;
mod timer;
mod vcpu;
mod view;
mod virtual_time;

pub use mask::{CpuMask, MAX_CPUS};
pub use pools::{MAX_POOLS, Pools};
pub use scheduler::{Decision, Kick, Scheduler};
pub use timer::{TimerKey, TimerKind, TimerQueue};
pub use vcpu::{MAX_WEIGHT, Runstate, VcpuKey};
pub use view::{ProcessorView, VcpuView};
pub use virtual_time::Warp;

/// The context-switch allowance unless another is set, in nanoseconds: the paper's.
pub const DEFAULT_ALLOWANCE_NS: u64 = 5_000_000;
/// Weight of a vCPU unless another is set.
pub const DEFAULT_WEIGHT: u32 = 256;
