// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests and deaths of three domains in random orders of an explicit scheduler ([`super::turns`]): nothing is left of
//! them in the end, and a granter that sees its entry unused has its frame for itself.

use super::fake::*;
use super::turns::{self, Random};
use philoxen_abi::grant::{Transfer, UnmapAndReplace, copy, gntst, gtf, map as flag, op};
use philoxen_abi::guest::FakeGuest;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Flow};
use spin::Mutex;
use std::boxed::Box;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::vec;
use std::vec::Vec;
use zerocopy::IntoBytes;

/// Requests of each vCPU.
const REQUESTS: u64 = 20;
/// How many entries are played with: entry 8 + n is for frame n only. One more is for a page table, which nobody may write.
const GREFS: u64 = 2;
/// Pages where leaves are made.
const PAGES: u64 = 4;

/// A handle, the address of its leaf, and that for devices.
type Handle = (u32, u64, u64);

/// One order of events.
struct Run {
    fake: M,
    seed: u64,
    handles: [Mutex<Vec<Handle>>; DOMAINS],
    /// vCPUs of each domain that are between two requests for good.
    stopped: [AtomicUsize; DOMAINS],
    mapped: AtomicU64,
    copied: AtomicU64,
    moved: AtomicU64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let fake = Fake::new();
        fake.ends_by_steps.store(true, Ordering::SeqCst);
        Self {
            fake,
            seed,
            handles: Default::default(),
            stopped: Default::default(),
            mapped: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            moved: AtomicU64::new(0),
        }
    }

    /// vCPU `id` of `who` makes requests until its domain is told to die.
    fn vcpu(&self, who: usize, id: usize) {
        let mut random = Random::new(self.seed * 31 + who as u64 * 2 + id as u64);
        for _ in 0..REQUESTS {
            if self.fake.domains[who].is_dying() {
                break;
            }
            self.request(who, id, &mut random);
        }
        self.stopped[who].fetch_add(1, Ordering::SeqCst);
    }

    fn request(&self, who: usize, id: usize, random: &mut Random) {
        let from = random.below(DOMAINS as u64) as usize;
        match random.below(20) {
            0..3 => self.permit(who, random),
            3..7 => self.map((who, id), from, random),
            7..11 => self.unmap((who, id), random),
            11 => self.replace((who, id)),
            12..15 => self.end_access(who),
            15 => self.give((who, id), from, random),
            16 => self.fake.speculate(),
            // Over a leaf that a handle may have made.
            17 => self.write((who, id), HOLE + random.below(PAGES), 0),
            _ => {
                let mine = own(Fake::data(who, 5 + id as u64), 0);
                let theirs = granted(from, 8 + random.below(GREFS + 1) as u32, 8);
                let mut request = [if random.below(2) == 0 {
                    copy_request(theirs, mine, 64, copy::SOURCE_GREF)
                } else {
                    copy_request(mine, theirs, 64, copy::DEST_GREF)
                }];
                self.fake.op_on((who, id), u32::MAX, op::COPY, &mut request);
                let done = request[0].status == gntst::OKAY;
                self.copied.fetch_add(done.into(), Ordering::Relaxed);
            }
        }
    }

    /// Offers a frame, or the place for one, to some domain.
    fn permit(&self, who: usize, random: &mut Random) {
        let index = random.below(GREFS + 1);
        let to = random.below(DOMAINS as u64) as usize;
        let flags = match random.below(4) {
            0 => gtf::PERMIT_ACCESS | gtf::READONLY,
            _ => gtf::PERMIT_ACCESS,
        };
        if random.below(4) == 0 {
            self.fake.grant(who, 20, to, 0, gtf::ACCEPT_TRANSFER);
        } else if self.entry(who, index).load(Ordering::SeqCst) as u16 & gtf::PERMIT_ACCESS == 0 {
            let frame = if index == GREFS {
                Fake::first(who) + 3
            } else {
                Fake::data(who, index)
            };
            self.fake.grant(who, 8 + index as u32, to, frame, flags);
        }
    }

    fn entry(&self, who: usize, index: u64) -> &AtomicU64 {
        self.fake.entry_v1(who, 8 + index as u32)
    }

    fn map(&self, by: (usize, usize), from: usize, random: &mut Random) {
        let page = HOLE + random.below(PAGES);
        let uses = [HOST, HOST | RO, HOST | flag::DEVICE_MAP, flag::DEVICE_MAP];
        let flags = uses[random.below(4) as usize];
        let gref = 8 + random.below(GREFS + 1) as u32;
        let mut request = [map_request(from, gref, page << 12, flags)];
        assert_eq!(self.fake.op_on(by, 1, op::MAP_GRANT_REF, &mut request), 0);
        if request[0].status == gntst::OKAY {
            let [done] = request;
            let handle = (done.handle, page << 12, done.dev_bus_addr);
            self.handles[by.0].lock().push(handle);
            self.mapped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends some uses of mappings, which the other vCPU may be at, too.
    fn unmap(&self, by: (usize, usize), random: &mut Random) {
        let lot: Vec<_> = self.handles[by.0]
            .lock()
            .iter()
            .rev()
            .take(2)
            .copied()
            .collect();
        let mut requests: Vec<_> = lot
            .iter()
            .map(|&(handle, at, device)| match random.below(3) {
                0 => unmap_request(handle, at, 0),
                1 => unmap_request(handle, 0, device),
                _ => unmap_request(handle, at, device),
            })
            .collect();
        self.fake
            .op_on(by, u32::MAX, op::UNMAP_GRANT_REF, &mut requests);
        if random.below(4) == 0 {
            self.handles[by.0].lock().pop();
        }
    }

    /// Ends a mapping, and puts the leaf of another page in its place.
    fn replace(&self, by: (usize, usize)) {
        let Some((handle, at, _)) = self.handles[by.0].lock().last().copied() else {
            return;
        };
        let mut request = [UnmapAndReplace {
            host_addr: at,
            new_addr: (HOLE + 7) << 12,
            handle,
            status: 99,
            pad: 0,
        }];
        self.fake
            .op_on(by, u32::MAX, op::UNMAP_AND_REPLACE, &mut request);
    }

    /// The granter takes its entries back that nobody uses. Then nobody reaches their frames any more.
    fn end_access(&self, who: usize) {
        for index in 0..GREFS {
            let entry = self.entry(who, index);
            let old = entry.load(Ordering::SeqCst);
            let used = u64::from(gtf::READING | gtf::WRITING);
            if old & used != 0 || old & u64::from(gtf::PERMIT_ACCESS) == 0 {
                continue;
            }
            turns::point();
            let ended = entry.compare_exchange(old, 0, Ordering::SeqCst, Ordering::SeqCst);
            if ended.is_ok() {
                let mfn = Fake::data(who, index);
                let others = |stale: &Stale| stale.mfn == mfn && stale.domain != who;
                let stale = self.fake.tlb.lock().iter().any(others);
                assert!(!stale, "others still reach frame {mfn} of domain {who}");
            }
        }
    }

    /// Gives a frame away, and with it what was in it: no page of its own shows it any more.
    fn give(&self, by: (usize, usize), to: usize, random: &mut Random) {
        let index = 8 + random.below(3);
        let mfn = Fake::data(by.0, index);
        self.write(by, 4 + index, 0);
        let mut request = [Transfer {
            mfn,
            domid: DomId(to as u16).0,
            pad: 0,
            gref: 20,
            status: 99,
            pad2: [0; 3],
        }];
        self.fake.op_on(by, u32::MAX, op::TRANSFER, &mut request);
        let done = request[0].status == gntst::OKAY;
        self.moved.fetch_add(done.into(), Ordering::Relaxed);
    }

    /// Writes a leaf, by the request that is for any entry.
    fn write(&self, by: (usize, usize), page: u64, value: u64) {
        let mut words = [Fake::leaf_address(by.0, page), value];
        let guest = FakeGuest::new(VA, words.as_mut_bytes());
        let args = [VA, 1, 0, DomId::SELF.0.into()];
        let cx = self.fake.cx(by.0, by.1);
        let flow = philoxen_paging::mmu_update(&cx, &guest, args, &mut Budget::unlimited());
        assert!(matches!(flow, Flow::Done(_)));
    }

    /// The toolstack destroys a domain, at some time.
    fn destroy(&self, who: usize) {
        let mut random = Random::new(self.seed * 7 + who as u64);
        for _ in 0..random.below(60) {
            turns::point();
        }
        self.fake.domains[who].set_dying();
        while self.stopped[who].load(Ordering::SeqCst) != VCPUS {
            turns::pass();
        }
        while !self.fake.go_on(who) {
            turns::pass();
        }
    }

    /// All vCPUs against the death of `dying`; then the others die. What was done: maps, copies, transfers.
    fn play(&self, dying: &[usize]) -> [u64; 3] {
        let mut work: Vec<Box<dyn FnOnce() + Send + '_>> = Vec::new();
        for who in 0..DOMAINS {
            for id in 0..VCPUS {
                work.push(Box::new(move || self.vcpu(who, id)));
            }
        }
        for &who in dying {
            work.push(Box::new(move || self.destroy(who)));
        }
        turns::run(self.seed, work);
        let fake = self.fake;
        let mut held = Vec::new();
        for table in &fake.tables {
            table.held(|mfn, write| held.push((mfn, write)));
        }
        fake.check(held.into_iter());
        for who in 0..DOMAINS {
            if !dying.contains(&who) {
                fake.domains[who].set_dying();
                while !fake.go_on(who) {}
            }
        }
        for (who, table) in fake.tables.iter().enumerate() {
            let left = (table.entries_in_use(), table.handles_in_use());
            assert_eq!(left, (0, 0), "seed {}: domain {who}", self.seed);
            assert!(
                fake.gone[who].load(Ordering::SeqCst),
                "seed {}: domain {who} stays",
                self.seed
            );
        }
        fake.check([].into_iter());
        assert_eq!(fake.buddy.lock().free_frames(), 64 + DOMAINS as u64 * EACH);
        [&self.mapped, &self.copied, &self.moved].map(|count| count.load(Ordering::Relaxed))
    }
}

#[test]
fn every_order_ends_with_zero_references() {
    let deaths: [&[usize]; 5] = [&[1], &[2], &[1, 2], &[0], &[0, 1, 2]];
    let mut done = [0; 3];
    for seed in 0..400 {
        let run = Run::new(seed);
        let played = run.play(deaths[seed as usize % deaths.len()]);
        for (sum, count) in done.iter_mut().zip(played) {
            *sum += count;
        }
    }
    assert!(
        done.iter().all(|&count| count > 100),
        "hardly anything was done: {done:?}"
    );
}

/// The same order again does the same.
#[test]
fn an_order_can_be_repeated() {
    let play = || Run::new(11).play(&[1]);
    assert_eq!(vec![play(); 2], vec![play(); 2]);
}
