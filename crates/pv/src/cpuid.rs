// SPDX-License-Identifier: MIT OR Apache-2.0
//! What CPUID tells a PV guest: a table per domain, made once from the processor's own answers.
//!
//! Invariants: a feature is shown only if it is on the allow-list ([`crate::cpuid_mask`]) and the processor has it; what
//! depends on the vCPU's state (OSXSAVE, the XSAVE size, APIC IDs) is computed per call; a lookup is a table access.
//!
//! FSGSBASE is hidden by default. With it, Linux reads the inactive GS base by an emulated RDMSR on every context switch; without
//! it, bases change only by selectors and hypercalls, and processes without a GS base cost nothing.

use crate::control::{XCR0_AVX, XCR0_AVX512, XCR0_GUEST, XCR0_SSE};
use crate::cpuid_mask as m;
use philoxen_abi::arch::{CpuidRegs, cpuid};

const BASIC: usize = 14;
const EXTENDED: usize = 0x22;
const CACHES: usize = 8;
/// XSAVE components with a sub-leaf: up to number 7 (upper ZMM).
const COMPONENTS: usize = 8;
const EXTENDED_BASE: u32 = 0x8000_0000;
const ZERO: CpuidRegs = CpuidRegs {
    a: 0,
    b: 0,
    c: 0,
    d: 0,
};

/// Who made the processor, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// AMD and Hygon.
    Amd,
    /// Intel and everyone else.
    Intel,
}

impl Vendor {
    /// The vendor in leaf 0.
    pub const fn from_leaf0(leaf: CpuidRegs) -> Self {
        // "Auth" or "Hygo" in EBX.
        if leaf.b == 0x6874_7541 || leaf.b == 0x6f67_7948 {
            Self::Amd
        } else {
            Self::Intel
        }
    }
}

/// What a domain's view depends on besides the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuidConfig {
    /// The domain runs the machine (Domain 0): it sees ACPI.
    pub hardware_domain: bool,
    /// XCR0 components the domain may use, already limited to what the hypervisor saves and restores; 0 hides XSAVE.
    pub xcr0: u64,
    /// Show FSGSBASE; the hypervisor must then read the bases back on every switch.
    pub fsgsbase: bool,
    /// Loading a null selector clears the segment's base on this processor (found by trying).
    pub null_clears_base: bool,
    /// The TSC is reliable across processors and sleep states.
    pub tsc_reliable: bool,
    /// TSC frequency in kHz.
    pub tsc_khz: u32,
    /// System-time scale of the TSC: multiplier and shift as in `vcpu_time_info`.
    pub tsc_scale: (u32, i8),
    /// Bits in a machine address, memory hot-plug included.
    pub machine_address_bits: u32,
    /// Reported hypervisor version: major in the upper half.
    pub version: u32,
}

/// vCPU state that shows in CPUID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuidState {
    /// The guest's CR4.
    pub cr4: u64,
    /// The guest's XCR0.
    pub xcr0: u64,
    /// Number of the vCPU.
    pub vcpu: u32,
}

/// A domain's CPUID.
#[derive(Clone, Debug)]
pub struct CpuidPolicy {
    basic: [CpuidRegs; BASIC],
    caches: [CpuidRegs; CACHES],
    leaf7: [CpuidRegs; 2],
    /// Leaf 0xd from sub-leaf 0; sub-leaf 2 and up are components.
    xstate: [CpuidRegs; COMPONENTS],
    hypervisor: [CpuidRegs; 6],
    tsc: [CpuidRegs; 3],
    extended: [CpuidRegs; EXTENDED],
    vendor: Vendor,
    xcr0: u64,
}

fn at<const N: usize>(table: &[CpuidRegs; N], index: u32) -> CpuidRegs {
    table.get(index as usize).copied().unwrap_or(ZERO)
}

fn set<const N: usize>(table: &mut [CpuidRegs; N], index: usize, value: CpuidRegs) {
    if let Some(slot) = table.get_mut(index) {
        *slot = value;
    }
}

impl CpuidPolicy {
    /// The view of a domain; `host(leaf, subleaf)` is the processor's answer.
    pub fn new(config: &CpuidConfig, mut host: impl FnMut(u32, u32) -> CpuidRegs) -> Self {
        let leaf0 = host(0, 0);
        let vendor = Vendor::from_leaf0(leaf0);
        let has_xsave = leaf0.a >= 13 && host(1, 0).c & m::XSAVE != 0;
        let xcr0 = if has_xsave {
            allowed_xcr0(config.xcr0)
        } else {
            0
        };
        let mut policy = Self {
            basic: [ZERO; BASIC],
            caches: [ZERO; CACHES],
            leaf7: [ZERO; 2],
            xstate: [ZERO; COMPONENTS],
            hypervisor: hypervisor_leaves(config),
            tsc: [ZERO; 3],
            extended: [ZERO; EXTENDED],
            vendor,
            xcr0,
        };
        policy.fill_basic(config, leaf0, &mut host);
        if leaf0.a >= 7 {
            policy.fill_leaf7(config, &mut host);
        }
        if xcr0 != 0 {
            policy.fill_xstate(&mut host);
        }
        policy.fill_extended(config, &mut host);
        policy.fill_tsc(config);
        policy
    }

    fn fill_basic(
        &mut self,
        config: &CpuidConfig,
        leaf0: CpuidRegs,
        host: &mut impl FnMut(u32, u32) -> CpuidRegs,
    ) {
        let max = leaf0.a.min(BASIC as u32 - 1);
        set(&mut self.basic, 0, CpuidRegs { a: max, ..leaf0 });
        let mut leaf1 = host(1, 0);
        leaf1.c &= m::LEAF_1_ECX;
        leaf1.d &= m::LEAF_1_EDX
            | if config.hardware_domain {
                m::LEAF_1_EDX_ACPI
            } else {
                0
            };
        if self.xcr0 == 0 {
            leaf1.c &= !m::XSAVE;
        }
        if self.xcr0 & XCR0_AVX == 0 {
            leaf1.c &= !m::NEEDS_AVX_1_ECX;
        }
        leaf1.c |= m::HYPERVISOR;
        leaf1.b &= 0x00ff_ffff;
        set(&mut self.basic, 1, leaf1);
        // Cache and TLB descriptors. Leaves 3, 5, 6 and 8 to 0xc (serial, MONITOR, power, counters) stay 0.
        if max >= 2 {
            set(&mut self.basic, 2, host(2, 0));
        }
        if max >= 4 {
            for index in 0..CACHES {
                let leaf = host(4, index as u32);
                if leaf.a & 0x1f == 0 {
                    break;
                }
                set(&mut self.caches, index, leaf);
            }
        }
    }

    fn fill_leaf7(&mut self, config: &CpuidConfig, host: &mut impl FnMut(u32, u32) -> CpuidRegs) {
        let leaf = host(7, 0);
        let one = if leaf.a >= 1 { host(7, 1) } else { ZERO };
        let fsgsbase = if config.fsgsbase { m::FSGSBASE } else { 0 };
        let mut zero = CpuidRegs {
            a: leaf.a.min(1),
            b: leaf.b & (m::LEAF_7_EBX | fsgsbase),
            c: leaf.c & m::LEAF_7_ECX,
            d: leaf.d & m::LEAF_7_EDX,
        };
        let mut one = CpuidRegs {
            a: one.a & m::LEAF_7_1_EAX,
            ..ZERO
        };
        if self.xcr0 & XCR0_AVX == 0 {
            zero.b &= !m::NEEDS_AVX_7_EBX;
            zero.c &= !m::NEEDS_AVX_7_ECX;
            one.a &= !(1 << 4);
        }
        if self.xcr0 & XCR0_AVX512 == 0 {
            zero.b &= !m::NEEDS_AVX512_7_EBX;
            zero.c &= !m::NEEDS_AVX512_7_ECX;
            zero.d &= !m::NEEDS_AVX512_7_EDX;
            one.a &= !(1 << 5);
        }
        self.leaf7 = [zero, one];
    }

    fn fill_xstate(&mut self, host: &mut impl FnMut(u32, u32) -> CpuidRegs) {
        for component in 2..COMPONENTS {
            if self.xcr0 & (1 << component) != 0 {
                let leaf = host(13, component as u32);
                // Bit 0 of ECX would make it a supervisor component.
                set(
                    &mut self.xstate,
                    component,
                    CpuidRegs {
                        c: leaf.c & 2,
                        d: 0,
                        ..leaf
                    },
                );
            }
        }
        let size = self.xsave_size(self.xcr0);
        let all = CpuidRegs {
            a: self.xcr0 as u32,
            b: size,
            c: size,
            d: (self.xcr0 >> 32) as u32,
        };
        set(&mut self.xstate, 0, all);
        set(
            &mut self.xstate,
            1,
            CpuidRegs {
                a: host(13, 1).a & m::LEAF_D_1_EAX,
                ..ZERO
            },
        );
    }

    fn fill_extended(
        &mut self,
        config: &CpuidConfig,
        host: &mut impl FnMut(u32, u32) -> CpuidRegs,
    ) {
        let leaf0 = host(EXTENDED_BASE, 0);
        let have = leaf0.a.wrapping_sub(EXTENDED_BASE).min(EXTENDED as u32 - 1);
        let need = if config.null_clears_base { 0x21 } else { 8 };
        let max = if leaf0.a < EXTENDED_BASE { 0 } else { have };
        set(
            &mut self.extended,
            0,
            CpuidRegs {
                a: EXTENDED_BASE + max.max(need),
                ..leaf0
            },
        );
        let mut extended = |index: u32| {
            if index <= max {
                host(EXTENDED_BASE + index, 0)
            } else {
                ZERO
            }
        };

        let mut leaf1 = extended(1);
        leaf1.c &= m::LEAF_E1_ECX;
        leaf1.d &= match self.vendor {
            Vendor::Amd => m::LEAF_E1_EDX | m::LEAF_E1_EDX_AMD,
            Vendor::Intel => m::LEAF_E1_EDX,
        };
        if self.xcr0 & XCR0_AVX == 0 {
            leaf1.c &= !m::NEEDS_AVX_E1_ECX;
        }
        set(&mut self.extended, 1, leaf1);
        // Brand string, then cache and TLB sizes.
        for index in 2..=6 {
            set(&mut self.extended, index, extended(index as u32));
        }
        set(
            &mut self.extended,
            7,
            CpuidRegs {
                d: extended(7).d & m::INVARIANT_TSC,
                ..ZERO
            },
        );
        let sizes = extended(8);
        // 48-bit virtual addresses, whatever the processor has.
        let addresses = if sizes.a == 0 { 36 } else { sizes.a & 0xff } | 48 << 8;
        let leaf8 = CpuidRegs {
            a: addresses,
            b: sizes.b & m::LEAF_E8_EBX,
            c: sizes.c,
            d: 0,
        };
        set(&mut self.extended, 8, leaf8);
        set(&mut self.extended, 0x1a, extended(0x1a));
        let mut features = extended(0x21).a & m::LEAF_E21_EAX;
        if config.null_clears_base {
            features |= m::NULL_CLEARS_BASE;
        }
        set(
            &mut self.extended,
            0x21,
            CpuidRegs {
                a: features,
                ..ZERO
            },
        );
    }

    fn fill_tsc(&mut self, config: &CpuidConfig) {
        let reliable = u32::from(config.tsc_reliable) << 1;
        let rdtscp = u32::from(self.has_rdtscp()) << 2;
        let (multiplier, shift) = config.tsc_scale;
        self.tsc = [
            // Mode 2: the TSC is native, never emulated.
            CpuidRegs {
                a: reliable | rdtscp,
                b: 2,
                c: config.tsc_khz,
                d: 0,
            },
            CpuidRegs {
                a: 0,
                b: 0,
                c: multiplier,
                d: i32::from(shift) as u32,
            },
            CpuidRegs {
                a: config.tsc_khz,
                ..ZERO
            },
        ];
    }

    /// The guest's answer.
    #[inline]
    pub fn lookup(&self, leaf: u32, subleaf: u32, state: &CpuidState) -> CpuidRegs {
        match leaf {
            1 => {
                let mut out = at(&self.basic, 1);
                // APIC IDs are even, as everywhere in the interface.
                out.b |= state.vcpu << 25;
                // The real CR4.OSXSAVE is always set, as the unintercepted instruction tells user space; Linux takes XSAVE
                // for there only if it sees this bit before it sets its own CR4.
                if out.c & m::XSAVE != 0 {
                    out.c |= m::OSXSAVE;
                }
                out
            }
            4 => at(&self.caches, subleaf),
            7 => at(&self.leaf7, subleaf),
            // No topology levels: the guest takes every vCPU for a package.
            11 => CpuidRegs {
                c: subleaf & 0xff,
                d: state.vcpu.wrapping_mul(2),
                ..ZERO
            },
            13 => self.xstate_leaf(subleaf, state),
            0..0x4000_0000 => at(&self.basic, leaf),
            0x4000_0003 => at(&self.tsc, subleaf),
            0x4000_0004.. if leaf < 0x4000_0100 && subleaf != 0 => ZERO,
            0x4000_0000..0x4000_0100 => at(&self.hypervisor, leaf - cpuid::FIRST_LEAF),
            0x8000_0000.. => at(&self.extended, leaf - EXTENDED_BASE),
            _ => ZERO,
        }
    }

    fn xstate_leaf(&self, subleaf: u32, state: &CpuidState) -> CpuidRegs {
        let mut out = at(&self.xstate, subleaf);
        match subleaf {
            0 if self.xcr0 != 0 => out.b = self.xsave_size(state.xcr0),
            1 if out.a & m::XSAVEC != 0 => out.b = self.compact_size(state.xcr0),
            _ => {}
        }
        out
    }

    /// Bytes of a standard-form XSAVE area for these components.
    pub fn xsave_size(&self, components: u64) -> u32 {
        (2..COMPONENTS as u32)
            .filter(|component| components & (1 << component) != 0)
            .map(|component| at(&self.xstate, component))
            .fold(576, |size, leaf| size.max(leaf.a.saturating_add(leaf.b)))
    }

    /// Bytes of a compact XSAVE area for these components.
    fn compact_size(&self, components: u64) -> u32 {
        (2..COMPONENTS as u32)
            .filter(|component| components & (1 << component) != 0)
            .map(|component| at(&self.xstate, component))
            .fold(576, |size: u32, leaf| {
                let start = if leaf.c & 2 != 0 {
                    size.saturating_add(63) & !63
                } else {
                    size
                };
                start.saturating_add(leaf.a)
            })
    }

    /// The vendor.
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }
    /// XCR0 components the domain may enable; 0 if it has no XSAVE.
    pub const fn xcr0(&self) -> u64 {
        self.xcr0
    }
    /// Whether the guest sees XSAVE.
    pub const fn has_xsave(&self) -> bool {
        self.xcr0 != 0
    }
    /// Whether the guest sees FSGSBASE.
    pub fn has_fsgsbase(&self) -> bool {
        at(&self.leaf7, 0).b & m::FSGSBASE != 0
    }
    /// Whether the guest sees RDTSCP (and so has TSC_AUX).
    pub fn has_rdtscp(&self) -> bool {
        at(&self.extended, 1).d & m::RDTSCP != 0
    }
    /// Whether the guest sees NX.
    pub fn has_nx(&self) -> bool {
        at(&self.extended, 1).d & m::NX != 0
    }
}

/// The components a guest gets: complete groups only.
const fn allowed_xcr0(wanted: u64) -> u64 {
    let mut xcr0 = wanted & XCR0_GUEST;
    if xcr0 & XCR0_AVX512 != XCR0_AVX512 || xcr0 & XCR0_AVX == 0 {
        xcr0 &= !XCR0_AVX512;
    }
    if xcr0 & 1 == 0 || xcr0 & XCR0_SSE == 0 {
        0
    } else {
        xcr0
    }
}

fn hypervisor_leaves(config: &CpuidConfig) -> [CpuidRegs; 6] {
    let signature = CpuidRegs {
        a: cpuid::FIRST_LEAF + cpuid::MAX_NUM_LEAVES,
        b: cpuid::SIGNATURE_EBX,
        c: cpuid::SIGNATURE_ECX,
        d: cpuid::SIGNATURE_EDX,
    };
    let version = CpuidRegs {
        a: config.version,
        ..ZERO
    };
    let hypercalls = CpuidRegs {
        a: 1,
        b: cpuid::HYPERCALL_MSR,
        c: cpuid::FEAT1_PRESERVE_AD,
        d: 0,
    };
    let pv = CpuidRegs {
        b: config.machine_address_bits & 0xff,
        ..ZERO
    };
    [signature, version, hypercalls, ZERO, ZERO, pv]
}
