// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hardware access: the only crate of the hypervisor that contains `unsafe`.
//!
//! It offers the machine to the policy crates as safe functions and small types: boot information, memory as
//! frames of atomic words, processor state, interrupts and timers. Each module says which invariant its `unsafe`
//! rests on; docs/design.md lists them.
#![no_std]

extern crate alloc;

pub mod boot;
pub mod cpu;
pub mod dev;
pub mod log;
pub mod machine;
pub mod memory;
pub mod serial;
