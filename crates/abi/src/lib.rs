// SPDX-License-Identifier: MIT OR Apache-2.0
//! The public Xen interface that Philoxen speaks, as Rust types: numbers, error codes and structures.
//!
//! Source: the headers of Debian's `libxen-dev` (`xen/*.h`). Each module names its header. Structures are
//! plain bytes (`zerocopy`), copied in and out of guest memory by value, so no padding or stale byte can leak;
//! structures that a guest shares with the hypervisor are arrays of atomics (see [`shared`]).
#![no_std]

pub mod addr;
pub mod arch;
pub mod callback;
pub mod domctl;
pub mod elfnote;
pub mod errno;
pub mod event;
pub mod features;
pub mod grant;
pub mod guest;
pub mod hypercall;
pub mod hypfs;
pub mod memory;
pub mod mmu;
pub mod physdev;
pub mod platform;
pub mod sched;
pub mod shared;
pub mod start_info;
pub mod sysctl;
pub mod vcpu;
pub mod version;

pub use addr::{DomId, GuestVa, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn, VcpuId};
pub use errno::Errno;
pub use guest::GuestMemory;
pub use hypercall::Flow;

/// Result of a request a guest may get wrong: the error is what the guest sees in `rax`.
pub type Result<T> = core::result::Result<T, Errno>;
