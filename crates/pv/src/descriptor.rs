// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which segment descriptors a guest may have in its GDT and LDT.
//!
//! Invariant: a descriptor that passes is not present, or is a code or data segment of privilege 3: no gate, no TSS, no LDT
//! descriptor, no more privileged segment. Bases and limits are free: hypervisor pages are supervisor pages.

const PRESENT: u64 = 1 << 47;
const DPL: u64 = 3 << 45;
const NOT_SYSTEM: u64 = 1 << 44;
const CODE: u64 = 1 << 43;
const LONG: u64 = 1 << 53;
const BIG: u64 = 1 << 54;

/// The value to store for descriptor `value`, or `None` if a 64-bit guest may not have it. Privilege is raised to 3 rather
/// than refused, since kernels fill their tables with ring-0 segments.
#[inline]
pub const fn check(value: u64) -> Option<u64> {
    // A descriptor that is not present may hold anything: its use faults.
    if value & PRESENT == 0 {
        return Some(value);
    }
    if value & NOT_SYSTEM == 0 {
        return None;
    }
    if value & CODE != 0 {
        // 64-bit and default 32-bit at once is reserved. Conforming code is harmless at privilege 3.
        if value & LONG != 0 && value & BIG != 0 {
            return None;
        }
    }
    Some(value | DPL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_tables_pass_with_privilege_three() {
        // Kernel code 64, kernel data, user code 32, user data, user code 64 as kernels define them.
        for (given, stored) in [
            (0x00af_9b00_0000_ffff, 0x00af_fb00_0000_ffff),
            (0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff),
            (0x00cf_fb00_0000_ffff, 0x00cf_fb00_0000_ffff),
            (0x00cf_f300_0000_ffff, 0x00cf_f300_0000_ffff),
            (0, 0),
        ] {
            assert_eq!(check(given), Some(stored), "{given:#x}");
        }
    }

    #[test]
    fn gates_and_system_segments_are_refused() {
        for kind in 0..16_u64 {
            for dpl in 0..4_u64 {
                let value = PRESENT | dpl << 45 | kind << 40;
                assert_eq!(check(value), None, "system type {kind}");
                assert_eq!(check(value & !PRESENT), Some(value & !PRESENT));
            }
        }
        assert_eq!(check(0x00ef_9b00_0000_ffff), None, "L and D");
        assert_eq!(
            check(0x00af_9f00_0000_ffff),
            Some(0x00af_ff00_0000_ffff),
            "conforming"
        );
    }
}
