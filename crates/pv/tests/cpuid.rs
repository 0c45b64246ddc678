// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CPUID view: nothing unlisted shows, state-dependent fields follow the state, hypervisor leaves are as guests look for them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at what must not happen"
)]

use philoxen_abi::arch::CpuidRegs;
use philoxen_pv::cpuid::{CpuidConfig, CpuidPolicy, CpuidState, Vendor};
use proptest::prelude::*;

const CONFIG: CpuidConfig = CpuidConfig {
    hardware_domain: true,
    xcr0: 7,
    fsgsbase: false,
    null_clears_base: true,
    tsc_reliable: true,
    tsc_khz: 1_000_000,
    tsc_scale: (0x8000_0000, 1),
    machine_address_bits: 40,
    version: 4 << 16 | 17,
};
const STATE: CpuidState = CpuidState {
    cr4: 0x660,
    xcr0: 1,
    vcpu: 0,
};

/// A processor that has everything, with AVX at offset 576 of the XSAVE area and AVX-512 behind it.
fn host(leaf: u32, subleaf: u32) -> CpuidRegs {
    let all = CpuidRegs {
        a: u32::MAX,
        b: u32::MAX,
        c: u32::MAX,
        d: u32::MAX,
    };
    match (leaf, subleaf) {
        (0, _) => CpuidRegs {
            a: 0x20,
            b: 0x6874_7541,
            c: 0x444d_4163,
            d: 0x6974_6e65,
        },
        (4, 0..=2) => CpuidRegs {
            a: 0x121,
            b: 1,
            c: 2,
            d: 3,
        },
        (4, _) => CpuidRegs::default(),
        (13, 2) => CpuidRegs {
            a: 256,
            b: 576,
            c: 0,
            d: 0,
        },
        (13, 5) => CpuidRegs {
            a: 64,
            b: 1088,
            c: 0,
            d: 0,
        },
        (13, 6) => CpuidRegs {
            a: 512,
            b: 1152,
            c: 0,
            d: 0,
        },
        (13, 7) => CpuidRegs {
            a: 1024,
            b: 1664,
            c: 2,
            d: 0,
        },
        (0x8000_0000, _) => CpuidRegs {
            a: 0x8000_0008,
            ..CpuidRegs::default()
        },
        (0x8000_0008, _) => CpuidRegs { a: 0x3928, ..all },
        _ => all,
    }
}

#[test]
fn hypervisor_leaves() {
    let policy = CpuidPolicy::new(&CONFIG, host);
    let first = policy.lookup(0x4000_0000, 0, &STATE);
    let name = [first.b, first.c, first.d].map(u32::to_le_bytes).concat();
    assert_eq!(
        (first.a, name.as_slice()),
        (0x4000_0005, &b"XenVMMXenVMM"[..])
    );
    assert_eq!(policy.lookup(0x4000_0001, 0, &STATE).a, 0x0004_0011);
    let pages = policy.lookup(0x4000_0002, 0, &STATE);
    assert_eq!((pages.a, pages.b, pages.c), (1, 0x4000_0000, 1));
    let tsc = policy.lookup(0x4000_0003, 0, &STATE);
    assert_eq!((tsc.a, tsc.b, tsc.c), (6, 2, 1_000_000));
    assert_eq!(policy.lookup(0x4000_0003, 1, &STATE).c, 0x8000_0000);
    assert_eq!(policy.lookup(0x4000_0005, 0, &STATE).b, 40);
    for leaf in (0x4000_0100..=0x4000_ff00).step_by(0x100) {
        assert_eq!(
            policy.lookup(leaf, 0, &STATE),
            CpuidRegs::default(),
            "{leaf:#x}"
        );
    }
}

#[test]
fn dangerous_features_are_hidden() {
    let policy = CpuidPolicy::new(&CONFIG, host);
    let hidden = |value: u32, bits: &[u32], what: &str| {
        for bit in bits {
            assert_eq!(value & (1 << bit), 0, "{what} bit {bit}");
        }
    };
    let one = policy.lookup(1, 0, &STATE);
    // MONITOR, VMX, SMX, EST, PCID, DCA, x2APIC, TSC deadline; VME, PSE, MTRR, PGE, PSE36.
    hidden(one.c, &[3, 5, 6, 7, 17, 18, 21, 24], "1.ecx");
    hidden(one.d, &[1, 3, 12, 13, 17], "1.edx");
    // OSXSAVE is there with XSAVE, before the guest has set CR4.
    assert_eq!(one.c >> 26 & 1, one.c >> 27 & 1);
    assert_ne!(one.c & 1 << 31, 0);
    let seven = policy.lookup(7, 0, &STATE);
    // FSGSBASE, TSC_ADJUST, HLE, SMEP, INVPCID, RTM, MPX, SMAP, PT; AVX-512 without its state.
    hidden(seven.b, &[0, 1, 4, 7, 10, 11, 14, 16, 20, 25, 30], "7.ebx");
    // UMIP, PKU, OSPKE, WAITPKG, CET, LA57, PKS.
    hidden(seven.c, &[2, 3, 4, 5, 7, 11, 16, 31], "7.ecx");
    // CET-IBT, AMX, IBRS, STIBP, L1D flush, ARCH_CAPS, SSBD.
    hidden(seven.d, &[20, 22, 24, 25, 26, 27, 28, 29, 31], "7.edx");
    let amd = policy.lookup(0x8000_0001, 0, &STATE);
    // SVM, EXTAPIC, IBS, SKINIT, LWP, TOPOEXT, counters, MONITORX; PSE, PGE, PSE36, FFXSR, 1 GiB pages.
    hidden(amd.c, &[2, 3, 10, 12, 15, 22, 23, 24, 29], "e1.ecx");
    hidden(amd.d, &[1, 3, 12, 13, 17, 25, 26], "e1.edx");
    assert_ne!(amd.d & (1 << 29 | 1 << 20 | 1 << 11), 0);
    for leaf in [
        5,
        6,
        10,
        15,
        0x14,
        0x1f,
        0x8000_000a,
        0x8000_001b,
        0x8000_001f,
        0xc000_0000,
    ] {
        assert_eq!(
            policy.lookup(leaf, 0, &STATE),
            CpuidRegs::default(),
            "{leaf:#x}"
        );
    }
    assert_eq!(policy.lookup(0, 0, &STATE).a, 13);
    assert_eq!(policy.lookup(0x8000_0000, 0, &STATE).a, 0x8000_0021);
    assert_eq!(policy.lookup(0x8000_0008, 0, &STATE).a, 0x3028);
    assert_eq!(policy.lookup(0x8000_0021, 0, &STATE).a & 1 << 6, 1 << 6);
    assert_eq!(policy.vendor(), Vendor::Amd);
    assert!(policy.has_rdtscp() && policy.has_nx() && !policy.has_fsgsbase());
    let with = CpuidPolicy::new(
        &CpuidConfig {
            fsgsbase: true,
            ..CONFIG
        },
        host,
    );
    assert!(with.has_fsgsbase());
}

#[test]
fn state_shows() {
    let policy = CpuidPolicy::new(&CONFIG, host);
    let on = CpuidState {
        cr4: 0x40660,
        xcr0: 7,
        vcpu: 3,
    };
    let one = policy.lookup(1, 0, &on);
    assert_ne!(one.c & 1 << 27, 0);
    assert_eq!(one.b >> 24, 6);
    assert_eq!(
        policy.lookup(11, 1, &on),
        CpuidRegs {
            a: 0,
            b: 0,
            c: 1,
            d: 6
        }
    );
    let size = |state| policy.lookup(13, 0, state).b;
    assert_eq!((size(&STATE), size(&on)), (576, 832));
    let zero = policy.lookup(13, 0, &on);
    assert_eq!((zero.a, zero.c, zero.d), (7, 832, 0));
    assert_eq!(
        policy.lookup(13, 1, &on),
        CpuidRegs {
            a: 7,
            b: 832,
            c: 0,
            d: 0
        }
    );
    assert_eq!(
        policy.lookup(13, 2, &on),
        CpuidRegs {
            a: 256,
            b: 576,
            c: 0,
            d: 0
        }
    );
    assert_eq!(policy.lookup(13, 5, &on), CpuidRegs::default());

    let wide = CpuidPolicy::new(
        &CpuidConfig {
            xcr0: 0xe7,
            ..CONFIG
        },
        host,
    );
    let all = CpuidState { xcr0: 0xe7, ..on };
    assert_eq!(wide.lookup(13, 0, &all).b, 2688);
    // Compact: 576 + 256 + 64 + 512, aligned to 1408, + 1024.
    assert_eq!(wide.lookup(13, 1, &all).b, 2432);

    // Without XSAVE in the hypervisor, nothing that needs it.
    let without = CpuidPolicy::new(&CpuidConfig { xcr0: 0, ..CONFIG }, host);
    assert!(!without.has_xsave());
    let one = without.lookup(1, 0, &STATE);
    assert_eq!(one.c & (1 << 12 | 1 << 26 | 1 << 28), 0);
    assert_eq!(without.lookup(7, 0, &STATE).b & 1 << 5, 0);
    assert_eq!(without.lookup(13, 0, &STATE), CpuidRegs::default());
}

proptest! {
    /// Every bit shown is the processor's, for feature leaves.
    #[test]
    fn features_are_a_subset(values in any::<[u32; 4]>(), cr4 in any::<u64>(), xcr0 in any::<u64>()) {
        let [a, b, c, d] = values;
        let wanted = CpuidRegs { a, b, c, d };
        let host = |leaf: u32, _| match leaf {
            0 | 0x8000_0000 => CpuidRegs { a: leaf | 0x21, ..wanted },
            _ => wanted,
        };
        let config = CpuidConfig { xcr0, null_clears_base: false, ..CONFIG };
        let policy = CpuidPolicy::new(&config, host);
        let state = CpuidState { cr4, xcr0, vcpu: 1 };
        let one = policy.lookup(1, 0, &state);
        prop_assert_eq!(one.c & !(c | 1 << 31 | 1 << 27), 0);
        prop_assert_eq!(one.d & !d, 0);
        let seven = policy.lookup(7, 0, &state);
        prop_assert_eq!((seven.b & !b, seven.c & !c, seven.d & !d), (0, 0, 0));
        let extended = policy.lookup(0x8000_0001, 0, &state);
        prop_assert_eq!((extended.c & !c, extended.d & !d), (0, 0));
        for leaf in [13, 0x8000_0008, 0x8000_0021, a, b] {
            policy.lookup(leaf, c, &state);
        }
    }
}
