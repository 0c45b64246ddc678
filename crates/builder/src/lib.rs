// SPDX-License-Identifier: MIT OR Apache-2.0
//! The domain builder's pure part: from a boot loader's bytes to a PV guest ready to run.
//!
//! 1. [`unpack`] finds the ELF kernel in a bzImage, a compressed file or a plain ELF.
//! 2. [`Kernel::parse`] reads its segments and Xen notes.
//! 3. [`Plan::new`] decides where everything goes: a pure function.
//! 4. [`P2m`] gives every PFN its machine frame, and [`build`] writes the guest through a [`Target`].
//!
//! Invariant: whatever the image holds, the answer is a domain inside its own frames or a [`BuildError`] that
//! says in one line what is wrong; nothing here panics or allocates more than [`MAX_IMAGE`] and a dictionary.
//! The contract is that of xen/xen.h ("start of day memory layout") and xen/elfnote.h.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod bytes;
mod crc;
mod decompress;
mod elf;
mod error;
mod image;
mod load;
mod lzma;
mod notes;
mod p2m;
mod plan;
mod stubs;
#[cfg(test)]
mod tests;
mod xz;

pub use decompress::MAX_IMAGE;
pub use elf::{Kernel, Segment};
pub use error::BuildError;
pub use image::unpack;
pub use load::{Identity, Target, build, load_segments};
pub use notes::KernelNotes;
pub use p2m::{Extent, P2m};
pub use plan::{Entry, Flavour, P2mPlan, Plan, Ramdisk, Request, Tables};
pub use stubs::hypercall_page;
