// SPDX-License-Identifier: MIT OR Apache-2.0
//! Philoxen, the hypervisor: the binary that joins the policy crates to the hardware crate.
//!
//! Start at [`start`] for the boot, at [`entry`] for the ways in from guests, at [`cpu`] for the way out, and at
//! [`syscall`] and [`traps`] for what happens in between.
#![no_std]
#![no_main]

extern crate alloc;

mod context;
mod cpu;
mod dom0;
mod domain;
mod dump;
mod emulate;
mod entry;
mod fatal;
mod host;
mod input;
mod irq;
mod keys;
mod lifecycle;
mod ops;
mod paging;
mod policy;
mod pools;
mod ports;
mod power;
mod refusal;
mod schedule;
mod smp;
mod start;
mod syscall;
mod time;
mod traps;
mod vcpu;
mod watchdog;
