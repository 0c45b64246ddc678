// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control registers as a PV kernel sees and may set them.
//!
//! Invariant: of CR0 only TS follows the guest; of CR4 only the bits in [`CR4_GUEST`]; XCR0 only ever holds a combination
//! the processor accepts, within the domain's allowance.

/// CR0.PE.
pub const CR0_PE: u64 = 1 << 0;
/// CR0.TS: the next FPU instruction raises `#NM`.
pub const CR0_TS: u64 = 1 << 3;
/// The bits of CR0 that a guest always sees set: PE, MP, ET, NE, WP, AM, PG.
pub const CR0_FIXED: u64 = CR0_PE | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 31;

/// CR4.DE: DR4 and DR5 are not DR6 and DR7.
pub const CR4_DE: u64 = 1 << 3;
/// CR4.PAE.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4.MCE.
pub const CR4_MCE: u64 = 1 << 6;
/// CR4.OSFXSR.
pub const CR4_OSFXSR: u64 = 1 << 9;
/// CR4.OSXMMEXCPT.
pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
/// CR4.FSGSBASE.
pub const CR4_FSGSBASE: u64 = 1 << 16;
/// CR4.OSXSAVE.
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// Bits a guest always sees set and whose clearing is ignored.
pub const CR4_FIXED: u64 = CR4_PAE | CR4_MCE | CR4_OSFXSR | CR4_OSXMMEXCPT;
/// Bits that follow the guest, where its CPUID shows the feature.
pub const CR4_GUEST: u64 = CR4_DE | CR4_FSGSBASE | CR4_OSXSAVE;

/// What MOV from CR0 returns; `ts` is the guest's TS.
pub const fn cr0_view(ts: bool) -> u64 {
    CR0_FIXED | if ts { CR0_TS } else { 0 }
}

/// MOV to CR0: the new TS, or `None` (`#GP`) if another bit would change. EM and the cache bits stay clear.
pub const fn cr0_write(value: u64) -> Option<bool> {
    if value & !CR0_TS == CR0_FIXED {
        Some(value & CR0_TS != 0)
    } else {
        None
    }
}

/// The CR4 bits that a domain may have, given what its CPUID shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cr4Policy {
    allowed: u64,
}

impl Cr4Policy {
    /// A policy for a domain with these features. FSGSBASE is hidden by default (see [`crate::cpuid::CpuidConfig::fsgsbase`]).
    pub const fn new(xsave: bool, fsgsbase: bool) -> Self {
        let mut allowed = CR4_FIXED | CR4_DE;
        if xsave {
            allowed |= CR4_OSXSAVE;
        }
        if fsgsbase {
            allowed |= CR4_FSGSBASE;
        }
        Self { allowed }
    }

    /// What the guest reads before its first write.
    pub const fn initial(self) -> u64 {
        CR4_FIXED
    }

    /// The guest's CR4 after it writes `value`: bits it may not have are dropped and fixed ones stay, so a kernel that
    /// guesses wrong reads the truth back.
    pub const fn write(self, value: u64) -> u64 {
        (value & self.allowed) | CR4_FIXED
    }
}

/// XCR0 component: x87.
pub const XCR0_X87: u64 = 1 << 0;
/// XCR0 component: SSE.
pub const XCR0_SSE: u64 = 1 << 1;
/// XCR0 component: AVX.
pub const XCR0_AVX: u64 = 1 << 2;
/// XCR0 components of AVX-512: opmask, upper halves of ZMM0-15, ZMM16-31.
pub const XCR0_AVX512: u64 = 7 << 5;
/// Components a PV guest can be given. Bound and protection-key registers are not among them.
pub const XCR0_GUEST: u64 = XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512;

/// Whether the processor would accept `value` and the domain (`allowed`) may have it.
pub const fn xcr0_valid(value: u64, allowed: u64) -> bool {
    let avx512 = value & XCR0_AVX512;
    value & XCR0_X87 != 0
        && value & !(allowed & XCR0_GUEST) == 0
        && (value & XCR0_AVX == 0 || value & XCR0_SSE != 0)
        && (avx512 == 0 || (avx512 == XCR0_AVX512 && value & XCR0_AVX != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cr0_changes_ts_only() {
        assert_eq!(cr0_write(cr0_view(false)), Some(false));
        assert_eq!(cr0_write(cr0_view(false) | CR0_TS), Some(true));
        for bit in (0..64).filter(|bit| 1 << bit != CR0_TS) {
            assert_eq!(cr0_write(cr0_view(false) ^ (1 << bit)), None, "bit {bit}");
        }
    }

    #[test]
    fn cr4_takes_what_linux_writes() {
        let with = Cr4Policy::new(true, true);
        assert_eq!(with.write(0x10660), 0x10660);
        assert_eq!(with.write(0x50660), 0x50660);
        let without = Cr4Policy::new(false, false);
        assert_eq!(without.write(0x50660), 0x660);
        // SMEP, SMAP, PCIDE, VMXE, LA57, PKE, PGE, PSE, UMIP never.
        assert_eq!(with.write(u64::MAX) & !(CR4_FIXED | CR4_GUEST), 0);
    }

    #[test]
    fn xcr0_combinations() {
        for (value, ok) in [
            (1, true),
            (3, true),
            (7, true),
            (0xe7, true),
            (0, false),
            (2, false),
        ]
        .into_iter()
        .chain([
            (5, false),
            (6, false),
            (0x27, false),
            (0xe3, false),
            (0x1f, false),
        ])
        .chain([(0x207, false), (1 << 63 | 3, false)])
        {
            assert_eq!(xcr0_valid(value, u64::MAX), ok, "{value:#x}");
        }
        assert!(!xcr0_valid(7, 3));
    }
}
