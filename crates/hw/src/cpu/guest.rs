// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies from and to the running guest's memory by its virtual addresses.
//!
//! Every access instruction has an entry in the exception table, so an unmapped or read-only page ends the copy with
//! `EFAULT`. Addresses in the hypervisor's range are refused before the copy (`GuestVa::range_ok`). SMAP is
//! lifted only around the copy.

use core::arch::asm;
use philoxen_abi::addr::GuestWords;
use philoxen_abi::{Errno, GuestMemory, GuestVa, Result};

/// The memory of the vCPU whose page tables this processor has loaded.
///
/// Holding one asserts nothing: with no guest loaded every access fails, because guest addresses are then unmapped.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadedGuest;

/// Copies `N` words by plain moves; false if one of them faulted.
///
/// # Safety
/// The side that is ours is valid for `8 * N` bytes, and the guest's side is outside the hypervisor's range.
#[inline(always)]
unsafe fn move_words<const N: usize>(to: u64, from: u64) -> bool {
    let failed: u32;
    // SAFETY: the caller's contract; a fault on the guest's side resumes at the fixup. A word of the guest is loaded once.
    unsafe {
        asm!(
            "xor {failed:e}, {failed:e}",
            ".set copied, 0",
            ".rept {words}",
            "2: mov {word}, [{from} + copied]",
            "3: mov [{to} + copied], {word}",
            ".pushsection .ex_table, \"a\"",
            ".quad 2b, 5f",
            ".quad 3b, 5f",
            ".popsection",
            ".set copied, copied + 8",
            ".endr",
            "4:",
            ".pushsection .fixup, \"ax\"",
            "5: mov {failed:e}, 1",
            "jmp 4b",
            ".popsection",
            words = const N,
            to = in(reg) to,
            from = in(reg) from,
            word = out(reg) _,
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

/// Copies `len` bytes, small ones by plain moves: with a length known to the compiler only those are left.
///
/// # Safety
/// As [`copy_bytes`].
#[inline(always)]
unsafe fn copy(to: u64, from: u64, len: usize) -> Result<()> {
    macro_rules! by_words {
        ($($words:literal)*) => {
            match len {
                // SAFETY: the caller's contract, for as many bytes.
                $(len if len == 8 * $words => unsafe { move_words::<$words>(to, from) },)*
                // SAFETY: the caller's contract.
                _ => unsafe { copy_long(to, from, len) },
            }
        };
    }
    if by_words!(1 2 3 4 5 6 7 8 9) {
        Ok(())
    } else {
        Err(Errno::EFAULT)
    }
}

/// Copies any number of bytes; false if a fault stopped it.
///
/// # Safety
/// As [`copy_bytes`].
unsafe fn copy_long(to: u64, from: u64, len: usize) -> bool {
    let (words, rest) = (len / 8, len % 8);
    let done = words as u64 * 8;
    // SAFETY: the caller's contract, for the whole words.
    if unsafe { copy_words(to, from, words) } != 0 {
        return false;
    }
    // SAFETY: the rest of the same two ranges.
    (unsafe { copy_bytes(to + done, from + done, rest) }) == 0
}

/// Stores words from registers; leaves the function with `false` if one of the stores faults.
macro_rules! store_words {
    ($to:ident, $($index:literal $word:ident)*) => {
        // SAFETY: `GuestWords` says that the words are outside the hypervisor's range; a store that faults resumes at the label.
        unsafe {
            asm!(
                $(
                    concat!("2: mov [{to} + 8 * ", $index, "], {", stringify!($word), "}"),
                    ".pushsection .ex_table, \"a\"",
                    ".quad 2b, {fault}",
                    ".popsection",
                )*
                to = in(reg) $to,
                $($word = in(reg) $word,)*
                fault = label { return false },
                options(nostack, preserves_flags)
            )
        }
    };
}

impl LoadedGuest {
    /// Stores an entry frame, the usual sizes without a detour through memory; false if a word faulted.
    #[inline(always)]
    pub fn store<const N: usize>(&self, at: GuestWords<N>, words: [u64; N]) -> bool {
        let to = at.start().0;
        let _open = super::features::open_guest_memory();
        match *words.as_slice() {
            [a, b, c, d, e, f, g] => store_words!(to, 0 a 1 b 2 c 3 d 4 e 5 f 6 g),
            [a, b, c, d, e, f, g, h] => store_words!(to, 0 a 1 b 2 c 3 d 4 e 5 f 6 g 7 h),
            // SAFETY: `words` is ours; the guest's side as above.
            _ => return unsafe { move_words::<N>(to, words.as_ptr() as u64) },
        }
        true
    }

    /// Loads the frame of an `iret` hypercall; `None` if a word faults. Each word is loaded once.
    #[inline(always)]
    pub fn load(&self, at: GuestWords<9>) -> Option<[u64; 9]> {
        let failed: u32;
        let (a, b, c, d, e): (u64, u64, u64, u64, u64);
        let (f, g, h, i): (u64, u64, u64, u64);
        let _open = super::features::open_guest_memory();
        // SAFETY: `GuestWords` says that the words are outside the hypervisor's range; a load that faults resumes at the fixup.
        // The address register is not an output: it is read until the last load.
        unsafe {
            asm!(
                "xor {failed:e}, {failed:e}",
                "2: mov {a}, [{from}]",
                "3: mov {b}, [{from} + 8]",
                "4: mov {c}, [{from} + 16]",
                "5: mov {d}, [{from} + 24]",
                "6: mov {e}, [{from} + 32]",
                "7: mov {f}, [{from} + 40]",
                "8: mov {g}, [{from} + 48]",
                "9: mov {h}, [{from} + 56]",
                "22: mov {i}, [{from} + 64]",
                "23:",
                ".pushsection .ex_table, \"a\"",
                ".quad 2b, 24f, 3b, 24f, 4b, 24f, 5b, 24f, 6b, 24f, 7b, 24f, 8b, 24f, 9b, 24f, 22b, 24f",
                ".popsection",
                ".pushsection .fixup, \"ax\"",
                "24: mov {failed:e}, 1",
                "jmp 23b",
                ".popsection",
                from = in(reg) at.start().0,
                failed = out(reg) failed,
                a = out(reg) a, b = out(reg) b, c = out(reg) c, d = out(reg) d, e = out(reg) e,
                f = out(reg) f, g = out(reg) g, h = out(reg) h, i = out(reg) i,
                options(nostack)
            );
        }
        (failed == 0).then_some([a, b, c, d, e, f, g, h, i])
    }
}

impl GuestMemory for LoadedGuest {
    #[inline(always)]
    fn read_bytes(&self, va: GuestVa, out: &mut [u8]) -> Result<()> {
        if !va.range_ok(out.len() as u64) {
            return Err(Errno::EFAULT);
        }
        let _open = super::features::open_guest_memory();
        // SAFETY: `out` is ours and that long; the guest's range was checked above.
        unsafe { copy(out.as_mut_ptr() as u64, va.0, out.len()) }
    }

    #[inline(always)]
    fn write_bytes(&self, va: GuestVa, data: &[u8]) -> Result<()> {
        if !va.range_ok(data.len() as u64) {
            return Err(Errno::EFAULT);
        }
        let _open = super::features::open_guest_memory();
        // SAFETY: `data` is ours and that long; the guest's range was checked above.
        unsafe { copy(va.0, data.as_ptr() as u64, data.len()) }
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
