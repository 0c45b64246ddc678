// SPDX-License-Identifier: MIT OR Apache-2.0
//! The decisions behind `domctl` and `sysctl` that need no machine: which domains may be made, how their processor
//! policy travels, how states and sets are told to tools.
//!
//! Invariant: nothing a tool gives reaches a domain unchecked; a CPUID policy only ever loses features.
#![no_std]

extern crate alloc;

#[cfg(test)]
extern crate std;

pub mod bitmap;
pub mod create;
pub mod hypfs;
pub mod info;
pub mod policy;
pub mod ranges;
