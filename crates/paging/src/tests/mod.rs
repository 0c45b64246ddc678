// SPDX-License-Identifier: MIT OR Apache-2.0
//! Host tests: a machine of boxed pages with a TLB that forgets nothing until flushed.

mod advisories;
mod allocator;
mod fake;
mod hammer;
mod log;
mod model;
