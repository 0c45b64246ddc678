// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fake machine, two domains, and shorthand for hypercalls.

use crate::audit::{Held, audit};
use crate::buddy::{Block, Buddy};
use crate::entry::{self, P, RW};
use crate::frame::{Frame, FrameTable};
use crate::machine::{Cx, DomainMemory, Domains, Flush, FlushScope, IoAccess, Machine, VcpuRoots};
use crate::reservation::assign_frames;
use crate::word::{Class, Kind};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use philoxen_abi::guest::FakeGuest;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::memory::E820Entry;
use philoxen_abi::{DomId, Flow, Mfn, Result};
use spin::Mutex;
use std::boxed::Box;
use std::collections::BTreeSet;
use std::vec::Vec;

/// Frames of the machine: 0..8 are not RAM, 8..12 the hypervisor's (the M2P), the rest is for domains.
pub const FRAMES: u64 = 160;
pub const M2P_FRAME: u64 = 8;
/// Frames each domain starts with.
pub const EACH: u64 = 32;
const FIRST: u64 = 12;

/// What a TLB or paging-structure cache may remember of a frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stale {
    pub mfn: u64,
    pub writable: bool,
    pub table: bool,
    pub owner: Option<u16>,
}

pub struct Fake {
    pub hook: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    frames: FrameTable,
    pages: Vec<[AtomicU64; 512]>,
    m2p: Vec<AtomicU64>,
    clock: AtomicU64,
    flushed: AtomicU64,
    pub flushes: AtomicU64,
    pub logs: AtomicU32,
    pub buddy: Mutex<Buddy>,
    pub tlb: Mutex<BTreeSet<Stale>>,
    /// Frames that some processor can write to without looking at a table again.
    pub dirty_tlb: Mutex<BTreeSet<u64>>,
    pub domains: [DomainMemory; 2],
    pub roots: [VcpuRoots; 2],
    pub held: Mutex<Vec<(Mfn, Held, Kind)>>,
}

pub type M = &'static Fake;

impl Fake {
    pub fn new() -> M {
        let frames: Vec<Frame> = (0..FRAMES).map(|_| Frame::new()).collect();
        let frames = FrameTable::new(Box::leak(frames.into_boxed_slice()));
        let fake: M = Box::leak(Box::new(Self {
            hook: Mutex::new(None),
            frames,
            pages: (0..FRAMES)
                .map(|_| [const { AtomicU64::new(0) }; 512])
                .collect(),
            m2p: (0..FRAMES).map(|_| AtomicU64::new(u64::MAX)).collect(),
            clock: AtomicU64::new(1),
            flushed: AtomicU64::new(1),
            flushes: AtomicU64::new(0),
            logs: AtomicU32::new(0),
            buddy: Mutex::new(Buddy::new()),
            tlb: Mutex::new(BTreeSet::new()),
            dirty_tlb: Mutex::new(BTreeSet::new()),
            domains: [
                DomainMemory::new(DomId(0), true, u64::MAX),
                DomainMemory::new(DomId(1), false, 64),
            ],
            roots: [VcpuRoots::new(), VcpuRoots::new()],
            held: Mutex::new(Vec::new()),
        }));
        frames.set_hypervisor(Mfn(M2P_FRAME), FIRST - M2P_FRAME);
        frames.set_hypervisor(Mfn(FIRST), 2 * EACH);
        let mut buddy = fake.buddy.lock();
        buddy.release_boot(&frames, Mfn(FIRST + 2 * EACH), FRAMES - FIRST - 2 * EACH);
        drop(buddy);
        for (index, domain) in fake.domains.iter().enumerate() {
            let first = FIRST + index as u64 * EACH;
            assign_frames(fake, domain, Mfn(first), EACH).unwrap();
            fake.build_tables(first);
        }
        fake
    }
    /// L4, L3, L2, L1 in the first four frames; the L1 maps the rest writable, and itself read-only.
    fn build_tables(&self, first: u64) {
        for (table, slot, target) in [(0, 0, 1), (1, 0, 2), (2, 0, 3)] {
            self.poke(first + table, slot, (first + target) << 12 | P | RW);
        }
        for page in 0..EACH {
            let flags = if page < 4 { P } else { P | RW };
            self.poke(first + 3, page as usize, (first + page) << 12 | flags);
        }
    }
    pub fn poke(&self, mfn: u64, slot: usize, value: u64) {
        self.pages[mfn as usize][slot].store(value, Ordering::SeqCst);
    }
    pub fn peek(&self, mfn: u64, slot: usize) -> u64 {
        self.pages[mfn as usize][slot].load(Ordering::SeqCst)
    }
    pub fn frame(&self, mfn: u64) -> &'static Frame {
        self.frames.get(Mfn(mfn)).unwrap()
    }
    pub fn cx(&'static self, who: usize) -> Cx<'static, M, Fake> {
        Cx {
            machine: self,
            domain: &self.domains[who],
            roots: &self.roots[who],
            domains: self,
        }
    }
    /// First frame of domain `who`.
    pub const fn first(who: usize) -> u64 {
        FIRST + who as u64 * EACH
    }
    fn flush_all(&self) {
        let now = self.clock.fetch_add(1, Ordering::SeqCst) + 1;
        self.tlb.lock().clear();
        self.dirty_tlb.lock().clear();
        self.flushed.store(now, Ordering::SeqCst);
        self.flushes.fetch_add(1, Ordering::SeqCst);
    }
    /// Lets the TLB learn everything that the loaded roots reach.
    pub fn speculate(&self) {
        for roots in &self.roots {
            for root in [roots.kernel(), roots.user()].into_iter().flatten() {
                self.learn(root.0, 4);
            }
        }
    }
    fn learn(&self, table: u64, level: u32) {
        self.remember(table, false, true);
        for slot in 0..512 {
            let raw = self.peek(table, slot);
            if raw & P == 0 || level == 4 && entry::is_hypervisor_slot(slot) {
                continue;
            }
            let target = entry::mfn(raw).0;
            if level == 1 {
                self.remember(target, raw & RW != 0, false);
                if entry::is_written(raw) {
                    self.dirty_tlb.lock().insert(target);
                }
            } else {
                self.learn(target, level - 1);
            }
        }
    }
    fn remember(&self, mfn: u64, writable: bool, table: bool) {
        let owner = self
            .frames
            .get(Mfn(mfn))
            .and_then(|f| f.owner().owner())
            .map(|d| d.0);
        if owner.is_some() {
            self.tlb.lock().insert(Stale {
                mfn,
                writable,
                table,
                owner,
            });
        }
    }
    /// Nothing stale gives a guest what the types forbid; counts are what holds them.
    pub fn check(&'static self) {
        for stale in self.tlb.lock().iter() {
            let frame = self.frame(stale.mfn);
            let (kind, owner) = (frame.kind(), frame.owner());
            assert!(
                owner.class() == Class::Free
                    || owner.owner().map(|d| d.0) == stale.owner
                    || owner.is_owned_by(DomId::INVALID),
                "{stale:?} now {owner:?}"
            );
            if kind.is_live() && owner.is_guest() {
                let writable = kind.kind() == Kind::Writable;
                assert!(!stale.writable || writable, "{stale:?} but {kind:?}");
                assert!(!stale.table || !writable, "{stale:?} but {kind:?}");
            }
        }
        let roots = self
            .roots
            .iter()
            .flat_map(|r| [r.kernel(), r.user()])
            .flatten();
        let held: Vec<_> = self
            .held
            .lock()
            .iter()
            .map(|&(mfn, held, _)| (mfn, held))
            .collect();
        let held: Vec<_> = roots.map(|root| (root, Held::Typed)).chain(held).collect();
        let wrong = audit(self, &held, |wrong| {
            std::println!("{wrong:?} {:?}", self.frame(wrong.mfn.0))
        });
        assert_eq!(wrong, Ok(0));
        for mfn in 0..FRAMES {
            let word = self.frame(mfn).kind();
            if self.frame(mfn).owner().is_guest() && word.is_live() && word.kind().is_table() {
                self.check_table(mfn, word.kind());
            }
        }
    }
    /// Every present entry of a live table is user-accessible, not global, not large; nothing secret is mapped.
    fn check_table(&self, mfn: u64, kind: Kind) {
        for slot in 0..512 {
            let raw = self.peek(mfn, slot);
            if kind == Kind::L4 && entry::is_hypervisor_slot(slot) {
                assert_eq!(raw, hypervisor_entry(slot));
                continue;
            }
            if raw & P == 0 {
                continue;
            }
            assert!(raw & entry::US != 0 && raw & entry::G == 0);
            assert!(kind == Kind::L1 || raw & entry::PSE == 0, "large page");
            match self.frames.class(entry::mfn(raw)) {
                Class::Guest => assert_eq!(raw & entry::CACHE, 0),
                Class::NotRam => assert!(kind == Kind::L1),
                Class::Hypervisor => assert!(kind == Kind::L1 && raw & RW == 0),
                Class::Free => panic!("free frame mapped"),
            }
        }
    }
    /// Undoes all interrupted work.
    pub fn settle(&'static self) {
        for mfn in (0..FRAMES).rev() {
            crate::validate::reap(self, Mfn(mfn), &mut Budget::unlimited()).unwrap();
        }
    }
}

pub fn hypervisor_entry(slot: usize) -> u64 {
    0xabc0_0000_0000 | (slot as u64) << 12 | 1
}

impl Machine for M {
    fn frames(&self) -> FrameTable {
        self.frames
    }
    fn words(&self, mfn: Mfn) -> &'static [AtomicU64; 512] {
        let fake: M = self;
        &fake.pages[mfn.0 as usize]
    }
    fn zero(&self, mfn: Mfn) {
        for word in self.words(mfn) {
            word.store(0, Ordering::SeqCst);
        }
    }
    fn m2p_get(&self, mfn: Mfn) -> u64 {
        self.m2p[mfn.0 as usize].load(Ordering::SeqCst)
    }
    fn m2p_set(&self, mfn: Mfn, pfn: u64) {
        self.m2p[mfn.0 as usize].store(pfn, Ordering::SeqCst);
    }
    fn is_m2p_frame(&self, mfn: Mfn) -> bool {
        mfn.0 == M2P_FRAME
    }
    fn m2p_extent(&self, index: u64) -> Option<Mfn> {
        (index == 0).then_some(Mfn(M2P_FRAME))
    }
    fn tlb_clock(&self) -> u64 {
        let hook = self.hook.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        self.clock.load(Ordering::SeqCst)
    }
    fn flush_since(&self, stamp: u64) {
        let hook = self.hook.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        if self.flushed.load(Ordering::SeqCst) <= stamp {
            self.flush_all();
        }
    }
    fn flush_tlb(&self, _: &DomainMemory, _: FlushScope, what: Flush) {
        if what == Flush::All {
            self.flush_all();
        }
    }
    fn flush_caches(&self, _: bool) {}
    fn load_root(&self, l4: Mfn) {
        assert!(self.frame(l4.0).kind().is_live_as(Kind::L4));
        self.flush_all();
    }
    fn hypervisor_l4_entry(&self, slot: usize) -> u64 {
        hypervisor_entry(slot)
    }
    fn alloc_block(&self, order: u32, max_bits: u32) -> Option<Block> {
        self.buddy.lock().alloc_block(&self.frames, order, max_bits)
    }
    fn free_frame(&self, mfn: Mfn, dirty: bool, stamp: u64) {
        self.buddy
            .lock()
            .free_block(&self.frames, mfn, 0, dirty, stamp);
    }
    fn relax(&self) {
        std::thread::yield_now();
    }
    fn logs(&self) -> &'static AtomicU32 {
        let fake: M = self;
        &fake.logs
    }
    fn check_descriptor(&self, descriptor: u64) -> Option<u64> {
        // Bit 1 stands for the privilege that real descriptors are given.
        (descriptor & 1 == 0).then_some(descriptor | 2)
    }
    fn io_access(&self, domain: DomId, mfn: Mfn) -> IoAccess {
        match (domain, mfn.0) {
            (DomId(0), 0xfed00) => IoAccess::ReadOnly,
            (DomId(0), frame) if frame < 1 << 40 => IoAccess::ReadWrite,
            _ => IoAccess::None,
        }
    }
    fn set_ldt(&self, _: u64, _: u32) -> Result<()> {
        Ok(())
    }
    fn memory_map_entry(&self, index: usize) -> Option<E820Entry> {
        (index == 0).then_some(E820Entry {
            addr: 0,
            size: FRAMES << 12,
            kind: 1,
        })
    }
}

impl Domains for Fake {
    fn find(&self, id: DomId) -> Option<&DomainMemory> {
        self.domains.get(id.0 as usize)
    }
}

/// Guest memory of one call: 4 KiB at this address.
pub const VA: u64 = 0x1_0000;

/// Runs a call until it is done, with `units` of budget each round; at most a million rounds.
pub fn run(
    units: u32,
    args: [u64; 5],
    words: &mut [u64],
    call: impl Fn(&FakeGuest<'_>, [u64; 5], &mut Budget) -> Flow,
) -> i64 {
    use zerocopy::IntoBytes;
    let guest = FakeGuest::new(VA, words.as_mut_bytes());
    let mut args = args;
    for _ in 0..1_000_000 {
        match call(&guest, args, &mut Budget::new(units)) {
            Flow::Done(value) => return value,
            Flow::Again(rest) => args = rest,
        }
    }
    panic!("never finishes");
}

impl Fake {
    /// `mmu_update` with one request.
    pub fn update(&'static self, who: usize, ptr: u64, val: u64, foreign: u64) -> i64 {
        self.update_in(u32::MAX, who, ptr, val, foreign)
    }
    pub fn update_in(
        &'static self,
        units: u32,
        who: usize,
        ptr: u64,
        val: u64,
        foreign: u64,
    ) -> i64 {
        run(
            units,
            [VA, 1, 0, foreign, 0],
            &mut [ptr, val],
            |guest, args, budget| {
                let [a, b, c, d, _] = args;
                crate::mmu_update(&self.cx(who), guest, [a, b, c, d], budget)
            },
        )
    }
    /// Stores an entry by `mmu_update`.
    pub fn set(&'static self, who: usize, table: u64, slot: u64, value: u64) -> i64 {
        self.update(who, table << 12 | slot << 3, value, DomId::SELF.0.into())
    }
    /// `mmuext_op` with one operation.
    pub fn ext(&'static self, who: usize, cmd: u32, arg1: u64) -> i64 {
        self.ext_in(u32::MAX, who, cmd, arg1, 0)
    }
    pub fn ext_in(&'static self, units: u32, who: usize, cmd: u32, arg1: u64, arg2: u64) -> i64 {
        let mut words = [cmd.into(), arg1, arg2];
        let args = [VA, 1, 0, DomId::SELF.0.into(), 0];
        run(units, args, &mut words, |guest, args, budget| {
            let [a, b, c, d, _] = args;
            crate::mmuext_op(&self.cx(who), guest, [a, b, c, d], budget)
        })
    }
    /// `memory_op` with `words` as memory at [`VA`], the argument first.
    pub fn memory(&'static self, units: u32, who: usize, op: u64, words: &mut [u64]) -> i64 {
        run(units, [op, VA, 0, 0, 0], words, |guest, args, budget| {
            let [a, b, ..] = args;
            crate::memory_op(&self.cx(who), guest, [a, b], budget)
        })
    }
}
