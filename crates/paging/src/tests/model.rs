// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random sequences of requests. After every step: no stale translation gives more than the types allow, every
//! count is what holds it, entries are sound. A budget of one unit ends in the same state as an unlimited one,
//! and destroying both domains gives every frame back.

use super::fake::{EACH, FRAMES, Fake, M, VA, run};
use crate::audit::Held;
use crate::emulate::{PteWrite, emulate_pte_write, table_at};
use crate::entry::{G, NX, P, PCD, PSE, RW};
use crate::mmuext::release_roots;
use crate::relinquish::{Progress, relinquish};
use crate::validate::{
    get_page, get_page_segdesc, get_page_writable, put_page, put_page_segdesc, put_page_writable,
};
use crate::word::Kind;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::memory::op;
use philoxen_abi::mmu::mmuext;
use philoxen_abi::{DomId, Mfn};
use proptest::prelude::*;
use std::vec::Vec;

#[derive(Clone, Debug)]
pub enum Op {
    Update {
        who: usize,
        table: u64,
        slot: u64,
        target: u64,
        flags: u64,
        command: u64,
        foreign: u64,
    },
    Va {
        who: usize,
        va: u64,
        target: u64,
        flags: u64,
        uvmf: u64,
    },
    Emulate {
        who: usize,
        va: u64,
        offset: u64,
        size: u32,
        kind: u8,
        value: u64,
    },
    Ext {
        who: usize,
        cmd: u32,
        mfn: u64,
    },
    Hold {
        who: usize,
        mfn: u64,
        kind: u8,
    },
    Drop {
        pick: usize,
    },
    Decrease {
        who: usize,
        mfn: u64,
        order: u64,
    },
    Populate {
        who: usize,
        order: u64,
        bits: u64,
    },
    Exchange {
        who: usize,
        base: u64,
        order_in: u64,
        order_out: u64,
        extents: u64,
        bits: u64,
    },
    Speculate,
}

fn mfn() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => Fake::first(0)..Fake::first(0) + 8,
        8 => Fake::first(1)..Fake::first(1) + 8,
        2 => Fake::first(0)..FRAMES,
        1 => 0..FRAMES + 4,
        1 => any::<u64>(),
    ]
}

fn flags() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => Just(P | RW),
        4 => Just(P),
        2 => Just(0),
        1 => Just(P | RW | PSE),
        1 => Just(P | RW | G | NX),
        1 => Just(P | PCD),
        1 => any::<u64>().prop_map(|f| f & 0xfff0_0000_0000_0fff),
    ]
}

fn slot() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0u64..3, 2 => 0u64..10, 1 => Just(256u64), 1 => 0u64..512]
}

pub fn va() -> impl Strategy<Value = u64> {
    prop_oneof![8 => (0u64..EACH).prop_map(|p| p << 12), 1 => any::<u64>()]
}

pub fn step() -> impl Strategy<Value = Op> {
    let who = || 0usize..2;
    let foreign = prop_oneof![6 => Just(0x7ff0u64), 2 => Just(1u64), 1 => Just(0x7ff1u64), 1 => Just(0x7ff2u64), 1 => any::<u64>()];
    prop_oneof![
        10 => (who(), mfn(), slot(), mfn(), flags(), 0u64..5, foreign).prop_map(
            |(who, table, slot, target, flags, command, foreign)| Op::Update { who, table, slot, target, flags, command, foreign }),
        4 => (who(), va(), mfn(), flags(), prop::sample::select(std::vec![0u64, 1, 2, 3, 5, 6, 64]))
            .prop_map(|(who, va, target, flags, uvmf)| Op::Va { who, va, target, flags, uvmf }),
        3 => (who(), va(), 0u64..96, prop::sample::select(std::vec![1u32, 4, 8, 8, 8, 3]), 0u8..3, (mfn(), flags()))
            .prop_map(|(who, va, offset, size, kind, (m, f))| Op::Emulate { who, va, offset: if size == 8 { offset & !7 } else { offset }, size, kind, value: entry(m, f) }),
        6 => (who(), prop_oneof![4 => Just(3u32), 2 => 0u32..6, 4 => Just(4), 2 => Just(5), 2 => Just(15), 1 => 6u32..22], mfn())
            .prop_map(|(who, cmd, mfn)| Op::Ext { who, cmd, mfn }),
        2 => (who(), mfn(), 0u8..3).prop_map(|(who, mfn, kind)| Op::Hold { who, mfn, kind }),
        2 => any::<usize>().prop_map(|pick| Op::Drop { pick }),
        2 => (who(), mfn(), 0u64..2).prop_map(|(who, mfn, order)| Op::Decrease { who, mfn, order }),
        2 => (who(), 0u64..3, prop::sample::select(std::vec![0u64, 17, 18, 19])).prop_map(|(who, order, bits)| Op::Populate { who, order, bits }),
        1 => (who(), mfn(), 0u64..3, 0u64..3, 1u64..5, prop::sample::select(std::vec![0u64, 17, 18, 19]))
            .prop_map(|(who, base, order_in, order_out, extents, bits)| Op::Exchange { who, base, order_in, order_out, extents, bits }),
        2 => Just(Op::Speculate),
    ]
}

fn entry(target: u64, flags: u64) -> u64 {
    (target << 12) & crate::entry::ADDR | flags
}

fn memory_words(who: usize, order: u64, bits: u64, extents: &[u64]) -> Vec<u64> {
    let mut words = std::vec![
        VA + 32,
        extents.len() as u64,
        order | bits << 32,
        who as u64
    ];
    words.extend_from_slice(extents);
    words
}

pub fn apply(fake: M, units: u32, op: &Op) -> i64 {
    match *op {
        Op::Update {
            who,
            table,
            slot,
            target,
            flags,
            command,
            foreign,
        } => {
            let ptr = table << 12 | slot << 3 | command;
            fake.update_in(units, who, ptr, entry(target, flags), foreign)
        }
        Op::Va {
            who,
            va,
            target,
            flags,
            uvmf,
        } => {
            let args = [va, entry(target, flags), uvmf, 0, 0];
            run(
                units,
                args,
                &mut [u64::MAX],
                |guest, [a, b, c, ..], budget| {
                    crate::update_va_mapping(&fake.cx(who), guest, [a, b, c], budget)
                },
            )
        }
        Op::Emulate {
            who,
            va,
            offset,
            size,
            kind,
            value,
        } => emulate(fake, who, va, (offset, size), (kind, value)),
        Op::Ext { who, cmd, mfn } => fake.ext_in(units, who, cmd, mfn, mfn ^ 1),
        Op::Hold { who, mfn, kind } => hold(fake, DomId(who as u16), Mfn(mfn), kind),
        Op::Drop { pick } => {
            let mut held = fake.held.lock();
            if held.is_empty() {
                return 0;
            }
            let index = pick % held.len();
            let (mfn, how, kind) = held.swap_remove(index);
            drop(held);
            release_held(fake, mfn, how, kind);
            0
        }
        Op::Decrease { who, mfn, order } => {
            let mut words = memory_words(who, order, 0, &[mfn, mfn.wrapping_add(1 << order)]);
            fake.memory(units, who, op::DECREASE_RESERVATION, &mut words)
        }
        Op::Populate { who, order, bits } => {
            let mut words = memory_words(who, order, bits, &[7, 9]);
            fake.memory(units, who, op::POPULATE_PHYSMAP, &mut words)
        }
        Op::Exchange {
            who,
            base,
            order_in,
            order_out,
            extents,
            bits,
        } => {
            let outs = extents << order_in >> order_out;
            let mut words = std::vec![VA + 72, extents, order_in, who as u64];
            words.extend([
                VA + 72 + extents * 8,
                outs,
                order_out | bits << 32,
                who as u64,
                0,
            ]);
            words.extend((0..extents).map(|i| base.wrapping_add(i << order_in)));
            words.extend((0..outs).map(|i| 40 + i));
            fake.memory(units, who, op::EXCHANGE, &mut words)
        }
        Op::Speculate => {
            fake.speculate();
            0
        }
    }
}

fn emulate(
    fake: M,
    who: usize,
    va: u64,
    (offset, size): (u64, u32),
    (kind, value): (u8, u64),
) -> i64 {
    let cx = fake.cx(who);
    let Some(table) = cx.roots.kernel().and_then(|root| table_at(&cx, root, va)) else {
        return -1;
    };
    let now = fake.peek(table.0, offset as usize / 8) >> ((offset & 7) * 8);
    let access = match kind {
        0 => PteWrite::Write(value),
        1 => PteWrite::Exchange(value),
        _ => PteWrite::CompareExchange {
            old: now,
            new: value,
        },
    };
    emulate_pte_write(&cx, table, offset, size, access).map_or_else(|e| e.rax(), |v| v as i64)
}

fn hold(fake: M, who: DomId, mfn: Mfn, kind: u8) -> i64 {
    let (result, held) = match kind {
        0 => (get_page(fake, mfn, who), (Held::General, Kind::None)),
        1 => (
            get_page_writable(fake, mfn, who),
            (Held::Typed, Kind::Writable),
        ),
        _ => (
            get_page_segdesc(fake, mfn, who),
            (Held::Typed, Kind::SegDesc),
        ),
    };
    match result {
        Ok(()) => {
            fake.held.lock().push((mfn, held.0, held.1));
            0
        }
        Err(errno) => errno.rax(),
    }
}

fn release_held(fake: M, mfn: Mfn, how: Held, kind: Kind) {
    match (how, kind) {
        (Held::General, _) => put_page(fake, mfn),
        (Held::Typed, Kind::SegDesc) => put_page_segdesc(fake, mfn),
        (Held::Typed, _) => put_page_writable(fake, mfn),
    }
}

pub fn load(fake: M) {
    for who in 0..2 {
        let root = Fake::first(who);
        assert_eq!(fake.ext(who, mmuext::PIN_L4_TABLE, root), 0);
        assert_eq!(fake.ext(who, mmuext::NEW_BASEPTR, root), 0);
    }
}

/// Destroys both domains a few units at a time; everything must come back.
pub fn destroy(fake: M) {
    let held: Vec<_> = std::mem::take(&mut *fake.held.lock());
    for (mfn, how, kind) in held {
        release_held(fake, mfn, how, kind);
    }
    for who in [1, 0] {
        fake.domains[who].set_dying();
        release_roots(fake, &fake.roots[who], &mut Budget::new(3));
        let mut rounds = 0;
        while relinquish(fake, &fake.domains[who], &mut Budget::new(2)) == Progress::Yield {
            rounds += 1;
            assert!(rounds < 100_000, "relinquish never ends");
        }
        fake.check();
        assert_eq!(fake.domains[who].total_pages(), 0);
    }
    assert_eq!(fake.buddy.lock().free_frames(), FRAMES - Fake::first(0));
}

/// What must not depend on the budget.
fn state(fake: M) -> Vec<(u64, u32, Kind, u32, bool, u64)> {
    (0..FRAMES)
        .map(|mfn| {
            let (kind, owner) = (fake.frame(mfn).kind(), fake.frame(mfn).owner());
            if !owner.is_guest() {
                return (owner.class() as u64, 0, Kind::None, 0, false, 0);
            }
            let live = if kind.is_live() {
                kind.kind()
            } else {
                Kind::None
            };
            let sum = (0..512).fold(0u64, |sum, slot| {
                sum.rotate_left(7) ^ fake.peek(mfn, slot).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            });
            let pinned = kind.is_live() && kind.is_pinned();
            (owner.0, owner.count(), live, kind.count(), pinned, sum)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, ..ProptestConfig::default() })]

    #[test]
    fn types_hold_after_every_step(ops in prop::collection::vec(step(), 1..120), units in 1u32..2000) {
        let fake = Fake::new();
        load(fake);
        for op in &ops {
            fake.speculate();
            apply(fake, units, op);
            fake.check();
        }
        destroy(fake);
    }

    #[test]
    fn preemption_changes_nothing(ops in prop::collection::vec(step(), 1..80)) {
        let (one, all) = (Fake::new(), Fake::new());
        load(one);
        load(all);
        for op in &ops {
            let results = (apply(one, 1, op), apply(all, u32::MAX, op));
            one.settle();
            all.settle();
            prop_assert_eq!(results.0, results.1, "{:?}", op);
            prop_assert_eq!(state(one), state(all), "{:?}", op);
        }
        destroy(one);
        destroy(all);
    }

    #[test]
    fn garbage_arguments_never_panic(
        calls in prop::collection::vec((0usize..2, 0u8..5, any::<[u64; 5]>(), any::<[u64; 12]>(), any::<u8>()), 1..40)
    ) {
        let fake = Fake::new();
        load(fake);
        for (who, call, mut args, mut words, mask) in calls {
            // Let some arguments be plausible, or nothing gets past the first check.
            for (bit, arg) in args.iter_mut().enumerate() {
                if mask & 1 << bit != 0 {
                    *arg = if bit == 0 && call != 2 && call != 3 { VA } else { *arg % 64 };
                }
            }
            let cx = fake.cx(who);
            use philoxen_abi::guest::FakeGuest;
            use zerocopy::IntoBytes;
            let guest = FakeGuest::new(VA, words.as_mut_bytes());
            let mut budget = Budget::new(1 + u32::from(mask));
            let [a, b, c, d, _] = args;
            match call {
                0 => crate::mmu_update(&cx, &guest, [a, b, c, d], &mut budget),
                1 => crate::mmuext_op(&cx, &guest, [a, b, c, d], &mut budget),
                2 => crate::update_va_mapping(&cx, &guest, [a, b, c], &mut budget),
                3 => crate::update_va_mapping_otherdomain(&cx, &guest, [a, b, c, d], &mut budget),
                _ => crate::memory_op(&cx, &guest, [if mask & 1 != 0 { b % 64 } else { a }, VA], &mut budget),
            };
            fake.check();
        }
    }
}
