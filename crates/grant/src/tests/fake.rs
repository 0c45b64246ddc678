// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fake machine, three domains, and shorthand for requests.

use super::turns;
use crate::host::{Host, Limits};
use crate::table::{FrameKind, GrantTable};
use philoxen_abi::grant::{
    CopyEnd, CopyRequest, MapGrantRef, SetupTable, UnmapGrantRef, gtf, map as flag, op,
};
use philoxen_abi::guest::FakeGuest;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::memory::E820Entry;
use philoxen_abi::{DomId, Errno, Flow, Mfn, Result};
use philoxen_domain::destruction::{Destruction, Remains, Step};
use philoxen_paging::audit::{Held, audit};
use philoxen_paging::buddy::{Block, Buddy};
use philoxen_paging::entry::{self, P, RW};
use philoxen_paging::frame::{Frame, FrameTable};
use philoxen_paging::machine::{Flush, FlushScope, IoAccess, VcpuRoots};
use philoxen_paging::relinquish::{Progress, relinquish};
use philoxen_paging::reservation::assign_frames;
use philoxen_paging::word::Kind;
use philoxen_paging::{Cx, DomainMemory, Domains, Machine, mmuext};
use spin::Mutex;
use std::boxed::Box;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::vec::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub const DOMAINS: usize = 3;
/// Frames each domain starts with; the first four are its tables.
pub const EACH: u64 = 16;
const FIRST: u64 = 8;
pub const FRAMES: u64 = FIRST + DOMAINS as u64 * EACH + 64;
/// First page of each address space where nothing is mapped.
pub const HOLE: u64 = EACH;
/// Guest memory of one call.
pub const VA: u64 = 0x10_0000;
pub const VCPUS: usize = 2;

/// A translation that a TLB may hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stale {
    pub domain: usize,
    pub mfn: u64,
    pub writable: bool,
}

#[derive(Debug)]
pub struct Fake {
    frames: FrameTable,
    pages: Vec<[AtomicU64; 512]>,
    m2p: Vec<AtomicU64>,
    clock: AtomicU64,
    flushed: AtomicU64,
    pub flushes: AtomicU64,
    pub buddy: Mutex<Buddy>,
    pub tlb: Mutex<BTreeSet<Stale>>,
    pub domains: [DomainMemory; DOMAINS],
    pub roots: [[VcpuRoots; VCPUS]; DOMAINS],
    pub tables: [Arc<GrantTable>; DOMAINS],
    pub gone: [AtomicBool; DOMAINS],
    /// No processor has tables of theirs loaded any more.
    still: [AtomicBool; DOMAINS],
    pub released: Mutex<Vec<DomId>>,
    /// Domains end as the hypervisor ends them: by steps that the toolstack and the last user of a frame take.
    pub ends_by_steps: AtomicBool,
    pub ends: [Destruction; DOMAINS],
    pub free_at_start: u64,
}

pub type M = &'static Fake;

impl Fake {
    pub fn new() -> M {
        Self::with_limits(Limits::wanted(Some(4), Some(1), 2))
    }
    pub fn with_limits(limits: Limits) -> M {
        let frames: Vec<Frame> = (0..FRAMES).map(|_| Frame::new()).collect();
        let frames = FrameTable::new(Box::leak(frames.into_boxed_slice()));
        let id = |index: usize| DomId(index as u16);
        frames.set_hypervisor(Mfn(1), FRAMES - 1);
        let mut buddy = Buddy::new();
        buddy.release_boot(&frames, Mfn(FIRST + DOMAINS as u64 * EACH), 64);
        let fake: M = Box::leak(Box::new(Self {
            frames,
            pages: (0..FRAMES)
                .map(|_| [const { AtomicU64::new(0) }; 512])
                .collect(),
            m2p: (0..FRAMES).map(|_| AtomicU64::new(u64::MAX)).collect(),
            clock: AtomicU64::new(1),
            flushed: AtomicU64::new(1),
            flushes: AtomicU64::new(0),
            free_at_start: buddy.free_frames(),
            buddy: Mutex::new(buddy),
            tlb: Mutex::new(BTreeSet::new()),
            domains: core::array::from_fn(|i| DomainMemory::new(id(i), i == 0, 64)),
            roots: Default::default(),
            tables: core::array::from_fn(|i| Arc::new(GrantTable::new(id(i), limits))),
            gone: Default::default(),
            still: Default::default(),
            released: Mutex::new(Vec::new()),
            ends_by_steps: AtomicBool::new(false),
            ends: Default::default(),
        }));
        for who in 0..DOMAINS {
            let first = Self::first(who);
            assign_frames(fake, &fake.domains[who], Mfn(first), EACH).unwrap();
            fake.build_tables(first);
            for vcpu in 0..VCPUS {
                mmuext::set_roots(
                    fake,
                    &fake.domains[who],
                    &fake.roots[who][vcpu],
                    Mfn(first),
                    None,
                    &mut Budget::unlimited(),
                )
                .unwrap();
            }
            fake.setup(who, 1);
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
    /// First frame of domain `who`.
    pub const fn first(who: usize) -> u64 {
        FIRST + who as u64 * EACH
    }
    /// Data frame `index` of domain `who`.
    pub const fn data(who: usize, index: u64) -> u64 {
        Self::first(who) + 4 + index
    }
    pub fn cx(&'static self, who: usize, vcpu: usize) -> Cx<'static, M, Fake> {
        Cx {
            machine: self,
            domain: &self.domains[who],
            roots: &self.roots[who][vcpu],
            domains: self,
        }
    }
    /// The leaf of page `page` of domain `who`.
    pub fn leaf(&self, who: usize, page: u64) -> u64 {
        self.peek(Self::first(who) + 3, page as usize)
    }
    /// Machine address of that leaf.
    pub const fn leaf_address(who: usize, page: u64) -> u64 {
        (Self::first(who) + 3) << 12 | page << 3
    }
    fn flush_all(&self) {
        let now = self.clock.fetch_add(1, Ordering::SeqCst) + 1;
        self.tlb.lock().clear();
        self.flushed.store(now, Ordering::SeqCst);
        self.flushes.fetch_add(1, Ordering::SeqCst);
    }
    /// Lets the TLBs learn what the L1 tables say.
    pub fn speculate(&self) {
        for who in 0..DOMAINS {
            if [&self.gone, &self.still]
                .iter()
                .any(|end| end[who].load(Ordering::SeqCst))
            {
                continue;
            }
            for page in 0..512 {
                let raw = self.leaf(who, page);
                if raw & P != 0 {
                    self.tlb.lock().insert(Stale {
                        domain: who,
                        mfn: entry::mfn(raw).0,
                        writable: raw & RW != 0,
                    });
                }
            }
        }
    }
    /// Every count is what holds it; `held` is held by handles: frame and writability.
    pub fn check(&'static self, held: impl Iterator<Item = (Mfn, bool)>) {
        let mut all: Vec<(Mfn, Held)> = self
            .roots
            .iter()
            .flatten()
            .flat_map(|roots| [roots.kernel(), roots.user()])
            .flatten()
            .map(|mfn| (mfn, Held::Typed))
            .collect();
        all.extend(held.map(|(mfn, write)| {
            let held = if write { Held::Typed } else { Held::General };
            (mfn, held)
        }));
        let wrong = audit(self, &all, |wrong| {
            std::println!("{wrong:?} {:?}", self.frame(wrong.mfn.0));
        });
        assert_eq!(wrong, Ok(0));
    }
    /// Goes on with the end of domain `who`, whose vCPUs stand still; true if nothing is left to do but by users of its frames.
    pub fn go_on(&'static self, who: usize) -> bool {
        self.ends[who].go_on(&Ending { fake: self, who }, &mut Budget::new(20))
    }
    /// Destroys domain `who` as the hypervisor does.
    pub fn destroy(&'static self, who: usize) {
        self.domains[who].set_dying();
        for roots in &self.roots[who] {
            mmuext::release_roots(self, roots, &mut Budget::unlimited());
        }
        self.flush_all();
        while self.tables[who].release_mappings(self, &mut Budget::new(20)) == Progress::Yield {}
        self.tables[who].destroy(self);
        while relinquish(self, &self.domains[who], &mut Budget::new(50)) == Progress::Yield {}
        self.gone[who].store(true, Ordering::SeqCst);
    }
}

/// A domain that is being destroyed.
struct Ending {
    fake: M,
    who: usize,
}

impl Remains for Ending {
    fn take(&self, step: Step, budget: &mut Budget) -> bool {
        let (fake, who) = (self.fake, self.who);
        turns::point();
        let nothing_left = match step {
            Step::Stop | Step::Events => true,
            Step::Vcpus => {
                for roots in &fake.roots[who] {
                    mmuext::release_roots(fake, roots, budget);
                }
                fake.still[who].store(true, Ordering::SeqCst);
                fake.flush_all();
                true
            }
            Step::Grants => {
                let done = fake.tables[who].release_mappings(fake, budget) == Progress::Done;
                if done {
                    fake.tables[who].destroy(fake);
                }
                done
            }
            Step::Memory => relinquish(fake, &fake.domains[who], budget) == Progress::Done,
            Step::Users | Step::Gone => fake.tables[who].entries_in_use() == 0,
        };
        turns::point();
        nothing_left
    }
    fn reached(&self, step: Step) {
        if step == Step::Gone {
            let gone = self.fake.gone[self.who].swap(true, Ordering::SeqCst);
            assert!(!gone, "gone twice");
        }
    }
}

/// Whole requests.
impl Fake {
    /// Runs `grant_table_op` on `elements` as vCPU `vcpu` of `who`, with `units` of budget each round.
    pub fn op_on<T: IntoBytes + FromBytes + Immutable>(
        &'static self,
        (who, vcpu): (usize, usize),
        units: u32,
        cmd: u32,
        elements: &mut [T],
    ) -> i64 {
        let count = elements.len() as u64;
        let guest = FakeGuest::new(VA, elements.as_mut_bytes());
        let mut args = [cmd.into(), VA, count, 0, 0];
        let cx = self.cx(who, vcpu);
        for _ in 0..10_000 {
            let [a, b, c, ..] = args;
            let mut budget = Budget::new(units);
            match crate::grant_table_op(&cx, &self.tables[who], &guest, [a, b, c], &mut budget) {
                Flow::Done(value) => return value,
                Flow::Again(rest) => args = rest,
            }
        }
        panic!("never finishes");
    }
    pub fn op<T: IntoBytes + FromBytes + Immutable>(
        &'static self,
        who: usize,
        cmd: u32,
        elements: &mut [T],
    ) -> i64 {
        self.op_on((who, 0), u32::MAX, cmd, elements)
    }
    pub fn setup(&'static self, who: usize, frames: u32) -> i16 {
        let mut words = [0u64; 19];
        let request = SetupTable {
            dom: DomId::SELF.0,
            pad: 0,
            nr_frames: frames,
            status: 1,
            pad2: [0; 3],
            frame_list: VA + 24,
        };
        words.as_mut_bytes()[..24].copy_from_slice(request.as_bytes());
        let guest = FakeGuest::new(VA, words.as_mut_bytes());
        let args = [op::SETUP_TABLE.into(), VA, 1];
        let cx = self.cx(who, 0);
        let table = &self.tables[who];
        let flow = crate::grant_table_op(&cx, table, &guest, args, &mut Budget::unlimited());
        assert_eq!(flow, Flow::Done(0));
        let answer = SetupTable::read_from_bytes(&words.as_bytes()[..24]).unwrap();
        if answer.status == 0 {
            for index in 0..frames {
                let mfn = table.frame(FrameKind::Shared, index).unwrap();
                assert_eq!(words[3 + index as usize], mfn.0);
            }
        }
        answer.status
    }
    /// The word of version 1 entry `gref` of `who`.
    pub fn entry_v1(&self, who: usize, gref: u32) -> &AtomicU64 {
        let mfn = self.tables[who].frame(FrameKind::Shared, gref / 512);
        &self.pages[mfn.unwrap().0 as usize][gref as usize % 512]
    }
    /// Writes a version 1 entry.
    pub fn grant(&self, who: usize, gref: u32, to: usize, mfn: u64, flags: u16) {
        let word = u64::from(flags) | (to as u64) << 16 | mfn << 32;
        self.entry_v1(who, gref).store(word, Ordering::SeqCst);
    }
    /// Permits `to` to use `mfn`.
    pub fn permit(&self, who: usize, gref: u32, to: usize, mfn: u64) {
        self.grant(who, gref, to, mfn, gtf::PERMIT_ACCESS);
    }
    pub fn map(&'static self, who: usize, from: usize, gref: u32, page: u64, flags: u32) -> Mapped {
        self.map_at(who, from, gref, page << 12, flags)
    }
    pub fn map_at(
        &'static self,
        who: usize,
        from: usize,
        gref: u32,
        host_addr: u64,
        flags: u32,
    ) -> Mapped {
        let mut request = [map_request(from, gref, host_addr, flags)];
        assert_eq!(self.op(who, op::MAP_GRANT_REF, &mut request), 0);
        let [request] = request;
        Mapped {
            status: request.status,
            handle: request.handle,
            address: request.dev_bus_addr,
        }
    }
    pub fn unmap(&'static self, who: usize, handle: u32, host_addr: u64, device: u64) -> i16 {
        let mut request = [unmap_request(handle, host_addr, device)];
        assert_eq!(self.op(who, op::UNMAP_GRANT_REF, &mut request), 0);
        request[0].status
    }
    pub fn copy(
        &'static self,
        who: usize,
        source: CopyEnd,
        dest: CopyEnd,
        len: u16,
        flags: u16,
    ) -> i16 {
        let mut request = [copy_request(source, dest, len, flags)];
        assert_eq!(self.op(who, op::COPY, &mut request), 0);
        request[0].status
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Mapped {
    pub status: i16,
    pub handle: u32,
    pub address: u64,
}

pub fn map_request(from: usize, gref: u32, host_addr: u64, flags: u32) -> MapGrantRef {
    MapGrantRef {
        host_addr,
        flags,
        gref,
        dom: from as u16,
        status: 99,
        handle: u32::MAX,
        dev_bus_addr: 0,
    }
}

pub fn unmap_request(handle: u32, host_addr: u64, dev_bus_addr: u64) -> UnmapGrantRef {
    UnmapGrantRef {
        host_addr,
        dev_bus_addr,
        handle,
        status: 99,
        pad: 0,
    }
}

pub fn copy_request(source: CopyEnd, dest: CopyEnd, len: u16, flags: u16) -> CopyRequest {
    CopyRequest {
        source,
        dest,
        len,
        flags,
        status: 99,
        pad: 0,
    }
}

/// A frame of the caller's own.
pub fn own(mfn: u64, offset: u16) -> CopyEnd {
    CopyEnd {
        frame_or_ref: mfn,
        domid: DomId::SELF.0,
        offset,
        pad: 0,
    }
}

/// A grant of `from`.
pub fn granted(from: usize, gref: u32, offset: u16) -> CopyEnd {
    CopyEnd {
        frame_or_ref: gref.into(),
        domid: from as u16,
        offset,
        pad: 0,
    }
}

pub const HOST: u32 = flag::HOST_MAP;
pub const RO: u32 = flag::READONLY;

impl Machine for M {
    fn frames(&self) -> FrameTable {
        turns::point();
        self.frames
    }
    fn words(&self, mfn: Mfn) -> &'static [AtomicU64; 512] {
        turns::point();
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
    fn is_m2p_frame(&self, _: Mfn) -> bool {
        false
    }
    fn m2p_extent(&self, _: u64) -> Option<Mfn> {
        None
    }
    fn tlb_clock(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }
    fn flush_since(&self, stamp: u64) {
        turns::point();
        if self.flushed.load(Ordering::SeqCst) <= stamp {
            self.flush_all();
        }
    }
    fn flush_tlb(&self, _: &DomainMemory, _: FlushScope, what: Flush) {
        turns::point();
        if what == Flush::All {
            self.flush_all();
        }
    }
    fn flush_caches(&self, _: bool) {}
    fn load_root(&self, l4: Mfn) {
        assert!(self.frame(l4.0).kind().is_live_as(Kind::L4));
    }
    fn hypervisor_l4_entry(&self, slot: usize) -> u64 {
        0xabc0_0000_0000 | (slot as u64) << 12 | 1
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
        turns::pass();
    }
    fn logs(&self) -> &'static AtomicU32 {
        // No domain has a log of writes.
        static LOGS: AtomicU32 = AtomicU32::new(0);
        &LOGS
    }
    fn check_descriptor(&self, _: u64) -> Option<u64> {
        None
    }
    fn io_access(&self, _: DomId, _: Mfn) -> IoAccess {
        IoAccess::None
    }
    fn set_ldt(&self, _: u64, _: u32) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    fn memory_map_entry(&self, _: usize) -> Option<E820Entry> {
        None
    }
}

impl Host for M {
    fn table(&self, id: DomId) -> Option<Arc<GrantTable>> {
        turns::point();
        let index = id.0 as usize;
        let gone = self.gone.get(index)?.load(Ordering::SeqCst);
        (!gone).then(|| self.tables[index].clone())
    }
    fn copy(&self, to: (Mfn, u64), from: (Mfn, u64), len: u64) {
        assert!(to.1 + len <= 4096 && from.1 + len <= 4096);
        turns::point();
        for index in 0..len {
            let (at, out) = (from.1 + index, to.1 + index);
            let byte = self.peek(from.0.0, at as usize / 8) >> (at % 8 * 8) & 0xff;
            let shift = out % 8 * 8;
            let word = &self.pages[to.0.0 as usize][out as usize / 8];
            let update = |old: u64| Some(old & !(0xff << shift) | byte << shift);
            word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, update)
                .unwrap();
        }
    }
    fn released(&self, granter: DomId) {
        self.released.lock().push(granter);
        if self.ends_by_steps.load(Ordering::SeqCst) {
            self.go_on(granter.0 as usize);
        }
    }
}

impl Domains for Fake {
    fn find(&self, id: DomId) -> Option<&DomainMemory> {
        let index = id.0 as usize;
        let gone = self.gone.get(index)?.load(Ordering::SeqCst);
        (!gone).then(|| &self.domains[index])
    }
}
