// SPDX-License-Identifier: MIT OR Apache-2.0
//! The heart: which domain may use which machine frame as what.
//!
//! In direct paging a guest writes machine addresses into its own page tables, so the type of a frame *is* the
//! memory-safety argument: a frame is never writable by a guest and used by the processor as a page table (or
//! descriptor table) at the same time. This crate holds the frame table ([`frame`]), the pure transitions of a
//! frame's words ([`word`]), validation and invalidation of tables ([`validate`]), every hypercall that changes
//! page tables or a domain's reservation, and the frame allocator ([`buddy`]). It contains no `unsafe` and knows
//! no hardware: it reaches frames as 512 atomic words through the [`machine::Machine`] trait.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

/// The atomics that [`tlb`] is made of: its model has others.
mod atomics {
    pub(crate) use core::sync::atomic::{AtomicU64, Ordering, fence};
}
pub mod audit;
pub mod buddy;
pub mod descriptor;
pub mod emulate;
pub mod entry;
mod exchange;
pub mod frame;
pub mod grant;
pub mod log;
pub mod machine;
mod memory_info;
pub mod mmu_update;
pub mod mmuext;
pub mod relinquish;
pub mod reservation;
pub mod tlb;
mod update;
pub mod va_mapping;
pub mod validate;
pub mod word;

pub use buddy::Buddy;
pub use descriptor::update_descriptor;
pub use emulate::{PteWrite, emulate_pte_write, table_at};
pub use frame::{Frame, FrameTable};
pub use machine::{Cx, DomainMemory, Domains, Flush, FlushScope, IoAccess, Machine, VcpuRoots};
pub use mmu_update::mmu_update;
pub use mmuext::mmuext_op;
pub use relinquish::{Progress, relinquish};
pub use reservation::memory_op;
pub use va_mapping::{update_va_mapping, update_va_mapping_otherdomain};

#[cfg(test)]
mod tests;
