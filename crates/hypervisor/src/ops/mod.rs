// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hypercall handlers for the running vCPU, by subject. Handlers take the raw argument registers and check them.

pub mod console;
pub mod control;
pub mod domctl;
pub mod events;
pub mod grant;
pub mod hypfs;
pub mod memory;
pub mod misc;
pub mod multicall;
pub mod physdev;
pub mod sched;
pub mod sysctl;
pub mod vcpu;
