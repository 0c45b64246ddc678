// SPDX-License-Identifier: MIT OR Apache-2.0
//! The log of writes against a machine whose processors write, set dirty bits, and remember translations: whatever changes
//! in a logged domain's memory is in a round that ends after the change.

use super::fake::{FRAMES, Fake, M, VA};
use super::model::{Op, apply, destroy, load, step, va};
use crate::audit::Held;
use crate::entry::{self, A, D, KERNEL, NX, P, RW, US};
use crate::log::{self, Request, Round, Writers};
use crate::va_mapping::lookup_l1;
use crate::validate::{get_page_writable, put_page_writable};
use crate::word::Kind;
use core::cell::Cell;
use philoxen_abi::guest::FakeGuest;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, GuestMemory, GuestVa, Mfn, Result};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec::Vec;

/// The domain with the log.
const LOGGED: usize = 1;
const ID: DomId = DomId(LOGGED as u16);

#[derive(Clone, Debug)]
enum Act {
    /// A request of a guest.
    Request(Op),
    /// A guest's processor writes.
    Write { who: usize, va: u64 },
    /// One writes by a translation that it remembers.
    Stale { pick: usize },
    /// The hypervisor writes to a frame it holds.
    Hypervisor { pick: usize },
    /// A round, in pieces, with others' acts in between.
    Round {
        op: log::Op,
        units: u32,
        between: Vec<Act>,
    },
    /// A round whose reader cannot be written to after some writes.
    Fault { after: usize },
}

struct Others(M);

impl Writers for Others {
    fn maps_others(&self, _: DomId) -> bool {
        true
    }
    fn pinned(&self, mut each: impl FnMut(Mfn)) {
        for &(mfn, _, kind) in self.0.held.lock().iter() {
            if kind == Kind::Writable {
                each(mfn);
            }
        }
    }
}

/// A reader's memory that goes away.
struct Failing<'a> {
    guest: FakeGuest<'a>,
    writes: Cell<usize>,
}

impl GuestMemory for Failing<'_> {
    fn read_bytes(&self, va: GuestVa, out: &mut [u8]) -> Result<()> {
        self.guest.read_bytes(va, out)
    }
    fn write_bytes(&self, va: GuestVa, data: &[u8]) -> Result<()> {
        let left = self.writes.get().checked_sub(1).ok_or(Errno::EFAULT)?;
        self.writes.set(left);
        self.guest.write_bytes(va, data)
    }
}

/// Which of the logged domain's frames a reader has old contents of.
struct Reader {
    fake: M,
    before: Vec<Option<u64>>,
    unread: BTreeSet<u64>,
}

impl Reader {
    fn new(fake: M) -> Self {
        let mut reader = Self {
            fake,
            before: Vec::new(),
            unread: BTreeSet::new(),
        };
        reader.before = reader.contents();
        reader
    }

    fn is_logged(&self, mfn: u64) -> bool {
        self.fake.frame(mfn).owner().is_owned_by(ID)
    }

    /// What a reader would get of each frame, without what has no meaning to it: accessed bits, and dirty bits of a kernel.
    fn contents(&self) -> Vec<Option<u64>> {
        let sum = |mfn: u64| {
            let live = self.fake.frame(mfn).kind();
            let table = live.is_live_as(Kind::L1);
            let kind = if live.is_live() && live.kind().is_table() {
                live.kind() as u64
            } else {
                0
            };
            (0..512).fold(kind, |sum, slot| {
                let mut raw = self.fake.peek(mfn, slot);
                if table && raw & P != 0 {
                    raw &= if raw & KERNEL != 0 { !(A | D) } else { !A };
                }
                sum.rotate_left(7) ^ raw.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            })
        };
        (0..FRAMES)
            .map(|mfn| self.is_logged(mfn).then(|| sum(mfn)))
            .collect()
    }

    /// Notes what changed since it was last called.
    fn look(&mut self) {
        let now = self.contents();
        for (mfn, (new, old)) in (0..).zip(now.iter().zip(&self.before)) {
            if new.is_some() && new != old {
                self.unread.insert(mfn);
            }
        }
        self.before = now;
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Request(op) => {
                apply(self.fake, u32::MAX, op);
            }
            Act::Write { who, va } => self.write(*who, *va),
            Act::Stale { pick } => {
                let known: Vec<u64> = self.fake.dirty_tlb.lock().iter().copied().collect();
                if !known.is_empty() {
                    self.store(known[pick % known.len()]);
                }
            }
            Act::Hypervisor { pick } => {
                let held = self.fake.held.lock();
                let writable: Vec<u64> = held
                    .iter()
                    .filter(|(_, how, kind)| *how == Held::Typed && *kind == Kind::Writable)
                    .map(|(mfn, ..)| mfn.0)
                    .collect();
                drop(held);
                if !writable.is_empty() {
                    self.store(writable[pick % writable.len()]);
                }
            }
            Act::Round { op, units, between } => self.round(*op, *units, between),
            Act::Fault { after } => {
                let mut map = [0; FRAMES as usize / 8];
                match self.piece((log::Op::Take, 0), u32::MAX, &mut map, *after) {
                    // Few pages: it was not cut short.
                    Ok(_) => {
                        self.look();
                        self.unread.retain(|mfn| !given(&map).contains(mfn));
                    }
                    Err(errno) => assert_eq!(errno, Errno::EFAULT),
                }
            }
        }
        self.look();
        self.fake.check();
    }

    /// A processor writes: it sets the bits of the leaf, and remembers.
    fn write(&self, who: usize, va: u64) {
        let Some((table, index)) = self.fake.roots[who]
            .kernel()
            .and_then(|root| lookup_l1(self.fake, root, va))
        else {
            return;
        };
        let raw = self.fake.peek(table.0, index);
        if raw & (P | RW) != P | RW || entry::mfn(raw).0 >= FRAMES {
            return;
        }
        self.fake.poke(table.0, index, raw | A | D);
        self.fake.speculate();
        self.store(entry::mfn(raw).0);
    }

    fn store(&self, mfn: u64) {
        let frame = self.fake.frame(mfn);
        if frame.owner().is_guest() && frame.kind().is_live_as(Kind::Writable)
            || self.is_logged(mfn) && !frame.kind().is_live()
        {
            self.fake
                .poke(mfn, 511, self.fake.peek(mfn, 511).wrapping_add(1 << 32));
        }
    }

    /// A piece of a round with `units` of work, into `map`, which can be written to so many times.
    fn piece(
        &self,
        (op, token): (log::Op, u64),
        units: u32,
        map: &mut [u8],
        writes: usize,
    ) -> Result<Round> {
        for mfn in 0..FRAMES {
            crate::Machine::m2p_set(&self.fake, Mfn(mfn), mfn);
        }
        let request = Request {
            op,
            bitmap: GuestVa(VA),
            bits: FRAMES,
            token,
        };
        let guest = Failing {
            guest: FakeGuest::new(VA, map),
            writes: Cell::new(writes),
        };
        let domain = &self.fake.domains[LOGGED];
        let budget = &mut Budget::new(units);
        log::round(
            self.fake,
            domain,
            &Others(self.fake),
            &guest,
            &request,
            budget,
        )
    }

    fn round(&mut self, op: log::Op, units: u32, between: &[Act]) {
        // What changed before; but for what another reader gets meanwhile.
        let mut must = self.unread.clone();
        let mut acts = between.iter();
        let mut token = 0;
        let mut map = std::vec![0xffu8; FRAMES as usize / 8];
        loop {
            match self.piece((op, token), units, &mut map, usize::MAX) {
                Ok(Round::Again(next)) => token = next,
                Ok(Round::Done(pages)) => {
                    self.look();
                    let read = match op {
                        log::Op::Start => (0..FRAMES).collect(),
                        _ => given(&map),
                    };
                    for mfn in must {
                        let fine = read.contains(&mfn) || !self.is_logged(mfn);
                        assert!(fine, "{mfn} is not in {op:?}");
                    }
                    if op != log::Op::Start {
                        assert_eq!(read.len(), pages as usize);
                    }
                    if op != log::Op::Look {
                        self.unread.retain(|mfn| !read.contains(mfn));
                    }
                    return;
                }
                // There is a log already.
                Err(errno) => return assert_eq!((op, errno), (log::Op::Start, Errno::EINVAL)),
            }
            if let Some(act) = acts.next() {
                self.act(act);
                must.retain(|mfn| self.unread.contains(mfn));
            }
        }
    }
}

/// Pages whose bits are set.
fn given(map: &[u8]) -> BTreeSet<u64> {
    (0..FRAMES)
        .filter(|pfn| map[*pfn as usize / 8] & 1 << (pfn % 8) != 0)
        .collect()
}

/// Pages of the address space that the acts below are about.
fn page() -> impl Strategy<Value = u64> {
    4u64..10
}

/// The logged domain's own leaves, kernels' and applications', changed in each of the ways there are.
fn leaf() -> impl Strategy<Value = Op> {
    let flags = prop::sample::select(std::vec![
        P | RW | D,
        P | RW,
        P | D,
        P,
        P | RW | D | US,
        P | RW | US,
        P | D | US,
        0
    ]);
    let first = Fake::first(LOGGED);
    (page(), page(), flags, 0..4).prop_map(move |(page, other, flags, how)| {
        let (who, va) = (LOGGED, page << 12);
        let target = first + if how == 0 { other } else { page };
        match how {
            0 | 1 => Op::Va {
                who,
                va,
                target,
                flags,
                uvmf: 0,
            },
            2 => Op::Emulate {
                who,
                va: 3 << 12,
                offset: page * 8,
                size: 8,
                kind: 0,
                value: target << 12 | flags,
            },
            _ => Op::Update {
                who,
                table: first + 3,
                slot: page,
                target,
                flags,
                command: 2,
                foreign: DomId::SELF.0.into(),
            },
        }
    })
}

/// The privileged domain maps a page of the logged one.
fn foreign() -> impl Strategy<Value = Op> {
    (page(), page(), prop::bool::ANY).prop_map(|(page, target, writable)| Op::Update {
        who: 0,
        table: Fake::first(0) + 3,
        slot: page,
        target: Fake::first(LOGGED) + target,
        flags: if writable { P | RW } else { P },
        command: 0,
        foreign: ID.0.into(),
    })
}

/// The logged domain makes a page an L1 table, without a pin, or gives it up as one.
fn table() -> impl Strategy<Value = Op> {
    let first = Fake::first(LOGGED);
    (page(), 1u64..3, 0u64..3).prop_map(move |(page, slot, how)| Op::Update {
        who: LOGGED,
        table: first + 2,
        slot,
        target: first + page,
        flags: if how == 0 { 0 } else { P | RW },
        command: 0,
        foreign: DomId::SELF.0.into(),
    })
}

fn simple() -> impl Strategy<Value = Act> {
    let who = || prop_oneof![3 => Just(LOGGED), 1 => Just(0)];
    prop_oneof![
        4 => step().prop_map(Act::Request),
        8 => leaf().prop_map(Act::Request),
        2 => foreign().prop_map(Act::Request),
        2 => table().prop_map(Act::Request),
        1 => (0usize..2, va()).prop_map(|(who, va)| Act::Write { who, va }),
        8 => (who(), page()).prop_map(|(who, page)| Act::Write { who, va: page << 12 }),
        2 => any::<usize>().prop_map(|pick| Act::Stale { pick }),
        2 => any::<usize>().prop_map(|pick| Act::Hypervisor { pick }),
        1 => (0usize..8).prop_map(|after| Act::Fault { after }),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let op =
        prop_oneof![6 => Just(log::Op::Take), 1 => Just(log::Op::Look), 1 => Just(log::Op::Start)];
    prop_oneof![
        6 => simple(),
        1 => (op, prop_oneof![1u32..2000, Just(u32::MAX)], prop::collection::vec(simple(), 0..8))
            .prop_map(|(op, units, between)| Act::Round { op, units, between }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn every_change_is_in_a_round(acts in prop::collection::vec(act(), 1..60)) {
        let fake = Fake::new();
        load(fake);
        let mut reader = Reader::new(fake);
        reader.round(log::Op::Start, u32::MAX, &[]);
        assert!(reader.unread.is_empty());
        for act in &acts {
            reader.act(act);
        }
        reader.round(log::Op::Take, u32::MAX, &[]);
        assert!(reader.unread.is_empty());
        log::stop(fake, &fake.domains[LOGGED]);
        assert_eq!(fake.logs.load(core::sync::atomic::Ordering::SeqCst), 0);
        destroy(fake);
    }
}

/// Logged domain's table and the first of its frames that it can write to.
fn started() -> (Reader, u64, u64) {
    let fake = Fake::new();
    load(fake);
    let mut reader = Reader::new(fake);
    reader.round(log::Op::Start, u32::MAX, &[]);
    let first = Fake::first(LOGGED);
    (reader, first + 3, first + 6)
}

fn entry_of(reader: &Reader, table: u64, slot: usize, value: u64) -> u64 {
    assert_eq!(reader.fake.set(LOGGED, table, slot as u64, value), 0);
    reader.fake.peek(table, slot)
}

#[test]
fn a_kernels_leaf_loses_its_dirty_bit_and_an_applications_its_right_to_write() {
    let (mut reader, table, mfn) = started();
    for (given, kept) in [
        (P | RW | D, P | RW | US | KERNEL),
        (P | RW | D | US, P | D | US),
        (P | RW | US, P | RW | US),
        (P | D, P | D | US | KERNEL),
    ] {
        let stored = entry_of(&reader, table, 6, mfn << 12 | given);
        assert_eq!(stored & RW, given & RW);
        reader.round(log::Op::Take, u32::MAX, &[]);
        assert_eq!(reader.fake.peek(table, 6), mfn << 12 | kept);
        reader.look();
        reader.fake.check();
    }
}

#[test]
fn a_leaf_stays_its_kernels_until_it_is_stored_as_an_applications() {
    let (reader, table, mfn) = started();
    let leaf = mfn << 12 | P | RW;
    let stored = entry_of(&reader, table, 6, leaf);
    assert_eq!(stored, leaf | US | KERNEL);
    assert_eq!(entry_of(&reader, table, 6, stored | NX), stored | NX);
    assert_eq!(entry_of(&reader, table, 6, leaf | US), leaf | US);
}

#[test]
fn the_mark_of_a_kernel_gives_no_rights() {
    let (reader, table, _) = started();
    let (ours, theirs) = (Fake::first(LOGGED), Fake::first(0) + 9);
    for target in [ours, theirs, super::fake::M2P_FRAME] {
        let result = reader
            .fake
            .set(LOGGED, table, 6, target << 12 | P | RW | KERNEL);
        assert_ne!(result, 0, "{target}");
    }
    reader.fake.check();
}

#[test]
fn what_the_hypervisor_may_write_to_is_in_every_round_and_the_one_after() {
    let (mut reader, _, mfn) = started();
    let fake = reader.fake;
    assert_eq!(get_page_writable(fake, Mfn(mfn), ID), Ok(()));
    fake.held
        .lock()
        .push((Mfn(mfn), Held::Typed, Kind::Writable));
    for _ in 0..3 {
        reader.act(&Act::Hypervisor { pick: 0 });
        assert!(reader.unread.contains(&mfn));
        reader.round(log::Op::Take, u32::MAX, &[]);
        assert!(reader.unread.is_empty());
    }
    reader.act(&Act::Hypervisor { pick: 0 });
    fake.held.lock().clear();
    put_page_writable(fake, Mfn(mfn));
    reader.round(log::Op::Take, u32::MAX, &[]);
    assert!(reader.unread.is_empty());
}

#[test]
fn a_reader_that_missed_marks_gets_all_pages() {
    let (mut reader, _, mfn) = started();
    let write = Act::Write {
        who: LOGGED,
        va: 6 << 12,
    };
    reader.act(&write);
    // One write clears the map; the first page does not get there.
    reader.act(&Act::Fault { after: 1 });
    assert!(reader.unread.contains(&mfn));
    reader.round(log::Op::Take, u32::MAX, &[]);
    assert!(reader.unread.is_empty());

    // Given up when the page's mark was taken, and a new round begun by another reader.
    reader.act(&write);
    let mut token = 0;
    let mut map = [0; FRAMES as usize / 8];
    while !given(&map).contains(&mfn) {
        match reader.piece((log::Op::Take, token), 1, &mut map, usize::MAX) {
            Ok(Round::Again(next)) => token = next,
            other => panic!("over too early: {other:?}"),
        }
    }
    assert!(reader.unread.contains(&mfn));
    reader.round(log::Op::Take, u32::MAX, &[]);
    assert!(reader.unread.is_empty());
}

#[test]
fn only_a_running_domain_has_a_log_and_only_once() {
    let (reader, ..) = started();
    let piece = |op| reader.piece((op, 0), u32::MAX, &mut [0; FRAMES as usize / 8], usize::MAX);
    assert_eq!(piece(log::Op::Start), Err(Errno::EINVAL));
    let domain = &reader.fake.domains[LOGGED];
    log::stop(reader.fake, domain);
    log::stop(reader.fake, domain);
    assert_eq!(piece(log::Op::Take), Err(Errno::EINVAL));
    assert_eq!(
        reader.fake.logs.load(core::sync::atomic::Ordering::SeqCst),
        0
    );
    domain.set_dying();
    assert_eq!(piece(log::Op::Start), Err(Errno::EINVAL));
    assert_eq!(
        reader.fake.logs.load(core::sync::atomic::Ordering::SeqCst),
        0
    );
}
