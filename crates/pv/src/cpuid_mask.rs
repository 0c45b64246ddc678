// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which CPUID feature bits a PV guest may see: allow-lists, so a feature of a future processor stays hidden until it is
//! known to be harmless.
//!
//! Hidden on purpose: what needs ring 0 or tables of its own (VMX, SVM, PCID, INVPCID, SMEP, SMAP, UMIP, PKU, LA57, CET, PSE,
//! PGE, PSE36, VME, MTRR, x2APIC, TSC deadline), MONITOR (MWAIT faults under TCG), and speculation-control MSRs, which are not virtualised.

const fn bits<const N: usize>(list: [u32; N]) -> u32 {
    let mut value = 0;
    let mut rest: &[u32] = &list;
    while let [first, tail @ ..] = rest {
        value |= 1_u32.wrapping_shl(*first);
        rest = tail;
    }
    value
}

/// Leaf 1 ECX: SSE3, PCLMUL, SSSE3, FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
pub(crate) const LEAF_1_ECX: u32 = bits([0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
/// Leaf 1 EDX: FPU, DE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MCA, CMOV, PAT, CLFLUSH, MMX, FXSR, SSE, SSE2, SS, HTT.
pub(crate) const LEAF_1_EDX: u32 = bits([
    0, 2, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 19, 23, 24, 25, 26, 27, 28,
]);
/// Leaf 1 EDX: ACPI, for the domain that runs the machine.
pub(crate) const LEAF_1_EDX_ACPI: u32 = 1 << 22;
/// Leaf 1 ECX: XSAVE.
pub(crate) const XSAVE: u32 = 1 << 26;
/// Leaf 1 ECX: OSXSAVE, the image of CR4.OSXSAVE.
pub(crate) const OSXSAVE: u32 = 1 << 27;
/// Leaf 1 ECX: a hypervisor is present.
pub(crate) const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 ECX features that need XSAVE: FMA, AVX, F16C.
pub(crate) const NEEDS_AVX_1_ECX: u32 = bits([12, 28, 29]);

/// Leaf 7.0 EBX: BMI1, AVX2, x87 pointer behaviour, BMI2, ERMS, AVX-512 F and DQ, RDSEED, ADX, IFMA, CLFLUSHOPT, CLWB,
/// AVX-512 PF, ER, CD, SHA, BW, VL.
pub(crate) const LEAF_7_EBX: u32 = bits([
    3, 5, 6, 8, 9, 13, 16, 17, 18, 19, 21, 23, 24, 26, 27, 28, 29, 30, 31,
]);
/// Leaf 7.0 EBX: FSGSBASE.
pub(crate) const FSGSBASE: u32 = 1 << 0;
/// Leaf 7.0 ECX: PREFETCHWT1, VBMI, VBMI2, GFNI, VAES, VPCLMUL, VNNI, BITALG, VPOPCNTDQ, RDPID, CLDEMOTE, MOVDIRI, MOVDIR64B.
pub(crate) const LEAF_7_ECX: u32 = bits([0, 1, 6, 8, 9, 10, 11, 12, 14, 22, 25, 27, 28]);
/// Leaf 7.0 EDX: 4VNNIW, 4FMAPS, FSRM, VP2INTERSECT, MD_CLEAR, SERIALIZE.
pub(crate) const LEAF_7_EDX: u32 = bits([2, 3, 4, 8, 10, 14]);
/// Leaf 7.1 EAX: AVX-VNNI, AVX512-BF16, fast zero-length MOVSB, fast short STOSB and CMPSB.
pub(crate) const LEAF_7_1_EAX: u32 = bits([4, 5, 10, 11, 12]);
/// Leaf 7.0 EBX features that need AVX state: AVX2.
pub(crate) const NEEDS_AVX_7_EBX: u32 = bits([5]);
/// Leaf 7.0 EBX features that need AVX-512 state.
pub(crate) const NEEDS_AVX512_7_EBX: u32 = bits([16, 17, 21, 26, 27, 28, 30, 31]);
/// Leaf 7.0 ECX features that need AVX state: VAES, VPCLMUL.
pub(crate) const NEEDS_AVX_7_ECX: u32 = bits([9, 10]);
/// Leaf 7.0 ECX features that need AVX-512 state.
pub(crate) const NEEDS_AVX512_7_ECX: u32 = bits([1, 6, 11, 12, 14]);
/// Leaf 7.0 EDX features that need AVX-512 state.
pub(crate) const NEEDS_AVX512_7_EDX: u32 = bits([2, 3, 8]);

/// Leaf 0xd.1 EAX: XSAVEOPT, XSAVEC, XGETBV with ECX 1. XSAVES is privileged.
pub(crate) const LEAF_D_1_EAX: u32 = bits([0, 1, 2]);
/// Leaf 0xd.1 EAX: XSAVEC.
pub(crate) const XSAVEC: u32 = 1 << 1;

/// Leaf 0x80000001 ECX: LAHF, CMP_LEGACY, LZCNT, SSE4A, misaligned SSE, PREFETCHW, XOP, FMA4, TBM.
pub(crate) const LEAF_E1_ECX: u32 = bits([0, 1, 5, 6, 7, 8, 11, 16, 21]);
/// Leaf 0x80000001 ECX features that need AVX state: XOP, FMA4.
pub(crate) const NEEDS_AVX_E1_ECX: u32 = bits([11, 16]);
/// Leaf 0x80000001 EDX, Intel's bits: SYSCALL, NX, RDTSCP, LM.
pub(crate) const LEAF_E1_EDX: u32 = bits([11, 20, 27, 29]);
/// Leaf 0x80000001 EDX, AMD's additions: leaf 1 again, MMXEXT, 3DNow.
pub(crate) const LEAF_E1_EDX_AMD: u32 =
    bits([0, 2, 4, 5, 6, 7, 8, 9, 14, 15, 16, 22, 23, 24, 30, 31]);
/// Leaf 0x80000001 EDX: RDTSCP.
pub(crate) const RDTSCP: u32 = 1 << 27;
/// Leaf 0x80000001 EDX: NX.
pub(crate) const NX: u32 = 1 << 20;
/// Leaf 0x80000007 EDX: invariant TSC.
pub(crate) const INVARIANT_TSC: u32 = 1 << 8;
/// Leaf 0x80000008 EBX: CLZERO, always-saved FPU error pointers, WBNOINVD.
pub(crate) const LEAF_E8_EBX: u32 = bits([0, 2, 9]);
/// Leaf 0x80000021 EAX: no nested data breakpoints, serialising LFENCE.
pub(crate) const LEAF_E21_EAX: u32 = bits([0, 2]);
/// Leaf 0x80000021 EAX: loading a null selector clears the base.
pub(crate) const NULL_CLEARS_BASE: u32 = 1 << 6;
