// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every theme uses: a very small PV kernel.

pub mod cell;
pub mod check;
pub mod console;
pub mod domctl;
pub mod entry;
pub mod events;
pub mod hyper;
pub mod memory;
pub mod random;
pub mod time;
pub mod traps;
pub mod user;
