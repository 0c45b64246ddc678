// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page-table entries: their bits, and what the hypervisor makes of the ones a guest asks for.
//!
//! A guest's present entries are always user-accessible (a PV kernel runs in ring 3) and never global. Bits that
//! software may use are kept. Large pages are refused at every level: a superpage could cover a table (XSA-148).

use philoxen_abi::addr::{HYPERVISOR_END_SLOT, HYPERVISOR_FIRST_SLOT};
use philoxen_abi::{Errno, Mfn, PAGE_SHIFT, Result};

/// Present.
pub const P: u64 = 1 << 0;
/// Writable.
pub const RW: u64 = 1 << 1;
/// User-accessible.
pub const US: u64 = 1 << 2;
/// Write-through (PAT index bit 0).
pub const PWT: u64 = 1 << 3;
/// Cache disable (PAT index bit 1).
pub const PCD: u64 = 1 << 4;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty.
pub const D: u64 = 1 << 6;
/// Large page (L2 and up); in an L1 entry this bit is [`PAT`].
pub const PSE: u64 = 1 << 7;
/// PAT index bit 2 of an L1 entry.
pub const PAT: u64 = 1 << 7;
/// Global.
pub const G: u64 = 1 << 8;
/// In an L1 entry: the guest stored it without [`US`], so it is its kernel's. The guest sees the bit, and an entry that
/// it stores with it stays its kernel's. Nothing but the log of writes ([`crate::log`]) goes by it.
pub const KERNEL: u64 = 1 << 52;
/// No execute.
pub const NX: u64 = 1 << 63;
/// Machine address bits.
pub const ADDR: u64 = 0x000f_ffff_ffff_f000;
/// Cacheability of an L1 entry.
pub const CACHE: u64 = PWT | PCD | PAT;

/// The frame an entry points to.
#[inline]
pub const fn mfn(entry: u64) -> Mfn {
    Mfn((entry & ADDR) >> PAGE_SHIFT)
}

/// A present L1 entry as a guest gave it, made user-accessible and not global; [`KERNEL`] remembers whose it is.
#[inline]
pub const fn leaf(raw: u64) -> u64 {
    let kernel = (raw & US ^ US) << (KERNEL.trailing_zeros() - US.trailing_zeros());
    (raw | kernel | US) & !G
}

/// True for an entry through which can be written without a trace in the entry.
#[inline]
pub const fn is_written(entry: u64) -> bool {
    entry & (P | RW | D) == P | RW | D
}

/// True for a present entry.
#[inline]
pub const fn is_present(entry: u64) -> bool {
    entry & P != 0
}

/// A present L1 entry for RAM: always write-back, so that no alias with another memory type exists (XSA-402).
#[inline]
pub const fn ram_leaf(raw: u64) -> u64 {
    leaf(raw) & !CACHE
}

/// A present L1 entry for what is not RAM: write-back is made uncached (XSA-154), other types are as asked.
#[inline]
pub const fn io_leaf(raw: u64) -> u64 {
    let entry = leaf(raw);
    if entry & CACHE == 0 {
        entry | PCD
    } else {
        entry
    }
}

/// A present L2, L3 or L4 entry.
///
/// # Errors
/// `EINVAL` for large pages, and cacheability or global bits, which mean nothing good there.
#[inline]
pub const fn table_entry(raw: u64) -> Result<u64> {
    if raw & (PSE | PWT | PCD | G) != 0 {
        Err(Errno::EINVAL)
    } else {
        Ok(raw | US)
    }
}

/// True for the L4 slots that belong to the hypervisor.
#[inline]
pub const fn is_hypervisor_slot(index: usize) -> bool {
    index >= HYPERVISOR_FIRST_SLOT && index < HYPERVISOR_END_SLOT
}

/// Index of `va` in the table of `level` (1 to 4).
#[inline]
pub const fn index(va: u64, level: u32) -> usize {
    ((va >> (PAGE_SHIFT + 9 * (level - 1))) & 511) as usize
}
