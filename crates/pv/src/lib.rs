// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processor as a paravirtualised kernel sees it: exception frames, `iret`, emulated instructions, CPUID, MSRs,
//! control and debug registers, and descriptors.
//!
//! Everything here is policy over plain values: no memory is touched except through
//! [`GuestMemory`](philoxen_abi::GuestMemory), no instruction is executed, and no input reaches a panic.
//! Invariant: whatever a guest asks, the state this crate computes runs in ring 3, with interrupts enabled, I/O
//! privilege 0 and a canonical instruction pointer.
#![no_std]
#[cfg(test)]
extern crate std;

mod alu;
pub mod bounce;
pub mod control;
pub mod cpuid;
pub mod cpuid_mask;
pub mod debugreg;
pub mod decode;
pub mod descriptor;
pub mod emulate;
pub mod fpu;
pub mod iret;
pub mod msr;
pub mod ptwrite;
pub mod regs;
pub mod state;

pub use bounce::{Bounce, Frame, KernelEntry, Trap};
pub use regs::Regs;
pub use state::{Crash, PvCpu};
