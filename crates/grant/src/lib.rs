// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grant tables (xen/grant_table.h): how one domain lets another use single frames of its own.
//!
//! The granter writes entries into frames it shares with the hypervisor ([`entry`]). While an entry is in use the
//! hypervisor keeps what it read there as a pinned [`table`] entry, counted by use (host or device, reading or writing),
//! and shows the granter that it is in use. A mapping is a handle in the [`maptrack`] of the domain that maps.
//!
//! Who holds what:
//! - a handle holds one reference to the frame (a writable one unless it is read-only) and one pin per use;
//! - the page-table entry it made holds a reference of its own (`philoxen_paging::grant`), so no order of unmap, plain
//!   writes to page tables and death of either domain loses a reference or drops one twice;
//! - a handle keeps the granter's [`GrantTable`] alive, so a later domain of the same number is never taken for it.
//!
//! A use ends in this order: leaf removed, TLBs flushed, the frame's reference dropped, pin dropped and the granter told
//! (XSA-218): once the granter sees its entry unused, the frame is its own again.
//!
//! Locks: [`GrantTable`] has two, of its entries and of its handles. Neither is ever held together with another of this
//! crate, nor while a frame's type is changed, which may have to wait for other processors; inside are only the heap's.
//! Transitive grants are refused (XSA-226).
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod copy;
mod entries;
pub mod entry;
pub mod host;
mod map;
pub mod maptrack;
mod op;
mod resource;
pub mod table;
mod transfer;
mod unmap;

pub use host::{Host, Limits};
pub use op::grant_table_op;
pub use resource::acquire_resource;
pub use table::GrantTable;

#[cfg(test)]
mod tests;

/// Locks, which give others their turn in tests.
mod sync {
    #[cfg(not(test))]
    pub(crate) use spin::Mutex;
    #[cfg(test)]
    pub(crate) type Mutex<T> = spin::mutex::Mutex<T, crate::tests::turns::Pass>;
}
