// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies from and to the running guest's memory by its virtual addresses.
//!
//! Every access instruction has an entry in the exception table, so an unmapped or read-only page ends the copy with
//! `EFAULT`. Addresses in the hypervisor's range are refused before the copy (`GuestVa::range_ok`). SMAP is
//! lifted only around the copy.

use core::arch::asm;
use philoxen_abi::{Errno, GuestMemory, GuestVa, Result};

/// The memory of the vCPU whose page tables this processor has loaded.
///
/// Holding one asserts nothing: with no guest loaded every access fails, because guest addresses are then unmapped.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadedGuest;

/// Reads one word at `address`, which the caller found to be outside the hypervisor's range.
#[inline(always)]
fn read_word(address: u64) -> Option<u64> {
    let value: u64;
    let failed: u32;
    // SAFETY: reads guest memory into a register; a fault resumes at the fixup. No Rust object lies there.
    unsafe {
        asm!(
            "xor {failed:e}, {failed:e}",
            "2: mov {value}, [{address}]",
            "3:",
            ".pushsection .fixup, \"ax\"",
            "4: mov {failed:e}, 1",
            "xor {value:e}, {value:e}",
            "jmp 3b",
            ".popsection",
            ".pushsection .ex_table, \"a\"",
            ".quad 2b, 4b",
            ".popsection",
            address = in(reg) address,
            value = out(reg) value,
            failed = out(reg) failed,
            options(nostack, readonly)
        );
    }
    (failed == 0).then_some(value)
}

/// Writes one word at `address`, which the caller found to be outside the hypervisor's range.
#[inline(always)]
fn write_word(address: u64, value: u64) -> bool {
    let failed: u32;
    // SAFETY: writes guest memory through the guest's own writable mapping, which the frame types allow; a fault
    // resumes at the fixup. No Rust object lies there.
    unsafe {
        asm!(
            "xor {failed:e}, {failed:e}",
            "2: mov [{address}], {value}",
            "3:",
            ".pushsection .fixup, \"ax\"",
            "4: mov {failed:e}, 1",
            "jmp 3b",
            ".popsection",
            ".pushsection .ex_table, \"a\"",
            ".quad 2b, 4b",
            ".popsection",
            address = in(reg) address,
            value = in(reg) value,
            failed = out(reg) failed,
            options(nostack)
        );
    }
    failed == 0
}

/// Copies bytes; returns how many were left when a fault stopped it.
///
/// # Safety
/// The side that is ours is valid for `len` bytes, and the guest's side is outside the hypervisor's range.
#[inline]
unsafe fn copy_bytes(to: u64, from: u64, len: usize) -> usize {
    let left: usize;
    // SAFETY: the caller's contract; a fault on the guest's side resumes at 3 with what is left in rcx.
    unsafe {
        asm!(
            "2: rep movsb",
            "3:",
            ".pushsection .ex_table, \"a\"",
            ".quad 2b, 3b",
            ".popsection",
            inout("rcx") len => left,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
    left
}

/// Copies whole words; returns how many words were left when a fault stopped it.
///
/// # Safety
/// As [`copy_bytes`], for `words * 8` bytes.
#[inline]
unsafe fn copy_words(to: u64, from: u64, words: usize) -> usize {
    let left: usize;
    // SAFETY: as copy_bytes.
    unsafe {
        asm!(
            "2: rep movsq",
            "3:",
            ".pushsection .ex_table, \"a\"",
            ".quad 2b, 3b",
            ".popsection",
            inout("rcx") words => left,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
    left
}

/// Words up to which a copy is done by plain moves.
const INLINE_WORDS: usize = 8;

impl GuestMemory for LoadedGuest {
    #[inline(always)]
    fn read_bytes(&self, va: GuestVa, out: &mut [u8]) -> Result<()> {
        if !va.range_ok(out.len() as u64) {
            return Err(Errno::EFAULT);
        }
        let _open = super::features::open_guest_memory();
        if out.len() <= INLINE_WORDS * 8 && out.len().is_multiple_of(8) {
            for (index, chunk) in out.chunks_exact_mut(8).enumerate() {
                let word = read_word(va.0 + index as u64 * 8).ok_or(Errno::EFAULT)?;
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            return Ok(());
        }
        let (words, rest) = (out.len() / 8, out.len() % 8);
        let to = out.as_mut_ptr() as u64;
        // SAFETY: `out` is ours and that long; the guest's range was checked above.
        let left = unsafe { copy_words(to, va.0, words) };
        if left != 0 {
            return Err(Errno::EFAULT);
        }
        let done = words as u64 * 8;
        // SAFETY: the rest of the same two ranges.
        let left = unsafe { copy_bytes(to + done, va.0 + done, rest) };
        if left == 0 {
            Ok(())
        } else {
            Err(Errno::EFAULT)
        }
    }

    #[inline(always)]
    fn write_bytes(&self, va: GuestVa, data: &[u8]) -> Result<()> {
        if !va.range_ok(data.len() as u64) {
            return Err(Errno::EFAULT);
        }
        let _open = super::features::open_guest_memory();
        if data.len() <= INLINE_WORDS * 8 && data.len().is_multiple_of(8) {
            for (index, chunk) in data.chunks_exact(8).enumerate() {
                let mut word = [0; 8];
                word.copy_from_slice(chunk);
                if !write_word(va.0 + index as u64 * 8, u64::from_ne_bytes(word)) {
                    return Err(Errno::EFAULT);
                }
            }
            return Ok(());
        }
        let (words, rest) = (data.len() / 8, data.len() % 8);
        let from = data.as_ptr() as u64;
        // SAFETY: `data` is ours and that long; the guest's range was checked above.
        let left = unsafe { copy_words(va.0, from, words) };
        if left != 0 {
            return Err(Errno::EFAULT);
        }
        let done = words as u64 * 8;
        // SAFETY: the rest of the same two ranges.
        let left = unsafe { copy_bytes(va.0 + done, from + done, rest) };
        if left == 0 {
            Ok(())
        } else {
            Err(Errno::EFAULT)
        }
    }
}

/// Copies up to `out.len()` bytes from the guest until a fault stops it; returns how many arrived.
///
/// For instruction bytes, which may end at an unmapped page.
pub fn read_prefix(va: GuestVa, out: &mut [u8]) -> usize {
    let room = if va.range_ok(out.len() as u64) {
        out.len()
    } else {
        0
    };
    let _open = super::features::open_guest_memory();
    // SAFETY: `out` is ours and at least `room` long; the guest's range was checked.
    let left = unsafe { copy_bytes(out.as_mut_ptr() as u64, va.0, room) };
    room - left
}
