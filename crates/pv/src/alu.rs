// SPDX-License-Identifier: MIT OR Apache-2.0
//! Results and flags of the integer operations that emulated instructions perform.

use philoxen_abi::arch::rflags::{AF, CF, OF, PF, SF, ZF};

/// All arithmetic flags.
pub(crate) const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// Low `size` bytes set (1, 2, 4 or 8).
#[inline]
pub(crate) const fn mask(size: u8) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

const fn sign(size: u8) -> u64 {
    mask(size) ^ (mask(size) >> 1)
}

/// PF, ZF and SF of a result.
const fn result_flags(result: u64, size: u8) -> u64 {
    let result = result & mask(size);
    let mut flags = 0;
    if result == 0 {
        flags |= ZF;
    }
    if result & sign(size) != 0 {
        flags |= SF;
    }
    if (result as u8).count_ones() & 1 == 0 {
        flags |= PF;
    }
    flags
}

/// Flags of AND, OR, XOR: CF and OF clear (AF, undefined, too).
pub(crate) const fn logic(result: u64, size: u8) -> u64 {
    result_flags(result, size)
}

/// Sum and flags.
pub(crate) const fn add(a: u64, b: u64, size: u8) -> (u64, u64) {
    let (a, b) = (a & mask(size), b & mask(size));
    let sum = a.wrapping_add(b) & mask(size);
    let mut flags = result_flags(sum, size);
    if sum < a {
        flags |= CF;
    }
    if (a ^ sum) & (b ^ sum) & sign(size) != 0 {
        flags |= OF;
    }
    if (a ^ b ^ sum) & 0x10 != 0 {
        flags |= AF;
    }
    (sum, flags)
}

/// Difference and flags; also the flags of CMP.
pub(crate) const fn sub(a: u64, b: u64, size: u8) -> (u64, u64) {
    let (a, b) = (a & mask(size), b & mask(size));
    let difference = a.wrapping_sub(b) & mask(size);
    let mut flags = result_flags(difference, size);
    if a < b {
        flags |= CF;
    }
    if (a ^ b) & (a ^ difference) & sign(size) != 0 {
        flags |= OF;
    }
    if (a ^ b ^ difference) & 0x10 != 0 {
        flags |= AF;
    }
    (difference, flags)
}
