// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain's CPUID as tools read and write it: a list of leaves, and words of feature bits.

use philoxen_abi::arch::{CpuidRegs, cpuid};
use philoxen_abi::domctl::{CpuidLeaf, MsrEntry, NO_SUBLEAF};
use philoxen_abi::{Errno, Result};
use philoxen_pv::cpuid::{CpuidConfig, CpuidPolicy, CpuidState};

/// Leaves that a list has room for: as many as tools of this interface make of their own form of a policy.
pub const MAX_LEAVES: u32 = 128;
/// MSRs of a policy: platform information, architectural capabilities.
pub const MSRS: [u32; 2] = [0xce, 0x10a];
/// Words of a feature set.
pub const FEATURE_WORDS: usize = 12;

const LAST_BASIC: u32 = 0xd;
const CACHES: u32 = 6;
const XSTATE: u32 = 8;
const EXTENDED: u32 = 0x8000_0000;
const LAST_EXTENDED: u32 = 0x21;
const XSAVE_LEAF: u32 = 13;

/// The view that does not depend on a vCPU: nothing enabled but all of the extended state, vCPU 0.
fn view(policy: &CpuidPolicy, leaf: u32, subleaf: u32) -> CpuidRegs {
    let state = CpuidState {
        cr4: 0,
        xcr0: policy.xcr0(),
        vcpu: 0,
    };
    policy.lookup(leaf, subleaf, &state)
}

/// Gives every leaf of a policy to `write` with its index; how many there are.
///
/// # Errors
/// What `write` returns.
pub fn leaves(
    policy: &CpuidPolicy,
    mut write: impl FnMut(u32, &CpuidLeaf) -> Result<()>,
) -> Result<u32> {
    let mut count = 0;
    let mut put = |leaf: u32, subleaf: Option<u32>| {
        let CpuidRegs { a, b, c, d } = view(policy, leaf, subleaf.unwrap_or(0));
        let entry = CpuidLeaf {
            leaf,
            subleaf: subleaf.unwrap_or(NO_SUBLEAF),
            a,
            b,
            c,
            d,
        };
        write(count, &entry)?;
        count += 1;
        Ok::<_, Errno>(())
    };
    let last = view(policy, 0, 0).a.min(LAST_BASIC);
    for leaf in 0..=last {
        let subleaves = match leaf {
            4 => CACHES,
            7 => view(policy, 7, 0).a.min(1) + 1,
            11 => 2,
            XSAVE_LEAF => XSTATE,
            _ => {
                put(leaf, None)?;
                continue;
            }
        };
        (0..subleaves).try_for_each(|subleaf| put(leaf, Some(subleaf)))?;
    }
    put(cpuid::FIRST_LEAF, None)?;
    let last = view(policy, EXTENDED, 0).a.min(EXTENDED + LAST_EXTENDED);
    (EXTENDED..=last).try_for_each(|leaf| put(leaf, None))?;
    Ok(count)
}

/// Values of [`MSRS`]: none of their features is shown to a PV domain.
pub const fn msrs() -> [MsrEntry; 2] {
    let [platform, capabilities] = MSRS;
    [
        MsrEntry {
            index: platform,
            flags: 0,
            value: 0,
        },
        MsrEntry {
            index: capabilities,
            flags: 0,
            value: 0,
        },
    ]
}

/// True if a tool may give a domain this MSR with this value.
pub fn msr_allowed(entry: &MsrEntry) -> bool {
    entry.flags == 0 && entry.value == 0 && MSRS.contains(&entry.index)
}

/// Registers of a leaf that hold feature bits: a policy from a tool can clear these and nothing else.
const fn features(leaf: u32, subleaf: u32) -> CpuidRegs {
    const ALL: u32 = u32::MAX;
    let (a, b, c, d) = match (leaf, subleaf) {
        (1, _) => (0, 0, ALL, ALL),
        (7, 0) => (0, ALL, ALL, ALL),
        (7, 1) | (XSAVE_LEAF, 1) | (0x8000_0021, _) => (ALL, 0, 0, 0),
        (XSAVE_LEAF, 0) => (ALL, 0, 0, ALL),
        (0x8000_0001, _) => (0, 0, ALL, ALL),
        (0x8000_0007, _) => (0, 0, 0, ALL),
        (0x8000_0008, _) => (0, ALL, 0, 0),
        _ => (0, 0, 0, 0),
    };
    CpuidRegs { a, b, c, d }
}

/// `base` without the features that the tool's leaves do not have. A leaf that the tool did not give stays as it is.
///
/// # Errors
/// The first leaf that no policy of ours has.
pub fn restrict(
    config: &CpuidConfig,
    base: &CpuidPolicy,
    given: &[CpuidLeaf],
) -> core::result::Result<CpuidPolicy, CpuidLeaf> {
    if let Some(bad) = given.iter().find(|leaf| !is_known(leaf)) {
        return Err(*bad);
    }
    let find = |leaf: u32, subleaf: u32| {
        given.iter().find(|entry| {
            entry.leaf == leaf && (entry.subleaf == subleaf || entry.subleaf == NO_SUBLEAF)
        })
    };
    let mut config = *config;
    if let Some(leaf) = find(XSAVE_LEAF, 0) {
        config.xcr0 &= u64::from(leaf.a) | u64::from(leaf.d) << 32;
    }
    if let Some(leaf) = find(7, 0) {
        config.fsgsbase &= leaf.b & 1 != 0;
    }
    Ok(CpuidPolicy::new(&config, |leaf, subleaf| {
        let ours = view(base, leaf, subleaf);
        let Some(theirs) = find(leaf, subleaf) else {
            return ours;
        };
        let may_clear = features(leaf, subleaf);
        let join = |ours: u32, theirs: u32, may_clear: u32| ours & (theirs | !may_clear);
        CpuidRegs {
            a: join(ours.a, theirs.a, may_clear.a),
            b: join(ours.b, theirs.b, may_clear.b),
            c: join(ours.c, theirs.c, may_clear.c),
            d: join(ours.d, theirs.d, may_clear.d),
        }
    }))
}

/// True for leaves that can be part of a policy.
fn is_known(leaf: &CpuidLeaf) -> bool {
    matches!(leaf.leaf, 0..=0x3f | 0x4000_0000 | 0x4000_0100 | 0x8000_0000..=0x8000_003f)
}

/// The feature words of a policy, in the order of the interface: leaves 1 (EDX, ECX), 0x80000001 (EDX, ECX), 0xd.1 EAX, 7.0
/// (EBX, ECX), 0x80000007 EDX, 0x80000008 EBX, 7.0 EDX, 7.1 EAX, 0x80000021 EAX.
pub fn feature_words(policy: &CpuidPolicy) -> [u32; FEATURE_WORDS] {
    let [one, xsave, seven, seven_one] = [(1, 0), (XSAVE_LEAF, 1), (7, 0), (7, 1)]
        .map(|(leaf, subleaf)| view(policy, leaf, subleaf));
    let [e1, e7, e8, e21] = [1, 7, 8, LAST_EXTENDED].map(|index| view(policy, EXTENDED + index, 0));
    [
        one.d,
        one.c,
        e1.d,
        e1.c,
        xsave.a,
        seven.b,
        seven.c,
        e7.d,
        e8.b,
        seven.d,
        seven_one.a,
        e21.a,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const CONFIG: CpuidConfig = CpuidConfig {
        hardware_domain: false,
        xcr0: 7,
        fsgsbase: false,
        null_clears_base: true,
        tsc_reliable: true,
        tsc_khz: 1_000_000,
        tsc_scale: (1 << 31, 1),
        machine_address_bits: 40,
        version: 0x40011,
    };

    /// A processor with every feature.
    fn host(leaf: u32, subleaf: u32) -> CpuidRegs {
        let all = u32::MAX;
        let (a, b, c, d) = match (leaf, subleaf) {
            (0, _) => (0x16, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
            (4, 3..) => (0, 0, 0, 0),
            (13, 0) => (7, 832, 832, 0),
            (13, 2) => (256, 576, 0, 0),
            (0x8000_0000, _) => (0x8000_0028, 0, 0, 0),
            (0x8000_0008, _) => (0x3028, all, 0, 0),
            (7, 0) => (2, all, all, all),
            _ => (all, all, all, all),
        };
        CpuidRegs { a, b, c, d }
    }

    fn list(policy: &CpuidPolicy) -> Vec<CpuidLeaf> {
        let mut list = Vec::new();
        let count = leaves(policy, |index, leaf| {
            assert_eq!(index as usize, list.len());
            list.push(*leaf);
            Ok(())
        })
        .unwrap();
        assert_eq!(count as usize, list.len());
        list
    }

    #[test]
    fn a_policy_survives_the_round_trip() {
        let policy = CpuidPolicy::new(&CONFIG, host);
        let given = list(&policy);
        assert!(given.len() <= MAX_LEAVES as usize);
        let same = restrict(&CONFIG, &policy, &given).unwrap();
        assert_eq!(list(&same), given);
        assert_eq!(feature_words(&same), feature_words(&policy));
        let none = restrict(&CONFIG, &policy, &[]).unwrap();
        assert_eq!(list(&none), given);
    }

    #[test]
    fn a_tool_only_takes_away() {
        let policy = CpuidPolicy::new(&CONFIG, host);
        let base = feature_words(&policy);
        let mut given = list(&policy);
        for leaf in &mut given {
            // Everything, also what the domain must not have; and RDRAND and AVX gone.
            (leaf.b, leaf.d) = (u32::MAX, u32::MAX);
            if leaf.leaf == 1 {
                leaf.c = !(1 << 30);
            }
            if leaf.leaf == 13 && leaf.subleaf == 0 {
                (leaf.a, leaf.d) = (3, 0);
            }
        }
        let less = restrict(&CONFIG, &policy, &given).unwrap();
        let words = feature_words(&less);
        assert!(words.iter().zip(base).all(|(less, base)| less & !base == 0));
        assert_eq!(words[1] & (1 << 30 | 1 << 28), 0, "no RDRAND, no AVX");
        assert_eq!(less.xcr0(), 3);
        assert_ne!(words[1] & 1 << 31, 0, "a hypervisor stays visible");
    }

    #[test]
    fn unknown_leaves_are_named() {
        let policy = CpuidPolicy::new(&CONFIG, host);
        let bad = CpuidLeaf {
            leaf: 0x1234_5678,
            ..CpuidLeaf::default()
        };
        assert_eq!(restrict(&CONFIG, &policy, &[bad]).err(), Some(bad));
        assert!(msrs().iter().all(msr_allowed));
        assert!(!msr_allowed(&MsrEntry {
            index: 0x1b,
            ..MsrEntry::default()
        }));
    }

    #[test]
    fn a_full_buffer_stops_the_list() {
        let policy = CpuidPolicy::new(&CONFIG, host);
        let result = leaves(&policy, |index, _| {
            if index < 5 {
                Ok(())
            } else {
                Err(Errno::ENOBUFS)
            }
        });
        assert_eq!(result, Err(Errno::ENOBUFS));
    }
}
