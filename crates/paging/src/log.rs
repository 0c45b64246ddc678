// SPDX-License-Identifier: MIT OR Apache-2.0
//! The log of writes to a domain's memory, for live migration (`XEN_DOMCTL_shadow_op`, xen/domctl.h).
//!
//! A domain's own leaves are watched by their dirty bits, which the processor sets. Invariant while a log is on: a leaf
//! of the domain's own memory that is writable *and* dirty never loses one of the two, nor its place, without its frame
//! being marked ([`Frame::note_written`]). A round goes over all of the domain's L1 tables and takes one of the two
//! from each such leaf:
//! - from a kernel's leaf ([`KERNEL`]) the dirty bit, which no kernel looks at in its own mappings; the next write sets it again;
//! - from any other leaf the right to write. Its dirty bit is the guest's: it tells an application's page that must be
//!   saved from one that need not. The next write is a fault that the guest's kernel must be able to handle in
//!   any application, and it makes the leaf writable again.
//!
//! So tables hold nothing but what the guest may see and act on, at no time is there more than one truth about a leaf, and
//! turning the log off leaves nothing to restore.
//!
//! Whatever else changes a frame's contents marks it: changes of tables and descriptors, of what kind a frame is, writable
//! references that are given back, allocations. What may be written at any time through others' leaves
//! or by the hypervisor is marked in every round. Marks are given out *before* TLBs are flushed and the round ends:
//! until then writes by translations from before the round may go on, and the frames they reach are in the
//! log that the reader of memory then has in hand.

use crate::entry::{self, D, KERNEL, P, RW};
use crate::frame::Frame;
use crate::machine::{DomainMemory, Flush, FlushScope, Machine};
use crate::validate::{put_flat, put_frame, put_typed, share_owned};
use crate::word::{ENTRIES, Kind};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, GuestMemory, GuestVa, Mfn, Result};
use spin::Mutex;

/// Frames without work to do looked at for one unit of work.
const SCAN: u64 = 32;
/// Bytes of the reader's bitmap cleared at a time.
const CLEAR: u64 = 512;

/// A domain's log. The marks themselves are in the frames.
#[derive(Debug)]
pub struct WriteLog {
    on: AtomicBool,
    work: Mutex<Work>,
}

/// A round that is under way.
#[derive(Debug)]
struct Work {
    /// Rounds begun.
    rounds: u64,
    step: Step,
    /// Marks were taken that no reader got: all frames count as written.
    lost: bool,
    /// Pages given out.
    pages: u32,
}

/// What a round does next; the number is the first frame or byte that is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Idle,
    Tables(u64),
    Clear(u64),
    Frames(u64),
}

impl WriteLog {
    pub(crate) const fn new() -> Self {
        Self {
            on: AtomicBool::new(false),
            work: Mutex::new(Work {
                rounds: 0,
                step: Step::Idle,
                lost: false,
                pages: 0,
            }),
        }
    }
}

/// What a round is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// The log begins, empty: the reader reads all memory once the round is over.
    Start,
    /// Gives out the log and empties it.
    Take,
    /// Gives out the log.
    Look,
}

/// A request for a round.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What for.
    pub op: Op,
    /// The reader's bitmap, one bit per page by the domain's own numbering; null for none.
    pub bitmap: GuestVa,
    /// Bits of the bitmap.
    pub bits: u64,
    /// What [`Round::Again`] said; anything else begins a new round.
    pub token: u64,
}

/// How far a round got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Round {
    /// Over, with so many pages given out.
    Done(u32),
    /// To be continued by a request with this token.
    Again(u64),
}

/// Who writes to a domain's frames besides the domain.
pub trait Writers {
    /// True if a domain may have leaves of other domains' frames.
    fn maps_others(&self, id: DomId) -> bool;
    /// Calls `each` for every frame that the hypervisor may write to at any time.
    fn pinned(&self, each: impl FnMut(Mfn));
}

/// True while any domain has a log.
#[inline]
fn logging<M: Machine>(machine: M) -> bool {
    machine.logs().load(Ordering::Relaxed) != 0
}

/// The contents of a frame, or what kind of frame it is, changed.
#[inline]
pub(crate) fn written<M: Machine>(machine: M, frame: &Frame) {
    if logging(machine) {
        frame.note_written();
    }
}

/// A leaf that was `old` keeps its frame and no longer tells whether that was written to.
#[inline]
pub(crate) fn leaf_changes<M: Machine>(machine: M, old: u64) {
    if logging(machine)
        && entry::is_written(old)
        && let Some(frame) = machine.frames().get(entry::mfn(old))
    {
        frame.note_written();
    }
}

/// Ends a domain's log, if there is one.
pub fn stop<M: Machine>(machine: M, domain: &DomainMemory) {
    let mut work = domain.log.work.lock();
    work.step = Step::Idle;
    if domain.log.on.swap(false, Ordering::SeqCst) {
        machine.logs().fetch_sub(1, Ordering::SeqCst);
    }
}

/// Does a round for the running vCPU, whose memory the bitmap is in, as far as the budget goes.
///
/// # Errors
/// `EINVAL`: the domain has a log already, has none, or is dying. `EBUSY`: another processor is at it. `EFAULT`: the bitmap
/// cannot be written; what it missed is in the next round.
pub fn round<M: Machine, G: GuestMemory, W: Writers>(
    machine: M,
    domain: &DomainMemory,
    writers: &W,
    memory: &G,
    request: &Request,
    budget: &mut Budget,
) -> Result<Round> {
    let log = &domain.log;
    let mut work = log.work.try_lock().ok_or(Errno::EBUSY)?;
    if work.step == Step::Idle || request.token != token(work.rounds) {
        begin(machine, domain, &mut work, request.op)?;
    }
    let pass = Pass {
        machine,
        domain,
        writers,
        memory,
        request,
    };
    loop {
        let next = match work.step {
            Step::Tables(from) => pass.tables(from, budget),
            Step::Clear(from) => pass.clear(from, budget),
            Step::Frames(from) => pass.frames(from, &mut work, budget),
            Step::Idle => Ok(Step::Idle),
        };
        work.step = next.inspect_err(|_| {
            work.lost |= matches!(work.step, Step::Frames(_));
            work.step = Step::Idle;
        })?;
        if work.step == Step::Idle {
            break;
        }
        if budget.is_spent() {
            return Ok(Round::Again(token(work.rounds)));
        }
    }
    if request.op != Op::Look {
        work.lost = false;
    }
    let pages = work.pages;
    drop(work);
    // On every processor: whoever was in the middle of a change when the log began has left the hypervisor since.
    machine.flush_tlb(domain, FlushScope::Domain, Flush::All);
    Ok(Round::Done(pages))
}

/// A number that stands for a round, and that nobody finds in a register by chance.
const fn token(rounds: u64) -> u64 {
    rounds.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn begin<M: Machine>(machine: M, domain: &DomainMemory, work: &mut Work, op: Op) -> Result<()> {
    let on = &domain.log.on;
    if on.load(Ordering::SeqCst) == (op == Op::Start) || domain.is_dying() {
        return Err(Errno::EINVAL);
    }
    if op == Op::Start {
        on.store(true, Ordering::SeqCst);
        machine.logs().fetch_add(1, Ordering::SeqCst);
    }
    // A reader that never came back has taken marks.
    work.lost |= matches!(work.step, Step::Frames(_));
    work.rounds += 1;
    work.step = Step::Tables(0);
    work.pages = 0;
    Ok(())
}

/// The parts of a round.
struct Pass<'a, M, G, W> {
    machine: M,
    domain: &'a DomainMemory,
    writers: &'a W,
    memory: &'a G,
    request: &'a Request,
}

impl<M: Machine, G: GuestMemory, W: Writers> Pass<'_, M, G, W> {
    /// Marks the frames that were written through leaves since the last round, and those that may be at any time.
    fn tables(&self, from: u64, budget: &mut Budget) -> Result<Step> {
        let frames = self.machine.frames();
        for index in from..frames.len() {
            let Some(frame) = frames.get(Mfn(index)) else {
                break;
            };
            let table = frame.kind().is_live_as(Kind::L1);
            if table && let Some(owner) = frame.owner().owner() {
                if owner == self.domain.id() {
                    self.own_table(Mfn(index), frame);
                } else if self.writers.maps_others(owner) {
                    self.others_table(Mfn(index));
                }
            }
            let work = if table {
                ENTRIES
            } else {
                u32::from(index % SCAN == 0)
            };
            if work != 0 && !budget.spend(work) {
                return Ok(Step::Tables(index + 1));
            }
        }
        self.writers.pinned(|mfn| {
            if let Some(frame) = frames.get(mfn) {
                frame.note_written();
            }
        });
        Ok(Step::Clear(0))
    }

    /// Takes either the dirty bit or the right to write from leaves that have both.
    fn own_table(&self, mfn: Mfn, frame: &Frame) {
        let id = self.domain.id();
        if share_owned(self.machine, mfn, frame, Kind::L1, id) != Ok(true) {
            return;
        }
        let mut changed = false;
        for slot in self.machine.words(mfn) {
            let raw = slot.load(Ordering::Acquire);
            if !entry::is_written(raw) {
                continue;
            }
            let target = entry::mfn(raw);
            let Some(page) = self.machine.frames().get(target) else {
                continue;
            };
            if !page.owner().is_owned_by(id) {
                continue;
            }
            page.note_written();
            // A leaf that changes at this moment stays as it is, and is seen again in the next round.
            if raw & KERNEL != 0 {
                let _ = slot.compare_exchange(raw, raw & !D, Ordering::AcqRel, Ordering::Relaxed);
            } else {
                changed |= self.protect(slot, raw, (target, page));
            }
        }
        if changed {
            frame.note_written();
        }
        // One level: an L1 is released in one go.
        let _ = put_typed(self.machine, mfn, frame, &mut Budget::unlimited());
    }

    /// Makes a writable leaf read-only; false if it is no longer `raw`.
    fn protect(&self, slot: &AtomicU64, raw: u64, (mfn, frame): (Mfn, &Frame)) -> bool {
        if !frame.get(self.domain.id()) {
            return false;
        }
        let done = slot
            .compare_exchange(raw, raw & !RW, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        if done {
            put_flat(self.machine, mfn, frame);
        } else {
            put_frame(self.machine, mfn, frame);
        }
        done
    }

    /// Marks the domain's frames that another domain can write to.
    fn others_table(&self, mfn: Mfn) {
        for slot in self.machine.words(mfn) {
            let raw = slot.load(Ordering::Relaxed);
            if raw & (P | RW) == P | RW
                && let Some(page) = self.machine.frames().get(entry::mfn(raw))
                && page.owner().is_owned_by(self.domain.id())
            {
                page.note_written();
            }
        }
    }

    /// Bytes of the reader's bitmap.
    fn bytes(&self) -> u64 {
        if self.request.op == Op::Start || self.request.bitmap.is_null() {
            0
        } else {
            self.request.bits.div_ceil(8)
        }
    }

    fn clear(&self, from: u64, budget: &mut Budget) -> Result<Step> {
        let bytes = self.bytes();
        let mut at = from;
        while at < bytes {
            let len = CLEAR.min(bytes - at);
            let zeroes = [0; CLEAR as usize];
            let zeroes = zeroes.get(..len as usize).unwrap_or_default();
            self.memory
                .write_bytes(self.request.bitmap.add(at), zeroes)?;
            at += len;
            if !budget.spend(len as u32 / 64 + 1) {
                return Ok(Step::Clear(at));
            }
        }
        Ok(Step::Frames(0))
    }

    /// Gives out the marks.
    fn frames(&self, from: u64, work: &mut Work, budget: &mut Budget) -> Result<Step> {
        let frames = self.machine.frames();
        let mut out = Output::default();
        for index in from..frames.len() {
            let Some(frame) = frames.get(Mfn(index)) else {
                break;
            };
            let owner = frame.owner();
            let mut given = false;
            if owner.is_owned_by(self.domain.id()) && (owner.is_written() || work.lost) {
                if self.request.op != Op::Look {
                    frame.take_written(self.domain.id());
                }
                given = self.give(&mut out, self.machine.m2p_get(Mfn(index)))?;
            }
            work.pages = work.pages.saturating_add(given.into());
            if (given || index % SCAN == 0) && !budget.spend(1) {
                self.store(&mut out)?;
                return Ok(Step::Frames(index + 1));
            }
        }
        self.store(&mut out)?;
        Ok(Step::Idle)
    }

    /// Sets the bit of page `pfn`; false if the bitmap has none.
    fn give(&self, out: &mut Output, pfn: u64) -> Result<bool> {
        if pfn >= self.request.bits || self.request.op == Op::Start {
            return Ok(false);
        }
        if pfn / 8 != out.byte {
            self.store(out)?;
            out.byte = pfn / 8;
        }
        out.set |= 1 << (pfn % 8);
        Ok(true)
    }

    fn store(&self, out: &mut Output) -> Result<()> {
        let set = core::mem::take(&mut out.set);
        if set == 0 || self.request.bitmap.is_null() {
            return Ok(());
        }
        let at = self.request.bitmap.add(out.byte);
        let old: u8 = self.memory.read(at)?;
        self.memory.write(at, &(old | set))
    }
}

/// Bits of one byte of the bitmap that are to be set: pages come in runs.
#[derive(Default)]
struct Output {
    byte: u64,
    set: u8,
}
