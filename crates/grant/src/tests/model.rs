// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random sequences of requests, of plain writes to page tables and entries, and of deaths, by three domains.
//!
//! A shadow knows every handle from what requests answered. After every step: each frame's counts are what page tables
//! and handles hold; the marks of each entry are those of its handles; no stale translation outlives its handles; and
//! no unprivileged domain has more leaves to a foreign frame than handles. Destroying all domains, in any order, gives
//! every frame back. A budget of one unit ends in the same answers as an unlimited one.

use super::fake::*;
use super::shadow::Model;
use philoxen_abi::grant::{gtf, map as flag};
use philoxen_abi::guest::FakeGuest;
use philoxen_abi::hypercall::Budget;
use philoxen_paging::entry::{P, RW};
use proptest::prelude::*;
use std::vec;
use zerocopy::IntoBytes;

/// The entries played with: a reserved one and others.
pub const GREFS: [u32; 3] = [1, 8, 9];

/// A step.
#[derive(Clone, Debug)]
pub enum Op {
    Share {
        from: usize,
        gref: u32,
        who: usize,
        frame: u64,
        readonly: bool,
        page: u64,
        flags: u32,
        by_entry: bool,
    },
    Grant {
        who: usize,
        gref: u32,
        to: usize,
        frame: u64,
        flags: u16,
    },
    Map {
        who: usize,
        from: usize,
        gref: u32,
        page: u64,
        flags: u32,
        by_entry: bool,
    },
    Unmap {
        pick: usize,
        host: bool,
        device: bool,
        page: Option<u64>,
        who: Option<usize>,
    },
    Replace {
        pick: usize,
        page: u64,
    },
    Copy {
        who: usize,
        ends: [(usize, u32, u64); 2],
        flags: u16,
        offset: u16,
        len: u16,
    },
    Write {
        who: usize,
        page: u64,
        frame: u64,
        flags: u64,
        foreign: bool,
    },
    Swap {
        who: usize,
        a: u32,
        b: u32,
    },
    Version {
        who: usize,
        version: u32,
    },
    Setup {
        who: usize,
        frames: u32,
    },
    Transfer {
        who: usize,
        to: usize,
        gref: u32,
        frame: u64,
    },
    Decrease {
        who: usize,
        frame: u64,
    },
    Speculate,
    Destroy {
        who: usize,
    },
}

fn who() -> impl Strategy<Value = usize> {
    0..DOMAINS
}
fn gref() -> impl Strategy<Value = u32> {
    prop_oneof![12 => one_gref(), 1 => any::<u32>()]
}
fn one_gref() -> impl Strategy<Value = u32> {
    prop::sample::select(GREFS.to_vec())
}
fn page() -> impl Strategy<Value = u64> {
    prop_oneof![8 => HOLE..HOLE + 6, 2 => 0..EACH, 1 => 0u64..1 << 20]
}
fn frame() -> impl Strategy<Value = u64> {
    let near = |who| Fake::data(who, 0)..Fake::data(who, 4);
    prop_oneof![6 => near(0), 6 => near(1), 6 => near(2), 1 => 0..Fake::first(DOMAINS), 1 => FRAMES..FRAMES + 2]
}
fn entry_flags() -> impl Strategy<Value = u16> {
    prop_oneof![
        8 => Just(gtf::PERMIT_ACCESS),
        3 => Just(gtf::PERMIT_ACCESS | gtf::READONLY),
        2 => Just(gtf::ACCEPT_TRANSFER),
        1 => Just(0),
        1 => 0u16..0x200,
    ]
}

fn step() -> impl Strategy<Value = Op> {
    let map_flags = prop::sample::select(vec![
        HOST,
        HOST,
        HOST | RO,
        flag::DEVICE_MAP,
        HOST | flag::DEVICE_MAP,
        RO | flag::DEVICE_MAP,
        0,
    ]);
    let leaf = prop::sample::select(vec![0, P, P | RW, P | RW]);
    let ends = || (who(), gref(), frame());
    prop_oneof![
        12 => ((who(), one_gref(), who(), 0u64..4), prop::bool::weighted(0.2), page(), map_flags.clone(), any::<bool>()).prop_map(
            |((from, gref, who, frame), readonly, page, flags, by_entry)| Op::Share { from, gref, who, frame, readonly, page, flags, by_entry }),
        8 => (who(), one_gref(), who(), frame(), entry_flags()).prop_map(|(who, gref, to, frame, flags)| Op::Grant { who, gref, to, frame, flags }),
        10 => (who(), who(), gref(), page(), map_flags, any::<bool>()).prop_map(|(who, from, gref, page, flags, by_entry)| Op::Map { who, from, gref, page, flags, by_entry }),
        10 => (any::<usize>(), any::<bool>(), any::<bool>(), prop::option::weighted(0.3, page()), prop::option::weighted(0.05, who()))
            .prop_map(|(pick, host, device, page, who)| Op::Unmap { pick, host, device, page, who }),
        2 => (any::<usize>(), page()).prop_map(|(pick, page)| Op::Replace { pick, page }),
        4 => (who(), ends(), ends(), 0u16..4, 0u16..4100, 0u16..64).prop_map(|(who, a, b, flags, offset, len)| Op::Copy { who, ends: [a, b], flags, offset, len }),
        6 => (who(), page(), frame(), leaf, any::<bool>()).prop_map(|(who, page, frame, flags, foreign)| Op::Write { who, page, frame, flags, foreign }),
        1 => (who(), gref(), gref()).prop_map(|(who, a, b)| Op::Swap { who, a, b }),
        1 => (who(), 0u32..4).prop_map(|(who, version)| Op::Version { who, version }),
        1 => (who(), 0u32..6).prop_map(|(who, frames)| Op::Setup { who, frames }),
        2 => (who(), who(), gref(), frame()).prop_map(|(who, to, gref, frame)| Op::Transfer { who, to, gref, frame }),
        2 => (who(), frame()).prop_map(|(who, frame)| Op::Decrease { who, frame }),
        3 => Just(Op::Speculate),
        1 => who().prop_map(|who| Op::Destroy { who }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_reference_is_lost_or_dropped_twice(
        ops in prop::collection::vec(step(), 1..120),
        units in prop::sample::select(vec![1u32, 40, u32::MAX]),
        order in Just([0, 1, 2]).prop_shuffle(),
    ) {
        let mut model = Model::new(units);
        for op in &ops {
            model.apply(op);
            model.forget(op);
            model.check();
        }
        model.finish(order);
    }

    #[test]
    fn preemption_changes_no_answer(ops in prop::collection::vec(step(), 1..60)) {
        let (mut one, mut all) = (Model::new(1), Model::new(u32::MAX));
        for op in &ops {
            prop_assert_eq!(one.apply(op), all.apply(op), "{:?}", op);
        }
        one.finish([0, 1, 2]);
        all.finish([2, 1, 0]);
    }

    #[test]
    fn garbage_never_panics(
        calls in prop::collection::vec((0usize..DOMAINS, 0u32..14, any::<[u64; 10]>(), 0u64..4, any::<u8>()), 1..40)
    ) {
        let fake = Fake::new();
        for (who, cmd, mut words, count, mask) in calls {
            for (bit, word) in words.iter_mut().enumerate() {
                if mask & 1 << (bit % 8) != 0 {
                    *word %= 64;
                }
            }
            let guest = FakeGuest::new(VA, words.as_mut_bytes());
            let args = [cmd.into(), VA, count];
            let _ = crate::grant_table_op(&fake.cx(who, 0), &fake.tables[who], &guest, args, &mut Budget::new(1 + u32::from(mask)));
        }
        for who in 0..DOMAINS {
            fake.destroy(who);
        }
        prop_assert_eq!(fake.buddy.lock().free_frames(), 64 + DOMAINS as u64 * EACH);
    }
}
