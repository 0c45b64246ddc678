// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this processor has, and the control bits the hypervisor runs with.

use super::asm;
use core::arch::asm as instruction;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Once;

const MSR_PAT: u32 = 0x277;
const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
/// PSE and PAE: of what the boot left on, only these stay.
const CR4_PAGING: u64 = 1 << 4 | 1 << 5;
const CR4_DE: u64 = 1 << 3;
const CR4_MCE: u64 = 1 << 6;
const CR4_PGE: u64 = 1 << 7;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_UMIP: u64 = 1 << 11;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;

/// XCR0 components that guests may use: x87, SSE, AVX, AVX-512 (three), all switched eagerly.
const XCR0_ALLOWED: u64 = 0xe7;

/// XCR0 value the hypervisor saves and restores under; 0 without XSAVE.
static XCR0: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static __smap_sites_start: u64;
    static __smap_sites_end: u64;
}

/// Extended-state components that are saved and that guests may enable; 0 if the processor has no XSAVE.
pub fn xcr0_supported() -> u64 {
    XCR0.load(Ordering::Relaxed)
}

/// Shows XSAVE to the running guest, or hides it: with CR4.OSXSAVE clear its instructions, and AVX, are undefined and user
/// mode's CPUID says so. It must be shown while extended state is saved or loaded. Nothing to do without XSAVE.
pub fn show_xsave(shown: bool) {
    if xcr0_supported() == 0 {
        return;
    }
    let cr4 = asm::read_cr4();
    let cr4 = if shown {
        cr4 | CR4_OSXSAVE
    } else {
        cr4 & !CR4_OSXSAVE
    };
    // SAFETY: OSXSAVE is supported, or `enable` would have found no components; nothing else changes.
    unsafe { asm::write_cr4(cr4) };
}

/// True if the processor has RDTSCP (CPUID 0x80000001 EDX bit 27).
pub fn has_rdtscp() -> bool {
    static PRESENT: Once<bool> = Once::new();
    *PRESENT.call_once(|| asm::cpuid(0x8000_0001, 0)[3] & 1 << 27 != 0)
}

/// True if loading a null selector clears the segment's base on this processor, found by trying.
pub fn null_clears_base() -> bool {
    super::state::null_selector_clears_base()
}

/// Sets CR0, CR4 and XCR0 of this processor as the hypervisor needs them, and finds SMAP and XSAVE.
pub(super) fn enable() {
    let leaf1 = asm::cpuid(1, 0);
    let leaf7 = if asm::cpuid(0, 0)[0] >= 7 {
        asm::cpuid(7, 0)
    } else {
        [0; 4]
    };
    let xsave = leaf1[2] & 1 << 26 != 0;
    let smap = leaf7[1] & 1 << 20 != 0;
    patch_smap_sites(smap);
    let mut cr4 =
        (asm::read_cr4() & CR4_PAGING) | CR4_DE | CR4_MCE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    for (present, bit) in [
        (xsave, CR4_OSXSAVE),
        (leaf7[1] & 1 << 7 != 0, CR4_SMEP),
        (smap, CR4_SMAP),
        (leaf7[2] & 1 << 2 != 0, CR4_UMIP),
    ] {
        if present {
            cr4 |= bit;
        }
    }
    let cr0 = (asm::read_cr0() | CR0_MP | CR0_NE | CR0_WP) & !(CR0_EM | CR0_AM);
    // SAFETY: protection and paging stay on; WP makes read-only mappings hold for us too.
    unsafe { instruction!("mov cr0, {}", in(reg) cr0, options(nostack)) };
    // SAFETY: only supported bits are added, none of the paging modes changes.
    unsafe { asm::write_cr4(cr4) };
    // SAFETY: every entry is a valid type; mappings of the hypervisor use entries 0 (write-back) and 3 (uncached) only,
    // which are the same as after reset.
    unsafe { asm::wrmsr(MSR_PAT, philoxen_pv::msr::PAT_VALUE) };
    if xsave {
        let supported = asm::cpuid(0xd, 0)[0];
        let mut xcr0 = u64::from(supported) & XCR0_ALLOWED;
        if xcr0 & 0xe0 != 0xe0 {
            xcr0 &= 7;
        }
        // SAFETY: a supported combination: x87 and SSE always, AVX-512 only with all its parts.
        unsafe { asm::xsetbv0(xcr0) };
        // The save areas are of one size; a processor with more components than we enable fits as well.
        let needed = asm::cpuid(0xd, 0)[1] as usize;
        if needed > super::state::AREA_SIZE {
            crate::boot::stop(format_args!(
                "This processor's extended state takes {needed} bytes, more than Philoxen keeps."
            ));
        }
        XCR0.store(xcr0, Ordering::Relaxed);
    }
}

/// Turns every `stac` and `clac` into a no-operation on a processor without SMAP, which does not have them. Idempotent.
fn patch_smap_sites(smap: bool) {
    static PATCHED: Once<()> = Once::new();
    if smap {
        return;
    }
    PATCHED.call_once(|| {
        let start = &raw const __smap_sites_start;
        let count = (&raw const __smap_sites_end as usize - start as usize) / 8;
        // SAFETY: the linker script lays the list out between the two symbols.
        let sites = unsafe { core::slice::from_raw_parts(start, count) };
        for &site in sites {
            crate::memory::patch_text(site, &[0x0f, 0x1f, 0x00]);
        }
    });
}

/// While one lives, the hypervisor may touch user pages under SMAP.
pub(super) struct OpenGuestMemory(());

/// An instruction of three bytes that exists with SMAP only; [`patch_smap_sites`] knows where it is.
macro_rules! smap_instruction {
    ($name:literal) => {
        // SAFETY: only changes AC, which nothing but SMAP looks at here; patched before the first guest where it does not exist.
        unsafe {
            instruction!(
                concat!("771: ", $name),
                ".pushsection .smap_sites, \"a\"",
                ".quad 771b",
                ".popsection",
                options(nostack)
            )
        }
    };
}

/// Lifts SMAP until the result is dropped.
#[inline(always)]
pub(super) fn open_guest_memory() -> OpenGuestMemory {
    smap_instruction!("stac");
    OpenGuestMemory(())
}

impl Drop for OpenGuestMemory {
    #[inline(always)]
    fn drop(&mut self) {
        smap_instruction!("clac");
    }
}
