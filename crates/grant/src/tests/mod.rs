// SPDX-License-Identifier: MIT OR Apache-2.0
//! Host tests: a machine of boxed pages, three domains with page tables, and a TLB that forgets nothing until flushed.

mod advisories;
mod fake;
mod model;
mod orders;
mod shadow;
mod status;
mod threads;
pub(crate) mod turns;
mod versions;
