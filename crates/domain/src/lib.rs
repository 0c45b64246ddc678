// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a domain and a vCPU are, apart from memory, events and the processor interface, which have crates of their own:
//! life cycle, time records, hypercall permissions and the hypervisor's options.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod calls;
pub mod clock;
pub mod lifecycle;
pub mod options;
pub mod symbols;
