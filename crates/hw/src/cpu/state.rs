// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processor state that belongs to a vCPU and stays loaded while the hypervisor runs: FPU and extended state,
//! segment selectors and bases, debug registers, XCR0, TSC_AUX.
//!
//! Everything is switched eagerly when another vCPU is scheduled: no register of one vCPU is ever visible to another.
//! GS: the hardware's active base is that of the vCPU's current mode (guest kernel or user), MSR_KERNEL_GS_BASE
//! holds the other one; the hypervisor does not use GS itself.

use super::{asm, features};
use alloc::boxed::Box;
use core::arch::asm as instruction;
use zerocopy::FromZeros;

const MSR_FS_BASE: u32 = 0xc000_0100;
const MSR_GS_BASE: u32 = 0xc000_0101;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
const MSR_TSC_AUX: u32 = 0xc000_0103;

/// Bytes of a save area: legacy and header (576), AVX, and AVX-512 in the standard format.
pub(super) const AREA_SIZE: usize = 2752;
/// Initial x87 control word.
const FCW_INITIAL: u16 = 0x37f;
/// Initial MXCSR.
const MXCSR_INITIAL: u32 = 0x1f80;

#[derive(FromZeros)]
#[repr(C, align(64))]
struct Area([u8; AREA_SIZE]);

/// FPU, SSE, AVX and AVX-512 registers of a vCPU that is not running.
pub struct FpuState {
    area: Box<Area>,
}

impl core::fmt::Debug for FpuState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("FpuState")
    }
}

impl FpuState {
    /// The state after FNINIT, all other registers zero; `None` without memory.
    pub fn new() -> Option<Self> {
        let mut area = Area::new_box_zeroed().ok()?;
        area.0[..2].copy_from_slice(&FCW_INITIAL.to_le_bytes());
        area.0[24..28].copy_from_slice(&MXCSR_INITIAL.to_le_bytes());
        Some(Self { area })
    }

    /// The legacy 512 bytes, as FXSAVE has them (`vcpu_guest_context.fpu_ctxt`).
    pub fn legacy(&self) -> &[u8] {
        &self.area.0[..512]
    }

    /// Replaces the legacy 512 bytes; MXCSR bits the processor does not have are cleared, the rest starts initial.
    pub fn set_legacy(&mut self, image: &[u8; 512]) {
        self.area.0[..512].copy_from_slice(image);
        let mxcsr = u32::from_le_bytes([image[24], image[25], image[26], image[27]]) & 0xffff;
        self.area.0[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        self.area.0[464..512].fill(0);
        self.area.0[512..].fill(0);
        self.area.0[512] = 3;
    }

    /// The whole save area in XSAVE's standard form, for tools that save a vCPU.
    pub fn image(&self) -> &[u8] {
        &self.area.0
    }

    /// The whole save area, for tools that restore a vCPU; to be made loadable by [`FpuState::sanitise`] afterwards.
    pub fn image_mut(&mut self) -> &mut [u8] {
        &mut self.area.0
    }

    /// Makes an image from outside one that XRSTOR accepts, dropping components and MXCSR bits that the processor does not have;
    /// false if it is in the compact form.
    pub fn sanitise(&mut self) -> bool {
        let (legacy, header) = self.area.0.split_at_mut(512);
        let mut mxcsr = [0; 4];
        mxcsr.copy_from_slice(&legacy[24..28]);
        let mxcsr = u32::from_le_bytes(mxcsr) & 0xffff;
        legacy[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        legacy[464..].fill(0);
        let mut used = [0; 8];
        used.copy_from_slice(&header[..8]);
        let used = u64::from_le_bytes(used) & features::xcr0_supported();
        let standard = header[8..16].iter().all(|byte| *byte == 0);
        header[..8].copy_from_slice(&used.to_le_bytes());
        header[8..64].fill(0);
        standard
    }

    /// Saves this processor's registers. `xcr0` is the running vCPU's value, which is loaded now.
    pub fn save(&mut self, xcr0: u64) {
        asm::set_task_switched(false);
        let area = self.area.0.as_mut_ptr();
        let all = features::xcr0_supported();
        if all == 0 {
            // SAFETY: the area is 16-byte aligned and over 512 bytes long.
            unsafe {
                instruction!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags))
            };
            return;
        }
        if xcr0 != all {
            // SAFETY: the value `features::enable` chose.
            unsafe { asm::xsetbv0(all) };
        }
        // SAFETY: the area is 64-byte aligned and holds every component of `all`; its header was zeroed or made by XSAVE.
        unsafe {
            instruction!("xsave64 [{}]", in(reg) area, in("eax") all as u32, in("edx") 0, options(nostack, preserves_flags));
        }
    }

    /// Loads these registers and the vCPU's `xcr0` (a supported combination) into this processor.
    pub fn load(&self, xcr0: u64) {
        asm::set_task_switched(false);
        let area = self.area.0.as_ptr();
        let all = features::xcr0_supported();
        if all == 0 {
            // SAFETY: an image FXSAVE or `set_legacy` made, with no reserved MXCSR bit.
            unsafe {
                instruction!("fxrstor64 [{}]", in(reg) area, options(nostack, preserves_flags, readonly))
            };
            return;
        }
        // SAFETY: an image XSAVE or `set_legacy` made under the same mask, with a valid header.
        unsafe {
            instruction!("xrstor64 [{}]", in(reg) area, in("eax") all as u32, in("edx") 0, options(nostack, preserves_flags, readonly));
        }
        if xcr0 != all {
            set_xcr0(xcr0);
        }
    }
}

/// Loads a vCPU's XCR0: bit 0 is forced, unsupported components are dropped.
pub fn set_xcr0(value: u64) {
    let all = features::xcr0_supported();
    if all != 0 {
        // SAFETY: pv's policy admitted the combination, and it lies within what the processor supports.
        unsafe { asm::xsetbv0((value & all) | 1) };
    }
}

/// Sets CR0.TS for the running guest: its next FPU instruction raises #NM.
pub fn set_task_switched(on: bool) {
    asm::set_task_switched(on);
}

/// Data-segment selectors and segment bases of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// DS, ES, FS and GS selectors.
    pub selectors: [u16; 4],
    /// FS base.
    pub fs_base: u64,
    /// GS base of the guest kernel.
    pub gs_kernel: u64,
    /// GS base of guest user mode.
    pub gs_user: u64,
}

impl Segments {
    /// Reads what is loaded; `in_kernel` tells whose GS base is the active one.
    pub fn save(in_kernel: bool) -> Self {
        let (active, other) = (asm::rdmsr(MSR_GS_BASE), asm::rdmsr(MSR_KERNEL_GS_BASE));
        let (gs_kernel, gs_user) = if in_kernel {
            (active, other)
        } else {
            (other, active)
        };
        Self {
            selectors: read_selectors(),
            fs_base: asm::rdmsr(MSR_FS_BASE),
            gs_kernel,
            gs_user,
        }
    }

    /// Loads these; false if a selector was refused by the processor (it is then null, as the failsafe callback expects).
    ///
    /// Bases must be canonical; a base that is not is loaded as 0.
    pub fn load(&self, in_kernel: bool) -> bool {
        let [ds, es, fs, gs] = self.selectors;
        let loaded = [load_ds(ds), load_es(es), load_fs(fs), load_gs(gs)];
        let (active, other) = if in_kernel {
            (self.gs_kernel, self.gs_user)
        } else {
            (self.gs_user, self.gs_kernel)
        };
        set_fs_base(self.fs_base);
        set_gs_base(active);
        set_inactive_gs_base(other);
        loaded == [true; 4]
    }
}

/// DS, ES, FS and GS as loaded.
pub fn read_selectors() -> [u16; 4] {
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: reads selectors.
    unsafe {
        instruction!("mov {0:x}, ds", "mov {1:x}, es", "mov {2:x}, fs", "mov {3:x}, gs",
            out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs, options(nomem, nostack, preserves_flags));
    }
    [ds, es, fs, gs]
}

macro_rules! selector_loader {
    ($name:ident, $register:literal) => {
        #[doc = concat!("Loads ", $register, "; false (and a null selector) if the processor refuses it.")]
        fn $name(selector: u16) -> bool {
            let failed: u32;
            // SAFETY: the hypervisor uses no data segment; a refused selector resumes at the fixup.
            unsafe {
                instruction!(
                    "xor {failed:e}, {failed:e}",
                    concat!("2: mov ", $register, ", {selector:e}"),
                    "3:",
                    ".pushsection .fixup, \"ax\"",
                    "4: mov {failed:e}, 1",
                    concat!("mov ", $register, ", {zero:e}"),
                    "jmp 3b",
                    ".popsection",
                    ".pushsection .ex_table, \"a\"",
                    ".quad 2b, 4b",
                    ".popsection",
                    selector = in(reg) u32::from(selector),
                    zero = in(reg) 0,
                    failed = out(reg) failed,
                    options(nostack)
                );
            }
            failed == 0
        }
    };
}
selector_loader!(load_ds, "ds");
selector_loader!(load_es, "es");
selector_loader!(load_fs, "fs");
selector_loader!(load_gs, "gs");

/// True if a null FS selector zeroes the base.
pub(super) fn null_selector_clears_base() -> bool {
    write_base(MSR_FS_BASE, 1);
    load_fs(0);
    asm::rdmsr(MSR_FS_BASE) == 0
}

/// Writes a base register; a non-canonical value (which would fault, XSA-193) becomes 0.
fn write_base(msr: u32, value: u64) {
    let value = if philoxen_abi::addr::is_canonical(value) {
        value
    } else {
        0
    };
    // SAFETY: a segment base that only guest code uses, canonical.
    unsafe { asm::wrmsr(msr, value) };
}

/// Sets the FS base.
pub fn set_fs_base(value: u64) {
    write_base(MSR_FS_BASE, value);
}

/// Sets the GS base of the vCPU's current mode.
pub fn set_gs_base(value: u64) {
    write_base(MSR_GS_BASE, value);
}

/// Sets the GS base of the mode the vCPU is not in.
pub fn set_inactive_gs_base(value: u64) {
    write_base(MSR_KERNEL_GS_BASE, value);
}

/// FS base, GS base of the current mode, GS base of the other mode.
pub fn bases() -> [u64; 3] {
    [
        asm::rdmsr(MSR_FS_BASE),
        asm::rdmsr(MSR_GS_BASE),
        asm::rdmsr(MSR_KERNEL_GS_BASE),
    ]
}

/// GS base of the mode the vCPU is not in.
#[inline]
pub fn inactive_gs_base() -> u64 {
    asm::rdmsr(MSR_KERNEL_GS_BASE)
}

/// Exchanges the two GS bases: the vCPU goes from kernel to user mode or back.
#[inline(always)]
pub fn swap_gs() {
    // SAFETY: the hypervisor does not use GS.
    unsafe { instruction!("swapgs", options(nomem, nostack, preserves_flags)) };
}

/// Loads the user GS selector of a vCPU that is in kernel mode (`SEGBASE_GS_USER_SEL`); false if it was refused.
pub fn load_user_gs_selector(selector: u16) -> bool {
    swap_gs();
    let loaded = load_gs(selector);
    swap_gs();
    loaded
}

/// Sets the value RDTSCP returns beside the counter.
pub fn set_tsc_aux(value: u32) {
    if features::has_rdtscp() {
        // SAFETY: RDTSCP exists, so does its register; any 32-bit value is valid.
        unsafe { asm::wrmsr(MSR_TSC_AUX, value.into()) };
    }
}

/// Loads DR0..DR3 and DR7, which pv's policy checked (no breakpoint in the hypervisor's range, XSA-444).
pub fn load_debug_registers(addresses: &[u64; 4], dr7: u64) {
    let [dr0, dr1, dr2, dr3] = *addresses;
    // SAFETY: checked values; DR7 is written last, once the addresses are in place.
    unsafe {
        instruction!("mov dr7, {zero}", "mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}", "mov dr7, {dr7}",
            in(reg) dr0, in(reg) dr1, in(reg) dr2, in(reg) dr3, dr7 = in(reg) dr7, zero = in(reg) 0u64,
            options(nomem, nostack, preserves_flags));
    }
}

/// Reads DR6 and clears it, so that the next #DB reports only its own conditions.
pub fn take_dr6() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe {
        instruction!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags))
    };
    // SAFETY: the value after reset: no condition recorded.
    unsafe {
        instruction!("mov dr6, {}", in(reg) 0xffff_0ff0u64, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Reads an MSR for the privileged domain's view; the binary passes only those of pv's table.
///
/// `None` if the processor does not have it.
pub fn rdmsr_safe(msr: u32) -> Option<u64> {
    let (low, high, failed): (u32, u32, u32);
    // SAFETY: reading an MSR changes nothing; one that does not exist resumes at the fixup.
    unsafe {
        instruction!(
            "xor {failed:e}, {failed:e}",
            "2: rdmsr",
            "3:",
            ".pushsection .fixup, \"ax\"",
            "4: mov {failed:e}, 1",
            "jmp 3b",
            ".popsection",
            ".pushsection .ex_table, \"a\"",
            ".quad 2b, 4b",
            ".popsection",
            in("ecx") msr, out("eax") low, out("edx") high, failed = out(reg) failed,
            options(nostack)
        );
    }
    (failed == 0).then_some(u64::from(high) << 32 | u64::from(low))
}
