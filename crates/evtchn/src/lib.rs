// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels (xen/event_channel.h): ports, bindings, the two-level and the FIFO layout, upcalls, polling.
//!
//! A domain's [`DomainEvents`] holds a table of [`port`]s that only grows, and one [`VcpuEvents`] per vCPU. Each port
//! is one 64-bit atomic word with its own lock bit; whoever holds that bit of a bound port may touch the frames that
//! the domain shares. Hence the safety argument: frames are given back only when no port is bound, so nobody can
//! be writing to them.
//!
//! Lock order, outermost first: a domain's table, ports by (domain, port), FIFO queues by (vCPU, priority), then what
//! [`Host::kick`] takes. Sending takes the far port's bit and, in the FIFO layout, a queue; never a domain-wide lock.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bind;
mod domain;
mod fifo;
mod free;
mod host;
mod no_info;
mod op;
mod poll;
mod port;
mod raise;
#[cfg(test)]
mod tests;
mod vcpu;

pub use bind::Progress;
pub use domain::{DomainEvents, Limits, PortInfo};
pub(crate) use host::word;
pub use host::{Frames, Host, Words};
pub use op::{Caller, event_channel_op, event_channel_op_compat};
pub use poll::{Poll, poll};
pub use port::State;
pub use vcpu::{VcpuEvents, VcpuInfo};

/// Atomics and locks: models of several processors have their own in this place.
mod sync {
    pub(crate) use core::hint::spin_loop;
    pub(crate) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
    pub(crate) use spin::{Mutex, MutexGuard};
}
