// SPDX-License-Identifier: MIT OR Apache-2.0
//! Filling and copying of whole frames through the direct map.

use core::arch::asm;

/// Stores `value` in `words` words from `to` on; `words` is a multiple of 16.
///
/// Plain stores, sixteen to a turn: as fast as string instructions on processors, and much faster where an
/// emulator steps through each turn of a repeated instruction.
///
/// # Safety
/// The words are mapped writable, 8-byte aligned, and no Rust reference but atomics covers them.
pub(super) unsafe fn fill(to: u64, value: u64, words: u64) {
    let turns = words / 16;
    if turns == 0 {
        return;
    }
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "2:",
            "mov [{to}], {value}",
            "mov [{to} + 8], {value}",
            "mov [{to} + 16], {value}",
            "mov [{to} + 24], {value}",
            "mov [{to} + 32], {value}",
            "mov [{to} + 40], {value}",
            "mov [{to} + 48], {value}",
            "mov [{to} + 56], {value}",
            "mov [{to} + 64], {value}",
            "mov [{to} + 72], {value}",
            "mov [{to} + 80], {value}",
            "mov [{to} + 88], {value}",
            "mov [{to} + 96], {value}",
            "mov [{to} + 104], {value}",
            "mov [{to} + 112], {value}",
            "mov [{to} + 120], {value}",
            "add {to}, 128",
            "dec {turns}",
            "jnz 2b",
            to = inout(reg) to => _,
            value = in(reg) value,
            turns = inout(reg) turns => _,
            options(nostack)
        );
    }
}

/// Copies `len` bytes.
///
/// # Safety
/// Both sides are mapped, do not overlap, and the target is covered by no Rust reference but atomics or the
/// caller's own exclusive one.
pub(super) unsafe fn copy(to: u64, from: u64, len: usize) {
    // SAFETY: the caller's contract; whole words first, then the rest.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {rest}",
            "rep movsb",
            rest = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Clears `len` bytes, at any alignment.
///
/// # Safety
/// As [`fill`], but for alignment.
pub(super) unsafe fn clear(to: u64, len: u64) {
    let head = (to.wrapping_neg() % 8).min(len);
    // The bulk is whole turns of `fill`.
    let bulk = (len - head) / 128 * 128;
    let tail = len - head - bulk;
    // SAFETY: the caller's contract: the middle part, now aligned.
    unsafe { fill(to + head, 0, bulk / 8) };
    for (start, bytes) in [(to, head), (to + head + bulk, tail)] {
        // SAFETY: the caller's contract: what is left at both ends.
        unsafe {
            asm!(
                "rep stosb",
                inout("rcx") bytes => _,
                inout("rdi") start => _,
                in("al") 0u8,
                options(nostack, preserves_flags)
            );
        }
    }
}
