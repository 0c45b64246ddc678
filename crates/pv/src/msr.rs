// SPDX-License-Identifier: MIT OR Apache-2.0
//! What RDMSR and WRMSR do for a PV guest.
//!
//! Invariant: no guest write reaches a machine-wide MSR (XSA-333, XSA-339); a value that does reach the processor, a segment base or
//! TSC_AUX, belongs to the vCPU, and bases are canonical (XSA-193).

use crate::cpuid::{CpuidPolicy, Vendor};
use philoxen_abi::addr::is_canonical;
use philoxen_abi::arch::cpuid::HYPERCALL_MSR;

/// MSR numbers by name.
#[allow(missing_docs, reason = "the names are the vendors'")]
pub mod number {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const UCODE_REV: u32 = 0x8b;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const MISC_FEATURES_ENABLES: u32 = 0x140;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const PAT: u32 = 0x277;
    pub const MC0_CTL: u32 = 0x400;
    pub const EFER: u32 = 0xc000_0080;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const K7_EVNTSEL0: u32 = 0xc001_0000;
    pub const K7_PERFCTR3: u32 = 0xc001_0007;
    pub const SYSCFG: u32 = 0xc001_0010;
    pub const HWCR: u32 = 0xc001_0015;
    pub const NB_CFG: u32 = 0xc001_001f;
    pub const INT_PENDING: u32 = 0xc001_0055;
    pub const F15_PERF_FIRST: u32 = 0xc001_0200;
    pub const F15_PERF_LAST: u32 = 0xc001_020b;
    pub const DE_CFG: u32 = 0xc001_1029;
}
use number as n;

/// The page-attribute table of every guest: WB, WT, UC-, UC, WC, WP, UC, UC by index, as the hypervisor loads it.
pub const PAT_VALUE: u64 = 0x0000_0501_0007_0406;
/// Machine-check banks shown.
pub const MC_BANKS: u32 = 2;
/// Most banks the numbering has room for.
const MC_BANKS_MAX: u32 = 32;

const EFER_SCE: u64 = 1;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
const EFER_NX: u64 = 1 << 11;
const APIC_DEFAULT: u64 = 0xfee0_0000;
const APIC_ENABLED: u64 = 1 << 11;
const APIC_BSP: u64 = 1 << 8;
/// MISC_ENABLE: fast strings; branch trace and precise sampling unavailable.
const MISC_ENABLE_VALUE: u64 = 1 | 1 << 11 | 1 << 12;
/// HWCR: the TSC runs at P0 frequency.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// DE_CFG: LFENCE waits for earlier instructions.
const DE_CFG_LFENCE: u64 = 1 << 1;

/// What a read gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// This value.
    Value(u64),
    /// `#GP` (0 while the guest has no handler for it: [`crate::emulate`] sees to that).
    Fault,
    /// The vCPU's FS base.
    FsBase,
    /// The active GS base: the kernel's, as only the kernel gets here.
    GsBase,
    /// The inactive GS base: user mode's.
    UserGsBase,
    /// The vCPU's TSC_AUX.
    TscAux,
    /// The time-stamp counter.
    Tsc,
}

/// What a write does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// Nothing.
    Ignore,
    /// `#GP`.
    Fault,
    /// Sets the FS base; canonical.
    FsBase(u64),
    /// Sets the active GS base, the kernel's; canonical.
    GsBase(u64),
    /// Sets the inactive GS base, user mode's; canonical.
    UserGsBase(u64),
    /// Sets TSC_AUX.
    TscAux(u32),
    /// Fills this guest page (a PFN) with hypercall stubs.
    HypercallPage(u64),
}

/// A domain's MSR policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsrPolicy {
    vendor: Vendor,
    efer: u64,
    rdtscp: bool,
}

impl MsrPolicy {
    /// The policy that goes with a domain's CPUID.
    pub fn new(cpuid: &CpuidPolicy) -> Self {
        let nx = if cpuid.has_nx() { EFER_NX } else { 0 };
        Self {
            vendor: cpuid.vendor(),
            efer: EFER_SCE | EFER_LME_LMA | nx,
            rdtscp: cpuid.has_rdtscp(),
        }
    }

    /// RDMSR by vCPU number `vcpu`.
    #[inline]
    pub fn read(&self, msr: u32, vcpu: u32) -> Read {
        match msr {
            // Once per context switch in kernels that use FSGSBASE: first.
            n::KERNEL_GS_BASE => Read::UserGsBase,
            n::GS_BASE => Read::GsBase,
            n::FS_BASE => Read::FsBase,
            n::TSC => Read::Tsc,
            n::TSC_AUX if self.rdtscp => Read::TscAux,
            n::EFER => Read::Value(self.efer),
            n::APIC_BASE => Read::Value(apic_base(vcpu)),
            n::PAT => Read::Value(PAT_VALUE),
            n::MCG_CAP => Read::Value(MC_BANKS.into()),
            n::UCODE_REV | n::PLATFORM_ID | n::MCG_STATUS | n::DEBUGCTL | HYPERCALL_MSR => {
                Read::Value(0)
            }
            _ if is_bank(msr) => Read::Value(bank_value(msr)),
            _ => match self.vendor {
                Vendor::Amd => read_amd(msr),
                Vendor::Intel => read_intel(msr),
            },
        }
    }

    /// WRMSR by vCPU number `vcpu`.
    #[inline]
    pub fn write(&self, msr: u32, value: u64, vcpu: u32) -> Write {
        match msr {
            n::FS_BASE if is_canonical(value) => Write::FsBase(value),
            n::GS_BASE if is_canonical(value) => Write::GsBase(value),
            n::KERNEL_GS_BASE if is_canonical(value) => Write::UserGsBase(value),
            n::TSC_AUX if self.rdtscp => u32::try_from(value).map_or(Write::Fault, Write::TscAux),
            n::EFER => unchanged(value, self.efer),
            n::APIC_BASE => unchanged(value, apic_base(vcpu)),
            n::PAT => unchanged(value, PAT_VALUE),
            n::UCODE_REV | n::MCG_STATUS | n::DEBUGCTL => Write::Ignore,
            HYPERCALL_MSR => Write::HypercallPage(value >> 12),
            _ if is_bank(msr) => match msr & 3 {
                // Control accepts anything; the others can only be cleared, or set to all ones by kernels that probe.
                0 => Write::Ignore,
                _ if value == 0 || value == u64::MAX => Write::Ignore,
                _ => Write::Fault,
            },
            _ => match self.vendor {
                Vendor::Amd => write_amd(msr),
                Vendor::Intel => write_intel(msr, value),
            },
        }
    }
}

const fn apic_base(vcpu: u32) -> u64 {
    APIC_DEFAULT | APIC_ENABLED | if vcpu == 0 { APIC_BSP } else { 0 }
}

const fn unchanged(value: u64, current: u64) -> Write {
    if value == current {
        Write::Ignore
    } else {
        Write::Fault
    }
}

const fn is_bank(msr: u32) -> bool {
    msr >= n::MC0_CTL && msr < n::MC0_CTL + MC_BANKS_MAX * 4
}

const fn bank_value(msr: u32) -> u64 {
    if msr & 3 == 0 && msr < n::MC0_CTL + MC_BANKS * 4 {
        u64::MAX
    } else {
        0
    }
}

const fn is_amd_counter(msr: u32) -> bool {
    (msr >= n::K7_EVNTSEL0 && msr <= n::K7_PERFCTR3)
        || (msr >= n::F15_PERF_FIRST && msr <= n::F15_PERF_LAST)
}

const fn read_amd(msr: u32) -> Read {
    match msr {
        _ if is_amd_counter(msr) => Read::Value(0),
        n::SYSCFG | n::NB_CFG | n::INT_PENDING => Read::Value(0),
        n::HWCR => Read::Value(HWCR_TSC_FREQ_SEL),
        n::DE_CFG => Read::Value(DE_CFG_LFENCE),
        _ => Read::Fault,
    }
}

const fn write_amd(msr: u32) -> Write {
    match msr {
        _ if is_amd_counter(msr) => Write::Ignore,
        n::NB_CFG | n::INT_PENDING | n::HWCR | n::DE_CFG => Write::Ignore,
        _ => Write::Fault,
    }
}

const fn read_intel(msr: u32) -> Read {
    match msr {
        n::MISC_ENABLE => Read::Value(MISC_ENABLE_VALUE),
        // Locked, with VMX off.
        n::FEATURE_CONTROL => Read::Value(1),
        n::PLATFORM_INFO | n::MISC_FEATURES_ENABLES => Read::Value(0),
        _ => Read::Fault,
    }
}

const fn write_intel(msr: u32, value: u64) -> Write {
    match msr {
        n::MISC_ENABLE => Write::Ignore,
        n::MISC_FEATURES_ENABLES if value == 0 => Write::Ignore,
        _ => Write::Fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMD: MsrPolicy = MsrPolicy {
        vendor: Vendor::Amd,
        efer: 0xd01,
        rdtscp: true,
    };
    const INTEL: MsrPolicy = MsrPolicy {
        vendor: Vendor::Intel,
        efer: 0xd01,
        rdtscp: false,
    };

    #[test]
    fn reads_that_linux_makes_at_boot() {
        for (msr, want) in [
            (0xc000_0102, Read::UserGsBase),
            (0xc000_0103, Read::TscAux),
            (0x1b, Read::Value(0xfee0_0900)),
            (0x8b, Read::Value(0)),
            (0x179, Read::Value(2)),
            (0x17a, Read::Value(0)),
            (0x277, Read::Value(0x0501_0007_0406)),
            (0x400, Read::Value(u64::MAX)),
            (0x401, Read::Value(0)),
            (0x404, Read::Value(u64::MAX)),
            (0x407, Read::Value(0)),
            (0xc001_0000, Read::Value(0)),
            (0xc001_0007, Read::Value(0)),
            (0xc001_001f, Read::Value(0)),
            (0xc001_1020, Read::Fault),
            (0xc001_1028, Read::Fault),
            (0xc001_1029, Read::Value(2)),
            (0x10, Read::Tsc),
        ] {
            assert_eq!(AMD.read(msr, 0), want, "{msr:#x}");
        }
        assert_eq!(AMD.read(0x1b, 1), Read::Value(0xfee0_0800));
        assert_eq!(INTEL.read(0xc000_0103, 0), Read::Fault);
        assert_eq!(INTEL.read(0xc001_001f, 0), Read::Fault);
    }

    #[test]
    fn writes_that_linux_makes_at_boot() {
        for (msr, value, want) in [
            (
                0xc000_0101,
                0xffff_ffff_8300_0000,
                Write::GsBase(0xffff_ffff_8300_0000),
            ),
            (0xc000_0103, 0, Write::TscAux(0)),
            (0x400, u64::MAX, Write::Ignore),
            (0x404, u64::MAX, Write::Ignore),
            (0x401, 0, Write::Ignore),
            (0x405, 0, Write::Ignore),
            (0xc001_0007, 0xffff, Write::Ignore),
            (0xc001_001f, 1 << 46, Write::Ignore),
            (0x4000_0000, 0x1234_5000, Write::HypercallPage(0x12345)),
        ] {
            assert_eq!(AMD.write(msr, value, 0), want, "{msr:#x}");
        }
    }

    #[test]
    fn bases_are_canonical_and_machine_state_is_fixed() {
        for msr in [0xc000_0100, 0xc000_0101, 0xc000_0102] {
            assert_eq!(
                AMD.write(msr, 0x8000_0000_0000, 0),
                Write::Fault,
                "XSA-193: {msr:#x}"
            );
        }
        // EFER, PAT, STAR, LSTAR, SFMASK, SYSENTER, SPEC_CTRL, PRED_CMD, x2APIC ICR, MTRR default type, VM_CR.
        for msr in [
            0xc000_0080,
            0x277,
            0xc000_0081,
            0xc000_0082,
            0xc000_0084,
            0x174,
            0x176,
            0x48,
            0x49,
            0x830,
            0x2ff,
            0xc001_0114,
        ] {
            assert_eq!(AMD.write(msr, 0x55, 0), Write::Fault, "{msr:#x}");
            assert_eq!(INTEL.write(msr, 0x55, 0), Write::Fault, "{msr:#x}");
        }
        assert_eq!(AMD.write(0xc000_0080, 0xd01, 0), Write::Ignore);
        assert_eq!(INTEL.write(0x1a0, u64::MAX, 0), Write::Ignore, "XSA-333");
    }
}
