// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random sequences of requests, of plain writes to page tables and entries, and of deaths, by three domains.
//!
//! A shadow knows every handle from what requests answered. After every step: each frame's counts are what page tables
//! and handles hold; the marks of each entry are those of its handles; no stale translation outlives its handles; and
//! no unprivileged domain has more leaves to a foreign frame than handles. Destroying all domains, in any order, gives
//! every frame back. A budget of one unit ends in the same answers as an unlimited one.

use super::fake::*;
use super::versions::set_version;
use crate::table::FrameKind;
use philoxen_abi::grant::{
    SwapGrantRef, Transfer, UnmapAndReplace, copy, gntst, gtf, map as flag, op,
};
use philoxen_abi::guest::FakeGuest;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::memory::op as memory_op;
use philoxen_abi::{DomId, Flow, Mfn};
use philoxen_paging::entry::{self, P, RW};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::vec;
use std::vec::Vec;
use zerocopy::IntoBytes;

/// The entries played with: a reserved one and others.
const GREFS: [u32; 3] = [1, 8, 9];

#[derive(Clone, Debug)]
enum Op {
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

/// What a handle has, as its answers say.
#[derive(Clone, Copy, Debug)]
struct Handle {
    who: usize,
    handle: u32,
    from: usize,
    gref: u32,
    mfn: u64,
    at: u64,
    host: bool,
    device: bool,
    write: bool,
}

struct Model {
    fake: M,
    units: u32,
    handles: Vec<Handle>,
    /// Entries whose marks the granter has written itself while they were in use.
    scribbled: BTreeMap<(usize, u32), ()>,
}

impl Model {
    fn new(units: u32) -> Self {
        Self {
            fake: Fake::new(),
            units,
            handles: Vec::new(),
            scribbled: BTreeMap::new(),
        }
    }
    fn gone(&self, who: usize) -> bool {
        self.fake.gone[who].load(Ordering::SeqCst)
    }
    fn request<T: IntoBytes + zerocopy::FromBytes + zerocopy::Immutable>(
        &self,
        who: usize,
        cmd: u32,
        op: T,
    ) -> T {
        let mut ops = [op];
        assert_eq!(self.fake.op_on((who, 0), self.units, cmd, &mut ops), 0);
        let [op] = ops;
        op
    }
    /// Answer of the step, for comparison.
    fn apply(&mut self, op: &Op) -> i64 {
        match *op {
            Op::Share {
                from,
                gref,
                who,
                frame,
                readonly,
                page,
                flags,
                by_entry,
            } if !self.gone(who) && !self.gone(from) => {
                let readonly = if readonly { gtf::READONLY } else { 0 };
                // An entry in use is left as it is.
                if !self
                    .handles
                    .iter()
                    .any(|h| h.from == from && h.gref == gref)
                {
                    self.grant(
                        from,
                        gref,
                        who,
                        Fake::data(from, frame),
                        gtf::PERMIT_ACCESS | readonly,
                    );
                    self.scribbled.remove(&(from, gref));
                }
                self.map(who, from, gref, page, flags, by_entry)
            }
            Op::Grant {
                who,
                gref,
                to,
                frame,
                flags,
            } if !self.gone(who) => self.grant(who, gref, to, frame, flags),
            Op::Map {
                who,
                from,
                gref,
                page,
                flags,
                by_entry,
            } if !self.gone(who) => self.map(who, from, gref, page, flags, by_entry),
            Op::Unmap {
                pick,
                host,
                device,
                page,
                who,
            } => self.unmap(pick, host, device, page, who),
            Op::Replace { pick, page } => self.replace(pick, page),
            Op::Copy {
                who,
                ends,
                flags,
                offset,
                len,
            } if !self.gone(who) => {
                let end = |(from, gref, frame): (usize, u32, u64), is_grant| {
                    if is_grant {
                        granted(from, gref, offset)
                    } else {
                        own(frame, offset)
                    }
                };
                let source = end(ends[0], flags & copy::SOURCE_GREF != 0);
                let dest = end(ends[1], flags & copy::DEST_GREF != 0);
                // Only a frame's data: a copy into tables of the test would change what the model knows.
                self.request(who, op::COPY, copy_request(source, dest, len, flags))
                    .status
                    .into()
            }
            Op::Write {
                who,
                page,
                frame,
                flags,
                foreign,
            } if !self.gone(who) => {
                let whose = if foreign {
                    (frame.wrapping_sub(8) / EACH).min(2) as u16
                } else {
                    DomId::SELF.0
                };
                self.write(who, page, frame << 12 | flags, whose)
            }
            Op::Swap { who, a, b } if !self.gone(who) => {
                let status = self
                    .request(
                        who,
                        op::SWAP_GRANT_REF,
                        SwapGrantRef {
                            ref_a: a,
                            ref_b: b,
                            status: 99,
                            pad: 0,
                        },
                    )
                    .status;
                if status == gntst::OKAY && a != b {
                    let (had_a, had_b) = (
                        self.scribbled.remove(&(who, a)),
                        self.scribbled.remove(&(who, b)),
                    );
                    had_a.map(|()| self.scribbled.insert((who, b), ()));
                    had_b.map(|()| self.scribbled.insert((who, a), ()));
                }
                status.into()
            }
            Op::Version { who, version } if !self.gone(who) => {
                let before = self.fake.tables[who].version();
                let result = set_version(self.fake, who, version);
                if self.fake.tables[who].version() != before {
                    self.scribbled.retain(|&(owner, _), ()| owner != who);
                }
                result
            }
            Op::Setup { who, frames } if !self.gone(who) => self.fake.setup(who, frames).into(),
            Op::Transfer {
                who,
                to,
                gref,
                frame,
            } if !self.gone(who) => {
                self.scribbled.insert((to, gref), ());
                let request = Transfer {
                    mfn: frame,
                    domid: to as u16,
                    pad: 0,
                    gref,
                    status: 99,
                    pad2: [0; 3],
                };
                self.request(who, op::TRANSFER, request).status.into()
            }
            Op::Decrease { who, frame } if !self.gone(who) => self.decrease(who, frame),
            Op::Speculate => {
                self.fake.speculate();
                0
            }
            Op::Destroy { who } if !self.gone(who) => {
                self.fake.destroy(who);
                self.handles.retain(|handle| handle.who != who);
                0
            }
            _ => 0,
        }
    }
    fn grant(&mut self, who: usize, gref: u32, to: usize, frame: u64, flags: u16) -> i64 {
        let table = &self.fake.tables[who];
        let header = u64::from(flags) | (to as u64) << 16;
        if table.version() == 2 {
            let mfn = table.frame(FrameKind::Shared, 0).unwrap().0;
            self.fake.poke(mfn, gref as usize * 2, header);
            self.fake.poke(mfn, gref as usize * 2 + 1, frame);
        } else {
            self.fake
                .entry_v1(who, gref)
                .store(header | frame << 32, Ordering::SeqCst);
            self.scribbled.insert((who, gref), ());
        }
        0
    }
    fn map(
        &mut self,
        who: usize,
        from: usize,
        gref: u32,
        page: u64,
        flags: u32,
        by_entry: bool,
    ) -> i64 {
        let (at, flags) = if by_entry && flags & HOST != 0 {
            (
                Fake::leaf_address(who, page.min(511)),
                flags | flag::CONTAINS_PTE,
            )
        } else {
            (page << 12, flags)
        };
        let answer = self.request(who, op::MAP_GRANT_REF, map_request(from, gref, at, flags));
        if answer.status == gntst::OKAY {
            self.handles.push(Handle {
                who,
                handle: answer.handle,
                from,
                gref,
                mfn: answer.dev_bus_addr >> 12,
                at,
                host: flags & HOST != 0,
                device: flags & flag::DEVICE_MAP != 0,
                write: flags & RO == 0,
            });
        }
        answer.status.into()
    }
    fn unmap(
        &mut self,
        pick: usize,
        host: bool,
        device: bool,
        page: Option<u64>,
        other: Option<usize>,
    ) -> i64 {
        if self.handles.is_empty() {
            return 0;
        }
        let index = pick % self.handles.len();
        let handle = self.handles[index];
        let who = other.unwrap_or(handle.who);
        if self.gone(who) {
            return 0;
        }
        let at = if host {
            page.map_or(handle.at, |page| page << 12)
        } else {
            0
        };
        let bus = if device { handle.mfn << 12 } else { 0 };
        let answer = self.request(
            who,
            op::UNMAP_GRANT_REF,
            unmap_request(handle.handle, at, bus),
        );
        if answer.status == gntst::OKAY {
            let found = self
                .handles
                .iter()
                .position(|h| h.who == who && h.handle == handle.handle);
            let real = found.expect("an unmap of no handle succeeded");
            // Of somebody else's handle with the same number the bus address is most likely wrong; if right, it counts.
            let ended = &mut self.handles[real];
            ended.host &= at == 0;
            ended.device &= bus == 0;
            if !ended.host && !ended.device {
                self.handles.swap_remove(real);
            }
        }
        answer.status.into()
    }
    fn replace(&mut self, pick: usize, page: u64) -> i64 {
        if self.handles.is_empty() {
            return 0;
        }
        let index = pick % self.handles.len();
        let handle = self.handles[index];
        if self.gone(handle.who) || !handle.host || handle.at == 0 {
            return 0;
        }
        let request = UnmapAndReplace {
            host_addr: handle.at,
            new_addr: page << 12,
            handle: handle.handle,
            status: 99,
            pad: 0,
        };
        let status = self
            .request(handle.who, op::UNMAP_AND_REPLACE, request)
            .status;
        if status == gntst::OKAY {
            self.handles[index].host = false;
            if !self.handles[index].device {
                self.handles.swap_remove(index);
            }
        }
        status.into()
    }
    fn write(&self, who: usize, page: u64, value: u64, whose: u16) -> i64 {
        let mut words = [Fake::leaf_address(who, page.min(511)), value];
        let guest = FakeGuest::new(VA, words.as_mut_bytes());
        match philoxen_paging::mmu_update(
            &self.fake.cx(who, 0),
            &guest,
            [VA, 1, 0, whose.into()],
            &mut Budget::unlimited(),
        ) {
            Flow::Done(value) => value,
            Flow::Again(_) => panic!("one request"),
        }
    }
    fn decrease(&self, who: usize, frame: u64) -> i64 {
        let mut words = [VA + 32, 1, 0, u64::from(DomId::SELF.0), frame];
        let guest = FakeGuest::new(VA, words.as_mut_bytes());
        let args = [memory_op::DECREASE_RESERVATION, VA];
        match philoxen_paging::memory_op(
            &self.fake.cx(who, 0),
            &guest,
            args,
            &mut Budget::unlimited(),
        ) {
            Flow::Done(value) => value,
            Flow::Again(_) => panic!("one extent"),
        }
    }
    fn check(&self) {
        let fake = self.fake;
        fake.check(self.handles.iter().map(|h| (Mfn(h.mfn), h.write)));
        for who in 0..DOMAINS {
            let mine = || self.handles.iter().filter(move |h| h.who == who);
            assert_eq!(fake.tables[who].handles_in_use(), mine().count() as u32);
            let mut used: Vec<u32> = self
                .handles
                .iter()
                .filter(|h| h.from == who)
                .map(|h| h.gref)
                .collect();
            used.sort_unstable();
            used.dedup();
            assert_eq!(fake.tables[who].entries_in_use(), used.len() as u32);
            if !self.gone(who) {
                self.check_marks(who);
            }
        }
        for stale in fake.tlb.lock().iter() {
            let owned = fake
                .frame(stale.mfn)
                .owner()
                .is_owned_by(DomId(stale.domain as u16));
            // Domain 0 may map frames of others without grants.
            let held = self.handles.iter().any(|h| {
                h.who == stale.domain
                    && h.mfn == stale.mfn
                    && h.host | h.device
                    && (h.write || !stale.writable)
            });
            let free = !fake.frame(stale.mfn).owner().is_guest();
            let orphan = fake.frame(stale.mfn).owner().is_owned_by(DomId::INVALID);
            assert!(
                owned || held || free || orphan || stale.domain == 0 || self.gone(stale.domain),
                "{stale:?}"
            );
        }
        for who in (1..DOMAINS).filter(|&who| !self.gone(who)) {
            for page in 0..512 {
                let raw = fake.leaf(who, page);
                let mfn = entry::mfn(raw).0;
                if raw & P == 0 || fake.frame(mfn).owner().is_owned_by(DomId(who as u16)) {
                    continue;
                }
                for need in [P, P | RW] {
                    let is = |p: u64| {
                        fake.leaf(who, p) & need == need && entry::mfn(fake.leaf(who, p)).0 == mfn
                    };
                    let leaves = (0..512).filter(|&p| is(p)).count();
                    let same =
                        |h: &&Handle| h.who == who && h.mfn == mfn && (need & RW == 0 || h.write);
                    assert!(
                        leaves <= self.handles.iter().filter(same).count(),
                        "leaf {raw:#x}"
                    );
                }
            }
        }
    }
    fn check_marks(&self, who: usize) {
        let fake = self.fake;
        for gref in GREFS {
            let uses = || {
                self.handles
                    .iter()
                    .filter(|h| h.from == who && h.gref == gref)
            };
            let mut expected = if uses().count() == 0 { 0 } else { gtf::READING };
            if uses().any(|h| h.write) {
                expected |= gtf::WRITING;
            }
            if fake.tables[who].version() == 2 {
                assert_eq!(super::versions::status(fake, who, gref), expected);
            } else if !self.scribbled.contains_key(&(who, gref)) {
                let marks = fake.entry_v1(who, gref).load(Ordering::SeqCst) as u16
                    & (gtf::READING | gtf::WRITING);
                assert_eq!(marks, expected, "entry {gref} of {who}");
            }
        }
    }
    /// Entries that nobody uses and the granter writes anew show true marks from then on.
    fn forget(&mut self, op: &Op) {
        if let Op::Grant {
            who, gref, flags, ..
        } = *op
            && flags & (gtf::READING | gtf::WRITING) == 0
            && !self.handles.iter().any(|h| h.from == who && h.gref == gref)
        {
            self.scribbled.remove(&(who, gref));
        }
    }
    fn finish(mut self, order: [usize; DOMAINS]) {
        for who in order {
            if !self.gone(who) {
                self.fake.destroy(who);
            }
            self.handles.retain(|handle| handle.who != who);
            self.check();
        }
        for table in &self.fake.tables {
            assert_eq!((table.entries_in_use(), table.handles_in_use()), (0, 0));
        }
        // What the domains began with, what they were given since, and their tables: all is free.
        let free = self.fake.buddy.lock().free_frames();
        assert_eq!(free, 64 + DOMAINS as u64 * EACH);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 2000, ..ProptestConfig::default() })]

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
